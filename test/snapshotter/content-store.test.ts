import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmdirSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { status } from '@grpc/grpc-js'
import { CID } from 'multiformats/cid'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { LayerBlob } from '../../snapshotter/blobs/layer-blob.ts'
import { BlockError } from '../../snapshotter/errors.ts'
import { type Digest, digestOf } from '../../snapshotter/oci/digest.ts'
import type { PublishedBlobs } from '../../snapshotter/published-blobs.ts'
import { serveContent } from '../support/content-client.ts'
import { mountAll } from '../support/mount-all.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { seeded } from '../support/seeded.ts'

let root = ''
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'content-'))
})
afterEach(() => {
  rmSync(root, { recursive: true })
})

const bytes = randomContent(seeded(3), 300_000)
const digest = digestOf(bytes)

describe('blobs that containerd writes', () => {
  test('are files as in its own store, read-only, and gone when they are deleted', async () => {
    await using served = await serveContent(root)
    await served.client.writeBlob('a', bytes, digest)
    const path = join(root, 'content/blobs/sha256', digest.slice(7))
    expect(digestOf(readFileSync(path))).toBe(digest)
    expect(statSync(path).mode & 0o777).toBe(0o444)
    await served.client.delete(digest)
    expect(existsSync(path)).toBe(false)
    const gone = { code: status.NOT_FOUND }
    await expect(served.client.info(digest)).rejects.toMatchObject(gone)
    await expect(served.client.delete(digest)).rejects.toMatchObject(gone)
  })

  test('are read in parts, up to their end', async () => {
    await using served = await serveContent(root)
    await served.client.writeBlob('a', bytes, digest)
    const part = await served.client.read(digest, { offset: 1000, size: 50 })
    expect(part).toEqual(bytes.subarray(1000, 1050))
    const end = await served.client.read(digest, { offset: bytes.length - 10, size: 50 })
    expect(end).toEqual(bytes.subarray(-10))
    expect(await served.client.read(digest, { offset: bytes.length })).toHaveLength(0)
    await expect(served.client.read(digest, { offset: bytes.length + 1 })).rejects.toMatchObject({
      code: status.OUT_OF_RANGE,
    })
  })

  test('may be named by sha512', async () => {
    await using served = await serveContent(root)
    const long = digestOf(bytes, 'sha512')
    await served.client.writeBlob('a', bytes, long)
    expect(digestOf(await served.client.read(long))).toBe(digest)
    const writer = await served.client.openWriter({ ref: 'b' })
    await writer.write(Buffer.from('other'))
    const other = digestOf(Buffer.from('other'), 'sha512')
    await writer.commit({ expected: other })
    expect((await served.client.walk()).map((blob) => blob.digest).toSorted()).toEqual(
      [long, other].toSorted(),
    )
  })

  test('are listed once each, 250 of them, and by digest and label', async () => {
    await using served = await serveContent(root)
    const { client } = served
    const digests: string[] = []
    for (let index = 0; index < 250; index++) {
      const writer = await client.openWriter({ ref: `r${index}` })
      await writer.write(Buffer.from(`blob ${index}`))
      await writer.commit({ labels: { third: String(index % 3 === 0) } })
      digests.push(writer.digest)
    }
    const walked = async (...filters: string[]): Promise<string[]> =>
      (await client.walk(...filters)).map(({ digest }) => digest)
    expect((await walked()).toSorted()).toEqual(digests.toSorted())
    expect(await walked(`digest==${digests[7]}`)).toEqual([digests[7]])
    expect(await walked('labels.third==true')).toHaveLength(84)
    await expect(walked('digest=x')).rejects.toMatchObject({ code: status.INVALID_ARGUMENT })
  })

  test('keep times and labels over a restart', async () => {
    const before = await (async () => {
      await using served = await serveContent(root)
      await served.client.writeBlob('a', bytes, digest)
      return await served.client.update(digest, { k: 'v' }, 'labels.k')
    })()
    await using served = await serveContent(root)
    expect(await served.client.info(digest)).toEqual(before)
  })

  test('a blob that the disk has cut while it is read is DATA_LOSS', async () => {
    await using served = await serveContent(root)
    const large = randomContent(seeded(4), 3 << 20)
    const digest = digestOf(large)
    await served.client.writeBlob('a', large)
    const path = join(root, 'content/blobs/sha256', digest.slice(7))
    const pieces = served.store.read({ digest, offset: 0, size: 0 }, AbortSignal.timeout(5_000))
    expect((await pieces.next()).value).toHaveLength(1 << 20)
    chmodSync(path, 0o644)
    truncateSync(path, 1 << 20)
    await expect(pieces.next()).rejects.toMatchObject({ code: 'DATA_LOSS' })
  })
})

describe('uploads', () => {
  test('are told of while they are written, and when their writer is gone', async () => {
    await using served = await serveContent(root)
    const { client } = served
    const writer = await client.openWriter({ ref: 'a', total: bytes.length, expected: digest })
    await writer.write(bytes.subarray(0, 100))
    expect(await client.status('a')).toMatchObject({
      ref: 'a',
      offset: '100',
      total: '300000',
      expected: digest,
    })
    await writer.close()
    await (await client.openWriter({ ref: 'b' })).close()
    expect((await client.statuses()).map(({ ref }) => ref).toSorted()).toEqual(['a', 'b'])
    expect(await client.statuses('ref==a')).toMatchObject([{ ref: 'a', offset: '100' }])
    await expect(client.status('c')).rejects.toMatchObject({ code: status.NOT_FOUND })
  })

  test('are gone when they are aborted, also under their writer', async () => {
    await using served = await serveContent(root)
    const { client } = served
    const writer = await client.openWriter({ ref: 'a' })
    await writer.write(bytes)
    await client.abort('a')
    await expect(writer.write(bytes)).rejects.toMatchObject({ code: status.ABORTED })
    expect(await client.statuses()).toEqual([])
    await expect(client.abort('a')).rejects.toMatchObject({ code: status.NOT_FOUND })
    const anew = await client.openWriter({ ref: 'a' })
    expect(anew.offset).toBe(0)
    await anew.close()
  })

  test('go on when the agent was started again', async () => {
    {
      await using served = await serveContent(root)
      const writer = await served.client.openWriter({ ref: 'a', total: bytes.length })
      await writer.write(bytes.subarray(0, 200_000))
      await writer.close()
    }
    await using served = await serveContent(root)
    const writer = await served.client.openWriter({ ref: 'a', total: bytes.length })
    expect(writer.offset).toBe(200_000)
    await writer.write(bytes.subarray(200_000))
    await writer.commit({ expected: digest })
    expect(digestOf(await served.client.read(digest))).toBe(digest)
  })

  test('that are committed at once by two are one blob, and ALREADY_EXISTS for one of them', async () => {
    await using served = await serveContent(root)
    const writers = await Promise.all(
      ['a', 'b'].map((ref) => served.client.openWriter({ ref, total: bytes.length })),
    )
    await Promise.all(writers.map((writer) => writer.write(bytes)))
    const ends = await Promise.allSettled(writers.map((writer) => writer.commit()))
    const failures = ends.flatMap((end) => (end.status === 'rejected' ? [end.reason] : []))
    expect(failures).toMatchObject([{ code: status.ALREADY_EXISTS }])
    expect(digestOf(await served.client.read(digest))).toBe(digest)
    expect(await served.client.statuses()).toEqual([])
  })

  test('are left to others when their caller goes away', async () => {
    await using served = await serveContent(root)
    const writer = await served.client.openWriter({ ref: 'a' })
    await writer.write(bytes)
    await expect(served.client.writer({ ref: 'a' })).rejects.toMatchObject({
      code: status.UNAVAILABLE,
    })
    writer.abandon()
    const next = await served.client.openWriter({ ref: 'a' })
    expect(next.offset).toBe(bytes.length)
    await next.close()
  })

  test('cannot be what they are not: each refusal says why and changes nothing', async () => {
    await using served = await serveContent(root)
    const { client } = served
    const invalid = { code: status.INVALID_ARGUMENT }
    await expect(client.writer({ ref: '' })).rejects.toMatchObject(invalid)
    await expect(client.writer({ ref: 'r'.repeat(4097) })).rejects.toMatchObject(invalid)
    await expect(client.writer({ ref: 'a', expected: 'sha256:../../x' })).rejects.toMatchObject(
      invalid,
    )
    await expect(client.writer({ ref: 'a', total: -1 })).rejects.toMatchObject(invalid)
    for (const name of ['', 'sha256:..', `sha256:${'A'.repeat(64)}`, '../../../etc/passwd']) {
      await expect(client.info(name)).rejects.toMatchObject(invalid)
      await expect(client.read(name)).rejects.toMatchObject(invalid)
      await expect(client.delete(name)).rejects.toMatchObject(invalid)
    }
    await client.writeBlob('a', bytes, digest)
    await expect(client.update(digest, { k: 'v' }, 'size')).rejects.toMatchObject(invalid)
    await expect(client.update(digest, { k: 'v'.repeat(5000) })).rejects.toMatchObject(invalid)
    const writer = await client.openWriter({ ref: 'b' })
    await writer.write(Buffer.from('12345'))
    await expect(
      writer.send({ action: 'WRITE', offset: '3', data: Buffer.from('x') }),
    ).rejects.toMatchObject({ code: status.OUT_OF_RANGE })
    const total = await client.openWriter({ ref: 'c', total: 10 })
    await total.close()
    await expect(client.writer({ ref: 'c', total: 11 })).rejects.toMatchObject({
      code: status.FAILED_PRECONDITION,
    })
    expect(await client.walk()).toHaveLength(1)
  })

  // On a file system of 8 MiB of its own.
  test('on a full disk are RESOURCE_EXHAUSTED, and go on once there is room', async () => {
    const disk = mkdtempSync(join(tmpdir(), 'full-'))
    try {
      await using _mounted = await mountAll(
        [{ type: 'tmpfs', source: 'tmpfs', options: ['size=8m'] }],
        disk,
      )
      await using served = await serveContent(disk)
      const { client } = served
      const first = randomContent(seeded(5), 5 << 20)
      const second = randomContent(seeded(6), 5 << 20)
      await client.writeBlob('first', first)
      const writer = await client.openWriter({ ref: 'second' })
      await expect(writer.write(second)).rejects.toMatchObject({ code: status.RESOURCE_EXHAUSTED })
      expect(digestOf(await client.read(digestOf(first)))).toBe(digestOf(first))
      await client.delete(digestOf(first))
      const again = await client.openWriter({ ref: 'second' })
      again.truncate()
      await again.write(second)
      await again.commit({ expected: digestOf(second) })
      expect(digestOf(await client.read(digestOf(second)))).toBe(digestOf(second))
    } finally {
      rmdirSync(disk)
    }
  })
})

describe('what containerd left', () => {
  test('is there: its blobs, and its uploads to go on with', async () => {
    const blobs = join(root, 'content/blobs/sha256')
    mkdirSync(blobs, { recursive: true })
    writeFileSync(join(blobs, digest.slice(7)), bytes)
    writeFileSync(join(blobs, 'no-digest'), 'left by somebody')
    const ref = 'k8s.io/7/layer-sha256:abc'
    const upload = join(root, 'content/ingest', digestOf(Buffer.from(ref)).slice(7))
    mkdirSync(upload, { recursive: true })
    const files = {
      ref,
      data: bytes.subarray(0, 1234),
      startedat: '2026-01-02T03:04:05.5Z',
      updatedat: '2026-01-02T04:04:05.123456789+01:00',
      total: String(bytes.length),
    }
    for (const [name, content] of Object.entries(files)) writeFileSync(join(upload, name), content)
    mkdirSync(join(root, 'content/ingest/half'))
    await using served = await serveContent(root)
    const { client } = served
    expect(await client.walk()).toMatchObject([{ digest, size: '300000' }])
    expect(await client.statuses()).toMatchObject([
      {
        ref,
        offset: '1234',
        total: '300000',
        startedAt: { seconds: '1767323045', nanos: 500_000_000 },
      },
    ])
    const writer = await client.openWriter({ ref })
    expect(writer.offset).toBe(1234)
    await writer.close()
  })
})

describe('blobs of lazy layers', () => {
  /** A blob elsewhere, and how it was asked for. */
  function publishing(
    held: Buffer,
    options: { readonly named?: Digest; readonly pieceBytes?: number } = {},
  ): PublishedBlobs & {
    readonly streams: number[]
    readonly given: () => number
    offline: boolean
  } {
    const { named = digestOf(held), pieceBytes = 10_000 } = options
    const streams: number[] = []
    let given = 0
    const blob: LayerBlob = {
      cid: CID.parse('bafkqaaa'),
      size: held.length,
      leafStarts: Float64Array.of(0, held.length),
      readRange: () => Promise.reject(new Error('not read so')),
      leafOf: () => undefined,
      toBytes: () => Buffer.from('kept'),
      async *stream({ start, end }) {
        if (published.offline) throw new BlockError('UNAVAILABLE', 'nobody has it')
        streams.push(start)
        for (let at = start; at < end; at += pieceBytes) {
          given += Math.min(pieceBytes, end - at)
          yield held.subarray(at, Math.min(at + pieceBytes, end))
        }
      },
    }
    const published = {
      streams,
      given: () => given,
      offline: false,
      find: (digest: Digest) =>
        Promise.resolve(
          digest === named ? { size: held.length, bytes: Buffer.from('kept') } : undefined,
        ),
      inRegistry: () => undefined,
      open: () => blob,
    }
    return published
  }

  test('are here for whoever asks, and listed only from then on, so that they can be deleted', async () => {
    await using served = await serveContent(root, publishing(bytes))
    const { client } = served
    expect(await client.walk()).toEqual([])
    expect(await client.info(digest)).toMatchObject({ digest, size: '300000' })
    expect(await client.walk()).toMatchObject([{ digest }])
    await client.update(digest, { k: 'v' }, 'labels.k')
    expect((await client.info(digest)).labels).toEqual({ k: 'v' })
    await client.delete(digest)
    expect(await client.walk()).toEqual([])
    await expect(client.info(digestOf(Buffer.from('x')))).rejects.toMatchObject({
      code: status.NOT_FOUND,
    })
  })

  test('are read in 32 KiB after 32 KiB as containerd does, from one stream', async () => {
    const published = publishing(bytes)
    await using served = await serveContent(root, published)
    const pieces: Buffer[] = []
    for (let offset = 0; offset < bytes.length; offset += 32_768) {
      pieces.push(await served.client.read(digest, { offset, size: 32_768 }))
    }
    expect(digestOf(Buffer.concat(pieces))).toBe(digest)
    expect(published.streams).toEqual([0])
    expect(published.given()).toBe(bytes.length)
  })

  test('are read by two at once, each at its own place', async () => {
    const published = publishing(bytes)
    await using served = await serveContent(root, published)
    const readAll = async (from: number): Promise<Buffer> => {
      const pieces: Buffer[] = []
      for (let offset = from; offset < bytes.length; offset += 7_000) {
        pieces.push(await served.client.read(digest, { offset, size: 7_000 }))
      }
      return Buffer.concat(pieces)
    }
    const [whole, half] = await Promise.all([readAll(0), readAll(140_000)])
    expect(whole?.equals(bytes)).toBe(true)
    expect(half?.equals(bytes.subarray(140_000))).toBe(true)
  })

  test('that are not what their digest says are DATA_LOSS before their last byte is given', async () => {
    const named = digestOf(Buffer.from('something else'))
    await using served = await serveContent(root, publishing(bytes, { named }))
    await expect(served.client.read(named)).rejects.toMatchObject({ code: status.DATA_LOSS })
    const most = await served.client.read(named, { size: bytes.length - 10_001 })
    expect(most).toHaveLength(bytes.length - 10_001)
    await expect(
      served.client.read(named, { offset: most.length, size: 20_000 }),
    ).rejects.toMatchObject({ code: status.DATA_LOSS })
  })

  test('that nobody has now are UNAVAILABLE, and read once somebody has', async () => {
    const published = publishing(bytes)
    await using served = await serveContent(root, published)
    published.offline = true
    await expect(served.client.read(digest)).rejects.toMatchObject({ code: status.UNAVAILABLE })
    published.offline = false
    expect(digestOf(await served.client.read(digest))).toBe(digest)
  })

  test('are found again after a restart, when their layer is gone', async () => {
    {
      await using served = await serveContent(root, publishing(bytes))
      await served.client.info(digest)
    }
    const forgotten = { ...publishing(bytes), find: () => Promise.resolve(undefined) }
    await using served = await serveContent(root, forgotten)
    expect(digestOf(await served.client.read(digest))).toBe(digest)
  })

  test('are blobs like others once somebody has written them', async () => {
    const published = publishing(bytes)
    await using served = await serveContent(root, published)
    await served.client.info(digest)
    const expected = { code: status.ALREADY_EXISTS }
    await expect(
      served.client.writer({ ref: 'a', total: bytes.length, expected: digest }),
    ).rejects.toMatchObject(expected)
    const writer = await served.client.openWriter({ ref: 'b' })
    await writer.write(bytes)
    await writer.commit({ size: bytes.length })
    expect(await served.client.walk()).toMatchObject([{ digest }])
    expect(digestOf(await served.client.read(digest))).toBe(digest)
    expect(published.streams).toEqual([])
  })
})
