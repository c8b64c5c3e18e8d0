import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { status } from '@grpc/grpc-js'
import { describe, expect, test as plainTest } from 'vitest'
import type { Timestamp__Output } from '../../proto/types/google/protobuf/Timestamp.ts'
import { wallClockNs } from '../../snapshotter/kernel/libc.ts'
import { type Digest, digestOf } from '../../snapshotter/oci/digest.ts'
import {
  type ContentClient,
  type ContentWriter,
  type ServedContent,
  serveContent,
} from '../support/content-client.ts'
import { seeded } from '../support/seeded.ts'

// The checks that containerd has every content store pass (its package core/content/testsuite), by their names there, against
// our service on its socket. Each has a store and a server of its own. The four about namespaces are containerd's metadata
// store's: they run through a real containerd in content-proxy.test.ts.

const test = plainTest.extend<{ client: ContentClient; content: ServedContent }>({
  content: async ({ task: _task }, use) => {
    const dir = mkdtempSync(join(tmpdir(), 'content-'))
    try {
      await using served = await serveContent(dir)
      await use(served)
    } finally {
      rmSync(dir, { recursive: true })
    }
  },
  client: async ({ content }, use) => {
    await use(content.client)
  },
})

const EMPTY_DIGEST = 'sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
const gcRoot = { 'containerd.io/gc.root': '2026-01-01T00:00:00Z' }

let seed = 0
function content(size: number): { bytes: Buffer; digest: Digest } {
  const random = seeded(++seed)
  const bytes = Buffer.from(Array.from({ length: size }, () => random(256)))
  return { bytes, digest: digestOf(bytes) }
}

describe.concurrent('containerd content suite', { timeout: 60_000 }, () => {
  test('Writer', async ({ client }) => {
    const blobs = [content(256), content(256), content(256), content(256)] as const
    const [first, second, third, fourth] = blobs
    const writers = [
      await client.openWriter({ ref: 'c1' }),
      await client.openWriter({ ref: 'c2', total: second.bytes.length }),
      await client.openWriter({ ref: 'c3', expected: third.digest }),
      await client.openWriter({ ref: 'c4', total: 256, expected: fourth.digest }),
    ]
    expect(first.digest).not.toBe(second.digest)
    for (const [index, writer] of writers.entries()) {
      const { bytes, digest } = blobs[index] ?? content(1)
      await copy(writer, bytes, 32)
      const before = wallClockNs()
      await writer.commit({ labels: gcRoot })
      const after = wallClockNs()
      expect(writer.digest).toBe(digest)
      await expectInfo(client, { digest, size: 256, labels: gcRoot, created: [before, after] })
    }
  })

  test('UpdateStatus', async ({ client }) => {
    const { bytes, digest } = content(256)
    const beforeStart = wallClockNs()
    const writer = await client.openWriter({ ref: 'c1', total: 256, expected: digest })
    const started: Span = [beforeStart, wallClockNs()]
    await expectStatus(writer, {
      offset: 0,
      total: 256,
      digest: EMPTY_DIGEST,
      started,
      updated: started,
    })
    for (const [start, end] of [
      [0, 64],
      [64, 192],
      [192, 256],
    ] as const) {
      const before = wallClockNs()
      await writer.write(bytes.subarray(start, end))
      const updated: Span = [before, wallClockNs()]
      const soFar = digestOf(bytes.subarray(0, end))
      await expectStatus(writer, { offset: end, total: 256, digest: soFar, started, updated })
    }
    const before = wallClockNs()
    await writer.commit({ labels: gcRoot })
    expect(writer.digest).toBe(digest)
    const created: Span = [before, wallClockNs()]
    await expectInfo(client, { digest, size: 256, labels: gcRoot, created })
  })

  test('CommitExists', async ({ client }) => {
    const { bytes, digest } = content(256)
    await client.writeBlob('c1', bytes, digest)
    for (const [index, expected] of [digest, ''].entries()) {
      const writer = await client.openWriter({ ref: `c1-commitexists-${index}` })
      await writer.write(bytes)
      await expect(writer.commit({ size: bytes.length, expected })).rejects.toMatchObject({
        code: status.ALREADY_EXISTS,
      })
    }
  })

  test('Resume', async ({ client }) => {
    const { bytes, digest } = content(256)
    const upload = { ref: 'cb', total: 256, expected: digest }
    const beforeStart = wallClockNs()
    const first = await client.openWriter(upload)
    const started: Span = [beforeStart, wallClockNs()]
    const beforeWrite = wallClockNs()
    await first.write(bytes.subarray(0, 128))
    let updated: Span = [beforeWrite, wallClockNs()]
    const half = digestOf(bytes.subarray(0, 128))
    await expectStatus(first, { offset: 128, total: 256, digest: half, started, updated })
    await first.close()
    const second = await client.openWriter(upload)
    await expectStatus(second, { offset: 128, total: 256, digest: half, started, updated })
    const beforeSecond = wallClockNs()
    await second.write(bytes.subarray(128))
    updated = [beforeSecond, wallClockNs()]
    await expectStatus(second, { offset: 256, total: 256, digest, started, updated })
    const before = wallClockNs()
    await second.commit()
    expect(second.digest).toBe(digest)
    const created: Span = [before, wallClockNs()]
    await expectInfo(client, { digest, size: 256, labels: {}, created })
  })

  const resumptions = {
    ResumeTruncate: async (writer: ContentWriter, bytes: Buffer) => {
      writer.truncate()
      await copy(writer, bytes, 1024)
    },
    ResumeDiscard: async (writer: ContentWriter, bytes: Buffer) => {
      await copy(writer, bytes.subarray(writer.offset), 1024)
    },
    // containerd's Copy seeks, reads at or skips to where the upload ended: on the wire it is the same, in pieces of a MiB.
    ResumeCopy: async (writer: ContentWriter, bytes: Buffer) => {
      await copy(writer, bytes.subarray(writer.offset), 1024 * 1024)
    },
    ResumeCopySeeker: async (writer: ContentWriter, bytes: Buffer) => {
      const { offset } = await writer.stat()
      await copy(writer, bytes.subarray(Number(offset)), 1024 * 1024)
    },
    ResumeCopyReaderAt: async (writer: ContentWriter, bytes: Buffer) => {
      const { offset } = await writer.stat()
      await copy(writer, bytes.subarray(Number(offset)), 4096)
    },
  }
  test.for(Object.entries(resumptions))('%s', async ([, resume], { client }) => {
    for (const size of [500, 5_000, 50_000]) {
      for (const part of [0, 0.1, 0.5, 0.9, 1]) {
        const { bytes, digest } = content(size)
        const limit = Math.floor(size * part)
        const upload = { ref: `ref-${size}-${part}`, total: size, expected: digest }
        const first = await client.openWriter(upload)
        await first.write(bytes.subarray(0, limit))
        await first.close()
        const second = await client.openWriter(upload)
        expect(second.offset).toBe(limit)
        const before = wallClockNs()
        await resume(second, bytes)
        await second.commit({ size, expected: digest })
        const created: Span = [before, wallClockNs()]
        await expectInfo(client, { digest, size, labels: {}, created })
        expect(digestOf(await client.read(digest))).toBe(digest)
      }
    }
  })

  test('SmallBlob', async ({ client }) => {
    const bytes = Buffer.from('foobar')
    const digest = digestOf(bytes)
    const writer = await client.writer({ ref: 'small', total: 6, expected: digest })
    await writer.write(bytes)
    await writer.commit({ size: 6, expected: digest })
    expect(await client.read(digest, { size: 7 })).toEqual(bytes)
  })

  test('Labels', async ({ client }) => {
    const { bytes, digest } = content(256)
    const writer = await client.openWriter({ ref: 'c1-checklabels', total: 256, expected: digest })
    await writer.write(bytes)
    const before = wallClockNs()
    await writer.commit({ labels: { k1: 'v1', k2: 'v2', ...gcRoot } })
    expect(writer.digest).toBe(digest)
    const created: Span = [before, wallClockNs()]
    await expectInfo(client, {
      digest,
      size: 256,
      labels: { k1: 'v1', k2: 'v2', ...gcRoot },
      created,
    })
    const changed = { k1: 'newvalue', k3: 'v3', ...gcRoot }
    let beforeUpdate = wallClockNs()
    await client.update(digest, changed)
    let updated: Span = [beforeUpdate, wallClockNs()]
    await expectInfo(client, { digest, size: 256, labels: changed, created, updated })
    beforeUpdate = wallClockNs()
    await client.update(digest, { k1: 'v1', ...gcRoot }, 'labels.k3', 'labels.k1')
    updated = [beforeUpdate, wallClockNs()]
    await expectInfo(client, {
      digest,
      size: 256,
      labels: { k1: 'v1', ...gcRoot },
      created,
      updated,
    })
  })

  test('CommitErrorState', async ({ client }) => {
    const [{ bytes, digest }, other] = [content(256), content(256)]
    await client.writeBlob('c1', bytes, digest)
    const ref = 'c1-commiterror-state'
    const isTaken = async (): Promise<void> => {
      await expect(client.writer({ ref })).rejects.toMatchObject({ code: status.UNAVAILABLE })
    }
    const opened = async (data?: Buffer): Promise<ContentWriter> => {
      const writer = await client.openWriter({ ref })
      await isTaken()
      if (data !== undefined) await writer.write(data)
      return writer
    }
    const refuses = async (
      writer: ContentWriter,
      said: { size: number; expected?: string },
      code: number,
    ): Promise<void> => {
      await expect(writer.commit(said)).rejects.toMatchObject({ code })
    }
    await refuses(await opened(bytes), { size: 256, expected: digest }, status.ALREADY_EXISTS)
    await refuses(await opened(bytes), { size: 256 }, status.ALREADY_EXISTS)
    const more = Buffer.concat([bytes, Buffer.from('more')])
    const { FAILED_PRECONDITION } = status
    await refuses(await opened(more), { size: 260, expected: other.digest }, FAILED_PRECONDITION)
    await refuses(await opened(), { size: 256 }, FAILED_PRECONDITION)
    await (await opened()).commit({ size: 260 })
    await refuses(await opened(bytes), { size: 256, expected: digest }, status.ALREADY_EXISTS)
    await (await opened()).close()
    await (await client.openWriter({ ref })).close()
  })
})

/** Not before the first, not after the second; nanoseconds since the epoch. */
type Span = readonly [bigint, bigint]

async function copy(writer: ContentWriter, bytes: Buffer, pieceBytes: number): Promise<void> {
  for (let start = 0; start < bytes.length; start += pieceBytes) {
    await writer.write(bytes.subarray(start, start + pieceBytes))
  }
}

async function expectInfo(
  client: ContentClient,
  expected: {
    digest: string
    size: number
    labels: Readonly<Record<string, string>>
    created: Span
    updated?: Span
  },
): Promise<void> {
  const { digest, size, labels, created, updated = created } = expected
  const info = await client.info(digest)
  expect(info).toMatchObject({ digest, size: String(size) })
  expect(info.labels).toEqual(labels)
  expectWithin(info.createdAt, created)
  expectWithin(info.updatedAt, updated)
}

async function expectStatus(
  writer: ContentWriter,
  expected: { offset: number; total: number; digest: string; started: Span; updated: Span },
): Promise<void> {
  const { offset, total, digest, started, updated } = expected
  const answer = await writer.stat()
  expect(answer).toMatchObject({ offset: String(offset), total: String(total), digest })
  expectWithin(answer.startedAt, started)
  expectWithin(answer.updatedAt, updated)
}

function expectWithin(time: Timestamp__Output | null, [earliest, latest]: Span): void {
  const ns = BigInt(time?.seconds ?? 0) * 1_000_000_000n + BigInt(time?.nanos ?? 0)
  expect(ns).toBeGreaterThanOrEqual(earliest)
  expect(ns).toBeLessThanOrEqual(latest)
}
