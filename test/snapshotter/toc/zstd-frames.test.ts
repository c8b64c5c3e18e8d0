import { execFileSync } from 'node:child_process'
import zlib from 'node:zlib'
import { describe, expect, test } from 'vitest'
import { LayerError } from '../../../snapshotter/errors.ts'
import { decodeZstdStream } from '../../../snapshotter/toc/decode-zstd-stream.ts'
import {
  decodeZstdFrame,
  decodeZstdFrames,
  decodeZstdInto,
  isZstd,
  skippableFrame,
  zstdFrames,
} from '../../../snapshotter/toc/zstd-frames.ts'
import { zstdLibrary } from '../../../snapshotter/toc/zstd-library.ts'
import { seeded } from '../../support/seeded.ts'

const noAbort = new AbortController().signal
const noLimit = { outputBytesMax: Number.MAX_SAFE_INTEGER, signal: noAbort }

/** Compressed by the zstd program: other frame headers than Node's, without content size and with checksum. */
function zstdProgram(input: Uint8Array, ...flags: string[]): Buffer {
  return execFileSync('zstd', ['-q', '-c', ...flags], { input, maxBuffer: 1 << 28 })
}

function mixed(random: (max: number) => number, bytes: number): Buffer {
  const out = Buffer.alloc(bytes)
  for (let at = 0; at < bytes; ) {
    const end = Math.min(bytes, at + 1 + random(5000))
    const isRun = random(3) === 0
    out.fill(random(256), at, end)
    for (; at < end; at++) if (!isRun) out[at] = random(256)
  }
  return out
}

async function* cut(bytes: Uint8Array, size: () => number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; ) {
    const length = size()
    yield bytes.subarray(at, at + length)
    at += length
  }
}

async function collect(pieces: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const all: Uint8Array[] = []
  for await (const piece of pieces) all.push(piece)
  return Buffer.concat(all)
}

const random = seeded(3)
const contents = [0, 1, 255, 256, 70_000, 300_000, 2_500_000].map((bytes) => mixed(random, bytes))
const frames = contents.flatMap((content, index) => [
  zlib.zstdCompressSync(content),
  zstdProgram(content, index % 2 === 0 ? '--no-check' : '--check', `-${1 + index}`),
  skippableFrame(Buffer.alloc(index * 100, 'skip'), index),
])
const stream = Buffer.concat(frames)
const plain = Buffer.concat(contents.flatMap((content) => [content, content]))

describe('walking frames', () => {
  test('every frame is found by its headers, zstd and skippable, with and without size and checksum', () => {
    const found = zstdFrames(stream)
    expect(found.map(({ start, end }) => end - start)).toEqual(frames.map(({ length }) => length))
    expect(found.filter(({ kind }) => kind === 'skippable')).toHaveLength(contents.length)
    // The program reads from a pipe and does not know the size; Node always does.
    const declared = found.filter((_, index) => index % 3 !== 1)
    expect(declared.map(({ contentSize }) => contentSize)).toEqual(
      contents.flatMap(({ length }) => [length, 0]),
    )
  })

  test('a stream cut anywhere inside a frame is refused, between frames it is whole', () => {
    const three = Buffer.concat(frames.slice(0, 9))
    const whole: number[] = []
    for (let bytes = 1; bytes <= three.length; bytes++) {
      try {
        zstdFrames(three.subarray(0, bytes))
        whole.push(bytes)
      } catch (error) {
        if (!(error instanceof LayerError && error.message.includes('cut off'))) throw error
      }
    }
    expect(whole).toEqual(zstdFrames(three).map(({ end }) => end))
  })

  test('what is no frame is refused with its place', () => {
    expect(() =>
      zstdFrames(Buffer.concat([frames[0] ?? stream, Buffer.from('garbage')]), 100),
    ).toThrow(/byte 109: no frame starts there/)
    expect(isZstd(stream)).toBe(true)
    expect(isZstd(skippableFrame(Buffer.alloc(0), 15))).toBe(true)
    expect(isZstd(Buffer.from([0x1f, 0x8b, 8, 0]))).toBe(false)
  })

  test('a frame that needs a dictionary is refused', () => {
    expect(() => zstdFrames(Buffer.from('28b52ffd2107000100000000', 'hex'))).toThrow(/dictionary/)
  })
})

describe('decoding one frame', () => {
  test('gives exactly the bytes that were promised, or fails', () => {
    const content = Buffer.from('content of a file')
    const frame = zlib.zstdCompressSync(content)
    expect(Buffer.from(decodeZstdFrame(frame, content.length))).toEqual(content)
    expect(decodeZstdFrame(zlib.zstdCompressSync(Buffer.alloc(0)), 0)).toHaveLength(0)
    expect(() => decodeZstdFrame(frame, content.length - 1)).toThrow(/does not decode/)
    expect(() => decodeZstdFrame(frame, content.length + 1)).toThrow(
      /makes 17 bytes in place of 18/,
    )
  })
})

describe('decoding a stream', () => {
  test('all frames come out, however the stream is cut', async () => {
    const random = seeded(5)
    expect(
      (
        await collect(
          decodeZstdStream(
            cut(stream, () => 65_536),
            noLimit,
          ),
        )
      ).equals(plain),
    ).toBe(true)
    const crumbs = Buffer.concat(frames.slice(0, 12))
    const expected = Buffer.concat(contents.slice(0, 4).flatMap((content) => [content, content]))
    const decoded = await collect(
      decodeZstdStream(
        cut(crumbs, () => 1 + random(3)),
        noLimit,
      ),
    )
    expect(decoded.equals(expected)).toBe(true)
  })

  test('a truncated or damaged stream is data loss', async () => {
    for (const bytes of [2, 7, stream.length - 200_000]) {
      const decoding = collect(
        decodeZstdStream(
          cut(stream.subarray(0, bytes), () => 9999),
          noLimit,
        ),
      )
      await expect(decoding, `${bytes} bytes`).rejects.toMatchObject({ code: 'DATA_LOSS' })
    }
    const checked = zstdProgram(contents[5] ?? stream, '--check')
    checked[checked.length - 1] = (checked.at(-1) ?? 0) ^ 1
    const decoding = collect(
      decodeZstdStream(
        cut(checked, () => 9999),
        noLimit,
      ),
    )
    await expect(decoding).rejects.toMatchObject({
      code: 'DATA_LOSS',
      message: expect.stringContaining('the frame at byte 0 does not decode'),
    })
  })

  test.each([
    ['with its size declared', (zeros: Buffer) => zlib.zstdCompressSync(zeros)],
    ['with its size kept quiet', (zeros: Buffer) => zstdProgram(zeros)],
  ])('a bomb %s stops at the limit', async (_, compress) => {
    const bomb = compress(Buffer.alloc(64 << 20))
    let produced = 0
    const decoding = (async () => {
      const limits = { outputBytesMax: 1 << 20, signal: noAbort }
      for await (const piece of decodeZstdStream(
        cut(bomb, () => 4096),
        limits,
      )) {
        produced += piece.length
      }
    })()
    await expect(decoding).rejects.toMatchObject({ code: 'RESOURCE_EXHAUSTED' })
    expect(produced).toBeLessThanOrEqual(1 << 20)
  })

  test('an aborted signal stops it, and the source is told', async () => {
    const stop = new AbortController()
    let isClosed = false
    const source = (async function* () {
      try {
        for (let count = 0; ; count++) {
          if (count === 100) stop.abort()
          yield frames[0] ?? stream
        }
      } finally {
        isClosed = true
      }
    })()
    const decoding = collect(
      decodeZstdStream(source, { outputBytesMax: Number.MAX_SAFE_INTEGER, signal: stop.signal }),
    )
    await expect(decoding).rejects.toMatchObject({ code: 'CANCELLED' })
    expect(isClosed).toBe(true)
  })
})

describe.each([
  ['libzstd', zstdLibrary()],
  ['Node', 'none' as const],
])('decoding frames into given memory by %s', (_, library) => {
  const parts = [mixed(seeded(43), 300_000), Buffer.from('x'), mixed(seeded(44), 70_000)]
  const whole = Buffer.concat(parts)
  const stream = Buffer.concat([
    ...parts.map((part) => zlib.zstdCompressSync(part)),
    skippableFrame(Buffer.from('passed over')),
    zstdProgram(Buffer.from('y')),
  ])
  const expected = Buffer.concat([whole, Buffer.from('y')])

  test('fills exactly that memory', async () => {
    const around = Buffer.alloc(expected.length + 200, 7)
    const into = around.subarray(100, 100 + expected.length)
    await decodeZstdInto(into, stream, 0, library)
    expect(into.equals(expected)).toBe(true)
    expect([...around.subarray(0, 100), ...around.subarray(-100)].every((byte) => byte === 7)).toBe(
      true,
    )
  })

  test('of many at once each gets its own', async () => {
    const all = Array.from({ length: 40 }, () => Buffer.alloc(expected.length))
    await Promise.all(all.map((into) => decodeZstdInto(into, stream, 0, library)))
    expect(all.every((into) => into.equals(expected))).toBe(true)
  })

  test('is data loss where they make more or less, are damaged, are cut off, or are no frames', async () => {
    // In the first block's header, which then is that of the reserved type, or of more bytes than there are.
    const damaged = Buffer.from(stream)
    damaged.fill(0xff, 9, 12)
    const cases: [Uint8Array, number][] = [
      [stream, expected.length - 1],
      [stream, expected.length + 1],
      [damaged, expected.length],
      [stream.subarray(0, -1), expected.length],
      [stream.subarray(1), expected.length],
      // A format before RFC 8878 (zstd 0.7), which libzstd may know.
      [Buffer.from('27b52ffd', 'hex'), 1],
    ]
    for (const [bytes, size] of cases) {
      const decoding = decodeZstdInto(Buffer.alloc(size), bytes, 0, library)
      await expect(decoding).rejects.toMatchObject({ name: 'LayerError', code: 'DATA_LOSS' })
    }
  })
})

test('frames that together make a known number of bytes are decoded, whether or not each says its own, and never further', () => {
  const parts = [mixed(seeded(41), 300_000), Buffer.alloc(0), mixed(seeded(42), 70_000)]
  const whole = Buffer.concat(parts)
  const silent = Buffer.concat([
    ...parts.map((part) => zstdProgram(part)),
    skippableFrame(Buffer.from('passed over')),
  ])
  const telling = Buffer.concat(parts.map((part) => zlib.zstdCompressSync(part)))
  for (const stream of [silent, telling]) {
    expect(Buffer.from(decodeZstdFrames(stream, whole.length)).equals(whole)).toBe(true)
    for (const size of [0, 1, whole.length - 1, whole.length + 1]) {
      expect(() => decodeZstdFrames(stream, size)).toThrow(LayerError)
    }
  }
})
