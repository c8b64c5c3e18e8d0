import { execFileSync } from 'node:child_process'
import { createCipheriv } from 'node:crypto'
import { gzipSync } from 'node:zlib'
import { describe, expect, test } from 'vitest'
import { LayerError } from '../../../../snapshotter/errors.ts'
import { GzipIndexer } from '../../../../snapshotter/toc/gzip/gzip-indexer.ts'
import { GzipLayerMap } from '../../../../snapshotter/toc/gzip/gzip-layer-map.ts'
import { HEADER_BYTES, RECORD_BYTES } from '../../../../snapshotter/toc/gzip/seek-index-format.ts'
import { failureOf } from '../../../support/failure-of.ts'
import { seeded } from '../../../support/seeded.ts'
import { gzipMember } from './gzip-blob.ts'
import { bitsToBytes, inPieces, layerSample } from './layer-sample.ts'

const MIB = 1024 * 1024

function indexed(
  blob: Uint8Array,
  checkpointBytes?: number,
): { map: GzipLayerMap; output: Buffer } {
  const indexer = new GzipIndexer({
    outputBytesMax: 1e9,
    ...(checkpointBytes !== undefined && { checkpointBytes }),
  })
  const output: Buffer[] = []
  for (const piece of inPieces(blob, { random: seeded(0), max: 300_000 })) {
    for (const bytes of indexer.push(piece)) output.push(Buffer.from(bytes))
  }
  return { map: indexer.finish(), output: Buffer.concat(output) }
}

/** Every unit decoded alone, in an order without pattern, is the bytes it should be. */
function expectUnits(map: GzipLayerMap, { blob, layer }: { blob: Buffer; layer: Buffer }): void {
  expect({ layerSize: map.layerSize, blobSize: map.blobSize }).toEqual({
    layerSize: layer.length,
    blobSize: blob.length,
  })
  expect([map.starts[0], map.starts.at(-1)]).toEqual([0, layer.length])
  const units = Array.from({ length: map.starts.length - 1 }, (_, unit) => unit)
  for (const unit of units.toSorted((a, b) => ((a * 7) % 11) - ((b * 7) % 11))) {
    const { start, end } = map.blobRange(unit)
    const decoded = map.decode(unit, blob.subarray(start, end))
    const expected = layer.subarray(map.starts[unit], map.starts[unit + 1])
    expect(expected.equals(decoded), `unit ${unit}`).toBe(true)
  }
}

function throughBytes(map: GzipLayerMap): GzipLayerMap {
  const bytes = map.toBytes()
  expect(bytes[0]).toBe(3)
  return GzipLayerMap.fromBytes(bytes)
}

/** Bytes that do not compress. */
function noise(length: number): Buffer {
  return createCipheriv('aes-128-ctr', Buffer.alloc(16), Buffer.alloc(16)).update(
    Buffer.alloc(length),
  )
}

/** Noise that comes again after 30,000 bytes: windows do not compress, all else does. */
function repeatedNoise(length: number): Buffer {
  return Buffer.alloc(length, noise(30_000))
}

/** What comes of decoding all units. Throws if a byte is wrong. */
function outcomeOf({
  index,
  blob,
  layer,
}: {
  index: Buffer
  blob: Buffer
  layer: Buffer
}): 'refused' | 'undecodable' | 'right' {
  let outcome: 'refused' | 'undecodable' | 'right' = 'refused'
  try {
    const map = GzipLayerMap.fromBytes(index)
    outcome = 'right'
    for (let unit = 0; unit + 1 < map.starts.length; unit++) {
      const { start, end } = map.blobRange(unit)
      const decoded = decodedOrNone(map, unit, blob.subarray(start, end))
      const expected = layer.subarray(map.starts[unit], map.starts[unit + 1])
      if (decoded === undefined) outcome = 'undecodable'
      else if (!expected.equals(decoded)) throw new Error(`unit ${unit} has wrong bytes`)
    }
  } catch (error) {
    if (!(error instanceof LayerError)) throw error
  }
  return outcome
}

function decodedOrNone(map: GzipLayerMap, unit: number, blob: Uint8Array): Uint8Array | undefined {
  try {
    return map.decode(unit, blob)
  } catch (error) {
    if (error instanceof LayerError && error.code === 'DATA_LOSS') return undefined
    throw error
  }
}

describe('GzipLayerMap', { timeout: 60_000 }, () => {
  test.each([1, 6, 9])('decodes each unit of a gzip -%i layer alone', (level) => {
    const layer = layerSample(seeded(level), 6_000_000)
    const blob = execFileSync('gzip', [`-${level}`], { input: layer, maxBuffer: 1e9 })
    const { map, output } = indexed(blob, 50_000)
    expect(output.equals(layer)).toBe(true)
    expect(map.starts.length).toBeGreaterThan(12)
    expectUnits(throughBytes(map), { blob, layer })
  })

  // As pigz --independent and eStargz write them: the units start at members, inside them, and hold many of them.
  test('decodes each unit of a layer of thousands of members alone', () => {
    const random = seeded(5)
    const contents = Array.from({ length: 3000 }, (_, i) =>
      layerSample(random, random(i % 500 === 0 ? 900_000 : 1500)),
    )
    const layer = Buffer.concat(contents)
    const blob = Buffer.concat([
      ...contents.map((content, i) => gzipMember(content, { level: i % 10 })),
      gzipMember(Buffer.alloc(0), { extra: new Uint8Array(22) }), // The footer of an eStargz.
      new Uint8Array(1000),
    ])
    const { map, output } = indexed(blob, 40_000)
    expect(output.equals(layer)).toBe(true)
    expect(map.starts.length).toBeGreaterThan(15)
    expectUnits(throughBytes(map), { blob, layer })
    expect(indexed(blob).map.toBytes().length).toBeLessThan(blob.length * 0.015)
  })

  test('an empty layer has no units', () => {
    const blob = gzipSync('')
    const { map } = indexed(blob)
    expect(throughBytes(map).starts).toEqual(Float64Array.from([0]))
    expect(map.blobSize).toBe(blob.length)
  })

  test.each<[string, () => Buffer]>([
    ['noise', () => noise(30 * MIB)],
    ['a mixture', () => layerSample(seeded(7), 30 * MIB)],
    ['zeros', () => Buffer.alloc(64 * MIB)],
  ])('is at most 1.5 %% of a blob of %s, with units of about 4 MiB', (_, makeLayer) => {
    const layer = makeLayer()
    const blob = gzipSync(layer, { level: 1 })
    const { map } = indexed(blob)
    expect(map.toBytes().length / blob.length).toBeLessThanOrEqual(0.015)
    const lengths = Array.from(map.starts.subarray(1), (end, unit) => end - map.starts[unit]!)
    expect(Math.max(...lengths)).toBeLessThan(6 * MIB)
    expect(Math.min(...lengths.slice(0, -1))).toBeGreaterThanOrEqual(4 * MIB)
  })

  test('its checkpoints move apart where they would be more than 1.5 % of the blob', () => {
    const random = seeded(6)
    const layer = repeatedNoise(32 * MIB)
    for (let at = 0; at < layer.length; at += 1 + random(32)) layer[at] = random(256)
    const blob = gzipSync(layer, { level: 1, memLevel: 1 })
    const { map } = indexed(blob, 2 * MIB)
    expect(map.toBytes().length / blob.length).toBeLessThanOrEqual(0.015)
    expect(map.starts.length).toBeGreaterThan(2)
    expectUnits(map, { blob, layer })
  })

  test('its checkpoints move apart to 8 times the distance asked for and no further', () => {
    const blob = gzipSync(repeatedNoise(8 * MIB), { memLevel: 1 }) // Windows of noise, and nothing new.
    const { map } = indexed(blob, MIB / 8)
    const lengths = Array.from(map.starts.subarray(1), (end, unit) => end - map.starts[unit]!)
    expect(Math.min(...lengths.slice(0, -1))).toBeGreaterThanOrEqual(MIB)
    expect(Math.max(...lengths)).toBeLessThan(1.1 * MIB)
  })

  test('refuses an index of another layer, before a byte is handed out', async () => {
    const [one, other] = [1, 2].map((seed) => gzipSync(layerSample(seeded(seed), 200_000)))
    const { map } = indexed(one!)
    expect(await failureOf(() => map.decode(0, other!))).toMatchObject({
      name: 'LayerError',
      code: 'DATA_LOSS',
      message: expect.stringMatching(
        /^gzip span 0 \(bytes 0 to 200000 of the layer\) has sha256 .*: the blob is damaged or the seek index is another layer's$/,
      ),
    })
  })

  test('refuses a blob range that is cut short, is longer, or expands too far', async () => {
    const blob = execFileSync('gzip', { input: layerSample(seeded(1), 900_000) })
    const { map } = indexed(blob, 50_000)
    expect(map.starts.length).toBeGreaterThan(3)
    for (const unit of [0, 1]) {
      const { start, end } = map.blobRange(unit)
      for (const wrong of [
        blob.subarray(start, end - 500),
        blob.subarray(start, start + 1),
        blob.subarray(start, start),
        blob.subarray(start, end + 5000),
        blob.subarray(start + 1, end),
      ]) {
        expect((await failureOf(() => map.decode(unit, wrong))).code).toBe('DATA_LOSS')
      }
    }
  })

  // Goal: no damage to an index or a blob yields a wrong byte. Method: change a byte anywhere, decode everything.
  test('with a damaged byte it is refused, fails to decode, or still decodes right', () => {
    const random = seeded(9)
    const layer = layerSample(random, 60_000)
    const cut = 35_000
    const blob = Buffer.concat([
      gzipSync(layer.subarray(0, cut), { memLevel: 1 }), // A block every 128 symbols.
      gzipMember(layer.subarray(cut), { name: 'a', level: 0 }),
    ])
    const { map } = indexed(blob, 1000)
    expect(map.starts.length).toBeGreaterThan(5)
    const bytes = map.toBytes()
    const outcomes = { refused: 0, undecodable: 0, right: 0 }
    for (let round = 0; round < 3000; round++) {
      const [damagedIndex, damagedBlob] = [Buffer.from(bytes), Buffer.from(blob)]
      // Windows are most of an index: half of its damage goes to the fields before them.
      const fieldBytes = HEADER_BYTES + (map.starts.length - 1) * RECORD_BYTES
      const [target, targetBytes] = [
        [damagedBlob, blob.length] as const,
        [damagedIndex, bytes.length] as const,
        [damagedIndex, fieldBytes] as const,
      ][round % 3]!
      target[random(targetBytes)]! ^= 1 + random(255)
      outcomes[outcomeOf({ index: damagedIndex, blob: damagedBlob, layer })]++
    }
    expect(outcomes.refused).toBeGreaterThan(50)
    expect(outcomes.undecodable).toBeGreaterThan(500)
    expect(outcomes.right).toBeGreaterThan(1) // A time in a header, say.
  })

  test('a block too long to be decoded alone cannot be indexed', async () => {
    // 270,000 matches of 258 bytes at distance 1, in one fixed block: 69.7 MB.
    const matches = 270_000
    const block = bitsToBytes(`1 10 00110000 ${'1100010100000'.repeat(matches)} 0000000`)
    const blob = gzipMember(Buffer.alloc(1 + matches * 258), { deflated: block })
    expect(await failureOf(() => indexed(blob))).toMatchObject({
      name: 'LayerError',
      code: 'RESOURCE_EXHAUSTED',
      message:
        'gzip blob cannot be indexed: span 0 makes bytes 0 to 69660001; it must be 1 to 67108864 of them',
    })
  })
})
