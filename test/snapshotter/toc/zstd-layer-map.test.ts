import zlib from 'node:zlib'
import { expect, test } from 'vitest'
import { LayerError } from '../../../snapshotter/errors.ts'
import { readLayerMap } from '../../../snapshotter/layers/read-layer-map.ts'
import { TarLayerMap } from '../../../snapshotter/toc/tar-layer-map.ts'
import { skippableFrame } from '../../../snapshotter/toc/zstd-frames.ts'
import { ZstdLayerMap } from '../../../snapshotter/toc/zstd-layer-map.ts'

const contents = [['header', 'first file'], ['second'], ['third', '', 'and more']]
const unitFrames = contents.map((frames) =>
  Buffer.concat(frames.map((frame) => zlib.zstdCompressSync(Buffer.from(frame)))),
)
const blob = Buffer.concat([...unitFrames, skippableFrame(Buffer.from('index'))])
const units = unitFrames.map((frames, unit) => ({
  blobBytes: frames.length,
  layerBytes: (contents[unit] ?? []).join('').length,
}))
const map = new ZstdLayerMap(units, blob.length)

function unitBytes(unit: number): Buffer {
  const { start, end } = map.blobRange(unit)
  return blob.subarray(start, end)
}

test('a unit decodes to its part of the layer, from all of its frames', async () => {
  expect([...map.starts]).toEqual([0, 16, 22, 35])
  expect(map).toMatchObject({ layerSize: 35, blobSize: blob.length })
  for (const [unit, frames] of contents.entries()) {
    expect(Buffer.from(await map.decode(unit, unitBytes(unit))).toString()).toBe(frames.join(''))
  }
})

test('bytes that do not make the unit are data loss', async () => {
  const damaged = Buffer.from(unitBytes(0))
  // The type of the first block becomes the reserved one; a changed literal would decode, and be caught by its CID.
  damaged[6] = 0xff
  for (const bytes of [damaged, unitBytes(0).subarray(1), unitBytes(1), Buffer.alloc(0)]) {
    await expect(map.decode(0, bytes)).rejects.toMatchObject({ code: 'DATA_LOSS' })
  }
  const lying = new ZstdLayerMap([{ blobBytes: unitBytes(0).length, layerBytes: 17 }], 999)
  await expect(lying.decode(0, unitBytes(0))).rejects.toThrow(/make 16 bytes in place of 17/)
})

test('a frame that declares a bomb never decodes beyond the unit', async () => {
  const bomb = zlib.zstdCompressSync(Buffer.alloc(64 << 20))
  const small = new ZstdLayerMap([{ blobBytes: bomb.length, layerBytes: 1000 }], bomb.length)
  await expect(small.decode(0, bomb)).rejects.toThrow(/do not decode to 1000 bytes/)
})

test('maps survive the disk, each kind by its first byte', () => {
  const tar = new TarLayerMap([262_144, 524_288, 600_000])
  for (const written of [map, tar, new TarLayerMap([]), new ZstdLayerMap([], 12)]) {
    const read = readLayerMap(written.toBytes())
    expect(read).toBeInstanceOf(written.constructor)
    expect([...read.starts]).toEqual([...written.starts])
    expect(read).toMatchObject({ layerSize: written.layerSize, blobSize: written.blobSize })
    for (let unit = 0; unit + 1 < written.starts.length; unit++) {
      expect(read.blobRange(unit)).toEqual(written.blobRange(unit))
    }
  }
})

test('damaged maps are refused', () => {
  for (const written of [map.toBytes(), new TarLayerMap([5, 9]).toBytes()]) {
    for (let bytes = 0; bytes < written.length; bytes++) {
      expect(() => readLayerMap(written.subarray(0, bytes)), `${bytes} bytes`).toThrow(LayerError)
    }
    expect(() => readLayerMap(Buffer.concat([written, Buffer.alloc(1)]))).toThrow(/left over/)
  }
  // A count of 2^40 units in three bytes must not be believed.
  expect(() => readLayerMap(Buffer.from('020a808080808020', 'hex'))).toThrow(/counts|ends/)
  expect(() => new ZstdLayerMap(units, 10)).toThrow(/of a blob of 10/)
  expect(() => new ZstdLayerMap([{ blobBytes: 0, layerBytes: 5 }], 10)).toThrow(
    /unit 0 has 0 bytes/,
  )
  expect(() => new TarLayerMap([5, 5])).toThrow(/a leaf ends at byte 5, the one before it at 5/)
})

test('a tar unit is its own bytes, of the right length', () => {
  const tar = new TarLayerMap([3, 8])
  const bytes = Buffer.from('12345')
  expect(tar.decode(1, bytes)).toBe(bytes)
  expect(() => tar.decode(1, bytes.subarray(1))).toThrow(/unit 1 of the layer.*got 4 bytes/)
  expect(() => tar.blobRange(2)).toThrow(RangeError)
})
