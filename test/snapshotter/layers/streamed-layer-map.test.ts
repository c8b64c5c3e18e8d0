import { expect, test } from 'vitest'
import { readLayerMap } from '../../../snapshotter/layers/read-layer-map.ts'
import { StreamedLayerMap } from '../../../snapshotter/layers/streamed-layer-map.ts'
import { failureOf } from '../../support/failure-of.ts'

test('a map is read back as it was written', () => {
  const bytes = new StreamedLayerMap({ layerSize: 9_000_000, blobSize: 2_000_000 }).toBytes()
  const map = readLayerMap(bytes)
  expect(map).toMatchObject({ layerSize: 9_000_000, blobSize: 2_000_000 })
  expect([...map.starts]).toEqual([0, 4_194_304, 8_388_608, 9_000_000])
})

test.each([-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53, 2 ** 41])(
  'one of a layer of %d bytes is damaged, whatever room it would take',
  async (size) => {
    const bytes = Buffer.from(new StreamedLayerMap({ layerSize: 1, blobSize: 1 }).toBytes())
    bytes.writeDoubleLE(size, 1)
    expect(await failureOf(() => readLayerMap(bytes))).toMatchObject({ code: 'DATA_LOSS' })
  },
)
