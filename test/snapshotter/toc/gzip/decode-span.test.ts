import { deflateRawSync, zstdCompressSync } from 'node:zlib'
import { describe, expect, test } from 'vitest'
import { decodeSpan } from '../../../../snapshotter/toc/gzip/decode-span.ts'
import { type GzipCheckpoint, GzipStream } from '../../../../snapshotter/toc/gzip/gzip-stream.ts'
import { seeded } from '../../../support/seeded.ts'
import { gzipMember } from './gzip-blob.ts'
import { layerSample } from './layer-sample.ts'

describe('decodeSpan', () => {
  // A member's final block must stay its final one: else what follows is taken for more of the same member.
  test('reads from any block, at any bit, past the end of its member and through those after it', () => {
    const random = seeded(1)
    const contents = Array.from({ length: 40 }, () => layerSample(random, 1 + random(1500)))
    const layer = Buffer.concat(contents)
    const blob = Buffer.concat(
      contents.map((content, i) =>
        gzipMember(content, { deflated: deflateRawSync(content, { level: i % 10, memLevel: 1 }) }),
      ),
    )
    const checkpoints: GzipCheckpoint[] = []
    const stream = new GzipStream({
      outputBytesMax: 1e9,
      onCheckpoint: (checkpoint) =>
        checkpoints.push({
          ...checkpoint,
          window: checkpoint.window && Buffer.from(checkpoint.window),
        }),
    })
    for (const bytes of stream.push(blob)) expect(bytes.length).toBeGreaterThan(0)
    // The first block of a member refers to nothing: it is read from the start of the member.
    const places = checkpoints.filter(({ window }) => window?.length !== 0)
    for (const { bitOffset, outputOffset, window } of places) {
      const decoded = decodeSpan(blob.subarray(Math.floor(bitOffset / 8)), {
        bit: bitOffset % 8,
        window: window && zstdCompressSync(window),
        length: layer.length - outputOffset,
      })
      expect(layer.subarray(outputOffset).equals(decoded), `from bit ${bitOffset}`).toBe(true)
    }
    expect(new Set(places.map(({ bitOffset }) => bitOffset % 8)).size).toBe(8)
  })
})
