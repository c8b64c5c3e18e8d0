import { zstdCompressSync } from 'node:zlib'
import { describe, expect, test } from 'vitest'
import type { SeekIndex } from '../../../../snapshotter/toc/gzip/seek-index.ts'
import {
  HEADER_BYTES,
  parseSeekIndex,
  RECORD_BYTES,
  serialiseSeekIndex,
} from '../../../../snapshotter/toc/gzip/seek-index-format.ts'
import { failureOf } from '../../../support/failure-of.ts'

const MIB = 1024 * 1024
const index: SeekIndex = {
  blobSize: 3 * MIB,
  dataEnd: 3 * MIB - 512,
  layerSize: 10 * MIB,
  spans: [
    { outputOffset: 0, bitOffset: 0, window: undefined, sha256: new Uint8Array(32).fill(1) },
    {
      outputOffset: 4 * MIB,
      bitOffset: 8 * MIB + 3,
      window: new Uint8Array(zstdCompressSync('before')),
      sha256: new Uint8Array(32).fill(2),
    },
    { outputOffset: 9 * MIB, bitOffset: 16 * MIB, window: undefined, sha256: new Uint8Array(32) },
  ],
}
const [FIRST, SECOND, THIRD] = [0, 1, 2].map((span) => HEADER_BYTES + span * RECORD_BYTES) as [
  number,
  number,
  number,
]

describe('a seek index', () => {
  test('is the same after it was written and read', () => {
    expect(parseSeekIndex(serialiseSeekIndex(index))).toEqual(index)
    const empty: SeekIndex = { blobSize: 20, dataEnd: 20, layerSize: 0, spans: [] }
    expect(parseSeekIndex(serialiseSeekIndex(empty))).toEqual(empty)
  })

  const size = (at: number, value: number | bigint) => (view: DataView) => {
    view.setBigUint64(at, BigInt(value), true)
  }
  const refusals: [string, (view: DataView) => void, string][] = [
    ['another kind', (view) => view.setUint8(0, 2), 'its kind is 2'],
    ['reserved bytes in use', (view) => view.setUint8(3, 1), 'its reserved bytes are not zero'],
    [
      'more spans than it has room for',
      (view) => view.setUint32(4, 0xffffffff, true),
      'declares 4294967295 spans',
    ],
    ['fewer spans than bytes', (view) => view.setUint32(4, 1, true), 'bytes are left over'],
    ['an offset past 2^53', size(SECOND, 2n ** 60n), 'it has an offset or size of'],
    ['data that ends after the blob', size(16, 4 * MIB), 'its data ends after the blob'],
    ['a first span inside the layer', size(FIRST, 1), 'its first span is not the start'],
    ['a first span inside the blob', size(FIRST + 8, 80), 'its first span is not the start'],
    ['a member that starts inside a byte', size(THIRD + 8, 16 * MIB + 1), 'inside a byte'],
    ['spans that go backwards in the layer', size(SECOND, 10 * MIB), 'span 1 makes bytes 10485760'],
    ['an empty span', size(SECOND, 9 * MIB), 'span 1 makes bytes 9437184 to 9437184'],
    ['spans that go backwards in the blob', size(SECOND + 8, 17 * MIB), 'span 1 comes from bytes'],
    ['a last span past the data', size(THIRD + 8, 24 * MIB), 'span 2 comes from bytes'],
    ['a layer that ends before its last span', size(24, 9 * MIB), 'span 2 makes bytes'],
    ['a span too big to decode', size(24, 100 * MIB), 'span 2 makes bytes'],
    [
      'a span from too many bytes',
      (view) => {
        size(8, 500 * MIB)(view)
        size(16, 500 * MIB)(view)
      },
      'span 2 comes from bytes',
    ],
    [
      'a window too big to be one',
      (view) => view.setUint32(SECOND + 16, 40_000, true),
      'the window of span 1 has 40000 bytes',
    ],
    [
      'a window for the first span',
      (view) => {
        view.setUint32(FIRST + 16, view.getUint32(SECOND + 16, true), true)
        view.setUint32(SECOND + 16, 0, true)
        size(SECOND + 8, 8 * MIB)(view)
      },
      'its first span is not the start',
    ],
  ]
  test.each(refusals)('is refused with %s', async (_, change, message) => {
    const bytes = serialiseSeekIndex(index)
    change(new DataView(bytes.buffer))
    const failure = await failureOf(() => parseSeekIndex(bytes))
    expect(failure).toMatchObject({ name: 'LayerError', code: 'DATA_LOSS' })
    expect(failure.message).toContain(message)
  })

  test('is refused at every length but its own', async () => {
    const bytes = serialiseSeekIndex(index)
    for (let length = 0; length < bytes.length; length++) {
      expect((await failureOf(() => parseSeekIndex(bytes.subarray(0, length)))).code).toBe(
        'DATA_LOSS',
      )
    }
    const longer = Buffer.concat([bytes, new Uint8Array(1)])
    expect((await failureOf(() => parseSeekIndex(longer))).message).toContain(
      '1 bytes are left over',
    )
  })

  test('of a later version is refused with what to do', async () => {
    const bytes = serialiseSeekIndex(index)
    bytes[1] = 2
    expect(await failureOf(() => parseSeekIndex(bytes))).toMatchObject({
      code: 'UNIMPLEMENTED',
      message: 'gzip seek index has version 2, this agent reads version 1: index the layer again',
    })
  })
})
