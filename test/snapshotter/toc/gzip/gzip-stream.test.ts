import { execFileSync } from 'node:child_process'
import { gunzipSync, gzipSync } from 'node:zlib'
import { describe, expect, test } from 'vitest'
import {
  type GzipCheckpoint,
  type GzipEnd,
  GzipStream,
} from '../../../../snapshotter/toc/gzip/gzip-stream.ts'
import { HEADER_BYTES_MAX } from '../../../../snapshotter/toc/gzip/member-header.ts'
import { failureOf } from '../../../support/failure-of.ts'
import { seeded } from '../../../support/seeded.ts'
import { gzipMember } from './gzip-blob.ts'
import { inPieces, layerSample } from './layer-sample.ts'

function gunzip(
  pieces: Iterable<Uint8Array>,
  outputBytesMax = 1e9,
): { output: Buffer; checkpoints: GzipCheckpoint[]; end: GzipEnd } {
  const checkpoints: GzipCheckpoint[] = []
  const output: Buffer[] = []
  const stream = new GzipStream({
    outputBytesMax,
    onCheckpoint: (checkpoint) => checkpoints.push(checkpoint),
  })
  for (const piece of pieces) {
    for (const bytes of stream.push(piece)) output.push(Buffer.from(bytes))
  }
  return { output: Buffer.concat(output), checkpoints, end: stream.finish() }
}

describe('GzipStream', { timeout: 60_000 }, () => {
  test.each(['-1', '-6', '-9'])('reads what gzip %s writes', (level) => {
    const bytes = layerSample(seeded(1), 2_000_000)
    const blob = execFileSync('gzip', [level], { input: bytes })
    const { output, end } = gunzip([blob])
    expect(output.equals(bytes)).toBe(true)
    expect(end).toEqual({
      blobSize: blob.length,
      dataEnd: blob.length,
      outputSize: bytes.length,
    })
  })

  test('reads members one after the other, of all header fields, cut anywhere', () => {
    const random = seeded(2)
    const contents = Array.from({ length: 64 }, () => layerSample(random, random(3000)))
    const blob = Buffer.concat(
      contents.map((content, i) =>
        gzipMember(content, {
          level: random(10),
          hasHeaderChecksum: (i & 1) !== 0,
          ...((i & 2) !== 0 && { extra: layerSample(random, random(300)) }),
          ...((i & 4) !== 0 && { name: `layer-${i}.tar` }),
          ...((i & 8) !== 0 && { comment: 'é' }),
        }),
      ),
    )
    expect(gunzipSync(blob).equals(Buffer.concat(contents))).toBe(true)
    for (const max of [1, 7, 1000, 1_000_000]) {
      const { output, checkpoints } = gunzip(inPieces(blob, { random, max }))
      expect(output.equals(Buffer.concat(contents)), `pieces up to ${max}`).toBe(true)
      expect(checkpoints.filter(({ window }) => window === undefined).length).toBe(64)
    }
  })

  test('names each start of a member, with what is before it', () => {
    const members = ['one', '', 'three'].map((text) => gzipMember(Buffer.from(text)))
    const { checkpoints } = gunzip([Buffer.concat(members)])
    const starts = checkpoints.filter(({ window }) => window === undefined)
    expect(starts.map(({ bitOffset, outputOffset }) => [bitOffset / 8, outputOffset])).toEqual([
      [0, 0],
      [members[0]!.length, 3],
      [members[0]!.length + members[1]!.length, 3],
    ])
  })

  test('tolerates zeros after the last member and nothing else', async () => {
    const member = gzipSync('layer')
    const { output, end } = gunzip([member, new Uint8Array(5000)])
    expect(output.toString()).toBe('layer')
    expect(end).toEqual({
      blobSize: member.length + 5000,
      dataEnd: member.length,
      outputSize: 5,
    })
    const padded = Buffer.concat([member, Buffer.from([0, 0, 1])])
    expect((await failureOf(() => gunzip([padded]))).message).toBe(
      `gzip member at byte 0 of the blob is corrupt: byte ${member.length + 2} follows the last member and its padding, but is not zero`,
    )
    const garbage = Buffer.concat([member, Buffer.from('garbage')])
    expect((await failureOf(() => gunzip([garbage]))).message).toBe(
      `no gzip member at byte ${member.length} of the blob: it does not begin with 1f 8b`,
    )
  })

  test('refuses a blob that is cut short, at every byte', async () => {
    const blob = gzipMember(layerSample(seeded(3), 2000), {
      extra: new Uint8Array(20),
      name: 'layer.tar',
      hasHeaderChecksum: true,
    })
    for (let length = 0; length < blob.length; length++) {
      const failure = await failureOf(() => gunzip([blob.subarray(0, length)]))
      expect(failure, `${length} bytes`).toMatchObject({ name: 'LayerError', code: 'DATA_LOSS' })
      expect(failure.message).toContain(`gzip blob is cut short: it ends after ${length} bytes`)
    }
  })

  test('a damaged byte is found, or changes no byte of the output', () => {
    const random = seeded(4)
    const bytes = layerSample(random, 3000)
    const blob = Buffer.concat([
      gzipMember(bytes.subarray(0, 1500)),
      gzipSync(bytes.subarray(1500)),
    ])
    let found = 0
    for (let round = 0; round < 3000; round++) {
      const damaged = Buffer.from(blob)
      damaged[random(blob.length)]! ^= 1 + random(255)
      let output: Buffer | undefined
      try {
        output = gunzip([damaged]).output
      } catch {
        found++
      }
      expect(output?.equals(bytes) ?? true, `round ${round}`).toBe(true)
    }
    expect(found).toBeGreaterThan(2900)
  })

  test('stops a decompression bomb at the limit', async () => {
    const bomb = gzipSync(Buffer.alloc(30_000_000))
    expect(gunzip([bomb], 30_000_000).end.outputSize).toBe(30_000_000)
    let total = 0
    const stream = new GzipStream({ outputBytesMax: 1_000_000, onCheckpoint: () => {} })
    const failure = await failureOf(() => {
      for (const bytes of stream.push(bomb)) total += bytes.length
    })
    expect(failure).toMatchObject({
      code: 'RESOURCE_EXHAUSTED',
      message: 'gzip blob decompresses to more than the 1000000 bytes allowed, at byte 10 of it',
    })
    expect(total).toBeLessThanOrEqual(1_000_000)
  })

  const corrupt: [string, (blob: Buffer) => void, string][] = [
    ['another magic', (blob) => (blob[1] = 0x8c), 'it does not begin with 1f 8b'],
    ['another method', (blob) => (blob[2] = 7), 'compression method 7 is not deflate'],
    ['reserved flags', (blob) => (blob[3]! |= 0x40), 'reserved flags are set (0x4a)'],
    ['a wrong header checksum', (blob) => blob[4]!++, 'the checksum of its header differs'],
    ['a wrong CRC', (blob) => blob[blob.length - 8]!++, 'its CRC-32 differs'],
    ['a wrong size', (blob) => blob[blob.length - 4]!++, 'it says 6 bytes and has 5'],
  ]
  test.each(corrupt)('refuses %s', async (_, damage, message) => {
    const blob = gzipMember(Buffer.from('layer'), { name: 'a', hasHeaderChecksum: true })
    expect(gunzip([blob]).output.toString()).toBe('layer')
    damage(blob)
    const failure = await failureOf(() => gunzip([blob]))
    expect(failure.code).toBe('DATA_LOSS')
    expect(failure.message).toContain(message)
  })

  test('refuses a header that does not end', async () => {
    const blob = gzipMember(Buffer.from('layer'), { name: 'n'.repeat(HEADER_BYTES_MAX) })
    expect(await failureOf(() => gunzip([blob]))).toMatchObject({
      code: 'RESOURCE_EXHAUSTED',
      message: 'gzip member at byte 0 has a header of more than 131072 bytes',
    })
  })
})
