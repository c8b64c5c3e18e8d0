import { mkdirSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { attachLoop } from '../../../snapshotter/kernel/loop-device.ts'
import { LayerDevices } from '../../../snapshotter/layers/layer-devices.ts'
import { layerPlaces } from '../../../snapshotter/layers/layer-places.ts'
import { Scratch } from '../../support/scratch.ts'

const LAYERS = [1, 2, 3, 4, 5, 6]

test('many devices are turned at once, and one that cannot be holds up none of the others', async () => {
  await using scratch = Scratch.open('layer-devices')
  const places = layerPlaces(scratch.dir, join(scratch.dir, 'fuse'))
  mkdirSync(join(scratch.dir, 'fuse'))
  for (const layer of LAYERS) {
    mkdirSync(places.layerDir(layer), { recursive: true })
    for (const path of [places.dataPath(layer), places.fusePath(layer)]) {
      writeFileSync(path, Buffer.alloc(2048, layer))
    }
  }
  const identity = (layer: number) => ({ blobCid: `bafy${layer}`, format: 'tar', layerSize: 2048 })
  const devices = new LayerDevices({ root: scratch.dir, places }, identity)
  await using attached = new AsyncDisposableStack()
  for (const layer of LAYERS) {
    const tag = devices.tagOf(layer)
    attached.use(await attachLoop(places.fusePath(layer), { tag, direct: false }))
  }
  // The kernel takes no file of another size in its place.
  truncateSync(places.dataPath(2), 1024)
  const found = devices.find(LAYERS)
  expect([...found.values()].flat().map(({ state }) => state)).toEqual(LAYERS.map(() => 'fuse'))
  const turned = await Promise.allSettled(
    [...found].flatMap(([layer, its]) => its.map((each) => devices.turn(each, layer, 'plain'))),
  )
  const states = new Map([...devices.find(LAYERS)].map(([layer, its]) => [layer, its[0]?.state]))
  for (const [at, layer] of [...found.keys()].entries()) {
    expect([layer, turned[at]?.status]).toEqual([layer, layer === 2 ? 'rejected' : 'fulfilled'])
    expect([layer, states.get(layer)]).toEqual([layer, layer === 2 ? 'fuse' : 'plain'])
  }
})
