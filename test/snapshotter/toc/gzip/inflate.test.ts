import { constants, deflateRawSync, inflateRawSync, zstdCompressSync } from 'node:zlib'
import { describe, expect, test } from 'vitest'
import { decodeSpan } from '../../../../snapshotter/toc/gzip/decode-span.ts'
import { type BlockStart, Inflater } from '../../../../snapshotter/toc/gzip/inflate.ts'
import { failureOf } from '../../../support/failure-of.ts'
import { seeded } from '../../../support/seeded.ts'
import { bitsToBytes, inPieces, layerSample } from './layer-sample.ts'

function collect(
  inflater: Inflater,
  pieces: Iterable<Uint8Array>,
): { output: Buffer; used: number } {
  const output: Buffer[] = []
  let used = 0
  for (const piece of pieces) {
    const steps = inflater.push(piece)
    let step = steps.next()
    for (; step.done !== true; step = steps.next()) output.push(Buffer.from(step.value))
    used += step.value
  }
  return { output: Buffer.concat(output), used }
}

function inflate(pieces: Iterable<Uint8Array>): {
  output: Buffer
  used: number
  isDone: boolean
  starts: BlockStart[]
} {
  const starts: BlockStart[] = []
  const inflater = new Inflater({
    onBlockStart: (start) => starts.push({ ...start, window: Buffer.from(start.window) }),
  })
  return { ...collect(inflater, pieces), isDone: inflater.isDone, starts }
}

/** What zlib makes of a stream: its output and length, or undefined if it refuses it or finds it cut short. */
function zlibInflate(stream: Uint8Array): { output: Buffer; used: number } | undefined {
  try {
    const { buffer, engine } = inflateRawSync(stream, { info: true }) as unknown as {
      buffer: Buffer
      engine: { bytesWritten: number }
    }
    return { output: buffer, used: engine.bytesWritten }
  } catch {
    return undefined
  }
}

const { Z_DEFAULT_STRATEGY, Z_FILTERED, Z_FIXED, Z_HUFFMAN_ONLY, Z_RLE } = constants

describe('Inflater', { timeout: 60_000 }, () => {
  test.each([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])('makes what zlib packed at level %i', (level) => {
    const random = seeded(level)
    for (const strategy of [Z_DEFAULT_STRATEGY, Z_FILTERED, Z_FIXED, Z_HUFFMAN_ONLY, Z_RLE]) {
      const bytes = layerSample(random, 1 + random(500_000))
      const packed = deflateRawSync(bytes, { level, strategy, memLevel: 1 + random(9) })
      const { output, used, isDone } = inflate(inPieces(packed, { random, max: 100_000 }))
      expect(output.equals(bytes), `strategy ${strategy}`).toBe(true)
      expect({ used, isDone }).toEqual({ used: packed.length, isDone: true })
    }
  })

  test.each([1, 3, 20, 600])('does not mind how its input is cut: pieces up to %i bytes', (max) => {
    const random = seeded(max)
    const bytes = layerSample(random, 60_000)
    for (const level of [0, 1, 9]) {
      const packed = deflateRawSync(bytes, { level, memLevel: 2 })
      const { output, isDone } = inflate(inPieces(packed, { random, max }))
      expect(output.equals(bytes)).toBe(true)
      expect(isDone).toBe(true)
    }
  })

  test('leaves what follows the final block to its caller', () => {
    const packed = deflateRawSync('layer')
    const { used, output } = inflate([Buffer.concat([packed, Buffer.from('trailer')])])
    expect({ used, text: output.toString() }).toEqual({ used: packed.length, text: 'layer' })
  })

  test('names the bit and the window with which each block can be decoded alone', () => {
    const random = seeded(11)
    const parts = Array.from({ length: 12 }, () => layerSample(random, 1 + random(50_000)))
    const packed = Buffer.concat(
      parts.map((part, i) =>
        deflateRawSync(part, {
          level: i % 10,
          memLevel: 1 + random(9),
          finishFlush: i === 11 ? constants.Z_FINISH : constants.Z_FULL_FLUSH,
        }),
      ),
    )
    const bytes = Buffer.concat(parts)
    const { output, starts } = inflate(inPieces(packed, { random, max: 5000 }))
    expect(output.equals(bytes)).toBe(true)
    expect(starts.length).toBeGreaterThan(50)
    expect(new Set(starts.map(({ bitOffset }) => bitOffset % 8)).size).toBe(8)
    for (const { bitOffset, outputOffset, window } of starts.slice(1)) {
      const before = bytes.subarray(Math.max(0, outputOffset - 32_768), outputOffset)
      expect(before.equals(window), `window at bit ${bitOffset}`).toBe(true)
      const rest = decodeSpan(packed.subarray(Math.floor(bitOffset / 8)), {
        bit: bitOffset % 8,
        window: zstdCompressSync(window),
        length: bytes.length - outputOffset,
      })
      expect(bytes.subarray(outputOffset).equals(rest), `rest at bit ${bitOffset}`).toBe(true)
    }
  })

  test('copies matches of every length from every near distance, and from 32,768 bytes before', () => {
    const matches: string[] = []
    for (const length of [3, 4, 5, 6, 7, 8, 9, 10, 257, 258]) {
      for (const distance of [1, 2, 3, 4, 5, 6, 7, 8, 300, 32_768]) {
        matches.push(fixedMatch({ length, distance }))
      }
    }
    const noise = layerSample(seeded(5), 32_768)
    const stored = deflateRawSync(noise, { level: 0, finishFlush: constants.Z_FULL_FLUSH })
    const block = bitsToBytes(`1 10 ${matches.join(' ').repeat(60)} 0000000`)
    const packed = Buffer.concat([stored, block])
    const expected = inflateRawSync(packed)
    expect(expected.length).toBeGreaterThan(300_000)
    expect(inflate([packed]).output.equals(expected)).toBe(true)
    expect(inflate(inPieces(packed, { random: seeded(1), max: 9 })).output.equals(expected)).toBe(
      true,
    )
  })

  test('a match may not reach back before the stream, into the one before', () => {
    const inflater = new Inflater({ onBlockStart: () => {} })
    const decode = (bytes: Uint8Array): number => [...inflater.push(bytes)].length
    decode(deflateRawSync('the first stream'))
    inflater.restart(1000)
    const match = bitsToBytes(`1 10 01100001 ${fixedMatch({ length: 3, distance: 2 })} 0000000`)
    expect(() => decode(match)).toThrowError(
      'deflate stream is malformed before bit 8023 of the blob: a match reaches back 2 bytes, with 1 written',
    )
  })

  test('keeps memory and steps small however much a stream expands', () => {
    const packed = deflateRawSync(Buffer.alloc(50_000_000))
    let [total, largest] = [0, 0]
    for (const bytes of new Inflater({ onBlockStart: () => {} }).push(packed)) {
      total += bytes.length
      largest = Math.max(largest, bytes.length)
    }
    expect(total).toBe(50_000_000)
    expect(largest).toBeLessThanOrEqual(160 * 1024 + 262)
  })

  const dynamic = (counts: string, rest: string): string => `1 01 ${counts} ${rest}`
  test.each([
    ['the reserved block type', '1 11', 'a block has the reserved type 3'],
    [
      'a stored length that differs from its complement',
      `1 00 00000 ${'1'.repeat(16)} ${'1'.repeat(16)}`,
      "a stored block's length 65535 differs from its complement",
    ],
    [
      '287 literal codes',
      dynamic('01111 00000 0000', ''),
      'a block declares 287 literal and 1 distance codes',
    ],
    [
      '31 distance codes',
      dynamic('00000 01111 0000', ''),
      'a block declares 257 literal and 31 distance codes',
    ],
    [
      'a code length code with too many codes',
      dynamic('00000 00000 0000', '100 100 100 000'),
      'the code length code of a block is over-subscribed',
    ],
    [
      'a code length code with too few codes',
      dynamic('00000 00000 0000', '100 000 000 000'),
      'the code length code of a block is incomplete',
    ],
    [
      'a code length that repeats none',
      dynamic('00000 00000 0000', '100 100 000 000 0'),
      'the first code length repeats none',
    ],
    [
      'code lengths past their count',
      dynamic('00000 00000 0000', '000 100 100 000 1 1111111 1 1111111'),
      'code lengths run past their count',
    ],
    [
      'no code for the end of the block',
      dynamic('00000 00000 0000', '000 000 100 100 1 1111111 1 1011011'),
      'a block has no code for its own end',
    ],
    ['a literal code that means nothing', `1 10 11000110`, 'a literal or length has no meaning'],
    [
      'a distance code that means nothing',
      `1 10 ${'00110000'.repeat(9)} 0000001 11110`,
      'a distance has no meaning',
    ],
    [
      'a match before any output',
      `1 10 0000001 00000`,
      'a match reaches back 1 bytes, with 0 written',
    ],
  ])('refuses %s, as zlib does', async (_, bits, message) => {
    const stream = bitsToBytes(bits.padEnd(2000, ' 0'))
    expect(zlibInflate(stream)).toBe(undefined)
    const failure = await failureOf(() => inflate([stream]))
    expect(failure).toMatchObject({ name: 'LayerError', code: 'DATA_LOSS' })
    expect(failure.message).toContain(message)
    expect(failure.message).toMatch(/ before bit \d+ of the blob/)
  })

  // Goal: no stream is read otherwise than zlib reads it. Method: damage small streams of every kind of block, most of
  // all their headers, and compare verdict, length and output.
  test('takes and refuses damaged streams exactly as zlib does', () => {
    const random = seeded(2)
    const inflater = new Inflater({ onBlockStart: () => {} })
    let taken = 0
    for (let round = 0; round < 8000; round++) {
      const strategy = [Z_DEFAULT_STRATEGY, Z_FIXED, Z_HUFFMAN_ONLY][random(3)]!
      const bytes = layerSample(random, 1 + random(400))
      const stream = deflateRawSync(bytes, { level: random(10), strategy, memLevel: 1 })
      for (let flips = 1 + random(3); flips > 0; flips--) {
        stream[random(Math.min([40, 1000][random(2)]!, stream.length))]! ^= 1 << random(8)
      }
      const expected = zlibInflate(stream)
      const actual = outcome(inflater, inPieces(stream, { random, max: 300 }))
      expect(isSame(actual, expected), `round ${round}`).toBe(true)
      if (expected !== undefined) taken++
    }
    expect(taken).toBeGreaterThan(1000)
    expect(taken).toBeLessThan(7000)
  })

  test('takes and refuses random bits exactly as zlib does', () => {
    const random = seeded(3)
    const inflater = new Inflater({ onBlockStart: () => {} })
    let taken = 0
    for (let round = 0; round < 8000; round++) {
      const stream = Uint8Array.from({ length: 1 + random(150) }, () => random(256))
      stream[0] = (stream[0]! & 0xf8) | [1, 3, 5][random(3)]! // Final, and of a type that exists.
      const expected = zlibInflate(stream)
      const actual = outcome(inflater, [stream])
      expect(isSame(actual, expected), `round ${round}`).toBe(true)
      if (expected !== undefined) taken++
    }
    expect(taken).toBeGreaterThan(50)
  })
})

type Outcome = { output: Buffer; used: number } | undefined

function isSame(one: Outcome, other: Outcome): boolean {
  if (one === undefined || other === undefined) return one === other
  return one.used === other.used && one.output.equals(other.output)
}

/** As `zlibInflate`, with our decoder. */
function outcome(inflater: Inflater, pieces: Iterable<Uint8Array>): Outcome {
  inflater.restart(0)
  try {
    const { output, used } = collect(inflater, pieces)
    return inflater.isDone ? { output, used } : undefined
  } catch {
    return undefined
  }
}

/** The bits of a match in a fixed block (RFC 1951, sections 3.2.5 and 3.2.6). */
function fixedMatch({ length, distance }: { length: number; distance: number }): string {
  const codeOf = (value: number, start: number, extraOf: (code: number) => number) => {
    let [code, base] = [0, start]
    while (base + 2 ** extraOf(code) <= value) base += 2 ** extraOf(code++)
    return { code, extra: value - base, extraBits: extraOf(code) }
  }
  const bits = (value: number, count: number): string =>
    count === 0 ? '' : value.toString(2).padStart(count, '0')
  const reversed = (text: string): string => text.split('').toReversed().join('')
  const l = codeOf(length, 3, (code) => (code < 4 ? 0 : (code >> 2) - 1))
  const d = codeOf(distance, 1, (code) => (code < 2 ? 0 : (code >> 1) - 1))
  const lengthCode =
    length === 258
      ? bits(0b11000101, 8)
      : (l.code < 23 ? bits(l.code + 1, 7) : bits(0b11000000 + l.code - 23, 8)) +
        reversed(bits(l.extra, l.extraBits))
  return lengthCode + bits(d.code, 5) + reversed(bits(d.extra, d.extraBits))
}
