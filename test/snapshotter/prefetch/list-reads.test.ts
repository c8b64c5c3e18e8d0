import { expect, test } from 'vitest'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { listReads } from '../../../snapshotter/prefetch/list-reads.ts'
import type { ListedRange } from '../../../snapshotter/prefetch/prefetch-list.ts'

const [base, app, rebuilt] = ['base', 'app', 'rebuilt'].map((name) => digestOf(Buffer.from(name)))
if (base === undefined || app === undefined || rebuilt === undefined) throw new Error('no digests')

function range(layer: number, path: string, fileOffset: number): ListedRange {
  return { layer, path, fileSize: 9000, fileOffset, layerOffset: 512, length: 10 }
}

const list = {
  layers: [base, app].map((diffId) => ({ diffId, layerSize: 20_000 })),
  ranges: [range(0, 'lib', 0), range(1, 'bin', 0), range(0, 'lib', 4096), range(1, 'lib', 8000)],
}

test('of a layer that the list knows, what it says of that layer, in its order', () => {
  const reads = listReads(list, base, [base, app])
  expect(reads({ path: 'lib', size: 9000 })).toEqual([
    { start: 0, end: 10 },
    { start: 4096, end: 4106 },
  ])
  expect(reads({ path: 'bin', size: 9000 })).toEqual([])
})

test('of one that was built anew, what it says of layers that are gone, for files of the same size', () => {
  const reads = listReads(list, rebuilt, [base, rebuilt])
  expect(reads({ path: 'bin', size: 9000 })).toEqual([{ start: 0, end: 10 }])
  expect(reads({ path: 'bin', size: 9001 })).toEqual([])
  expect(reads({ path: 'lib', size: 9000 })).toEqual([{ start: 8000, end: 8010 }])
})
