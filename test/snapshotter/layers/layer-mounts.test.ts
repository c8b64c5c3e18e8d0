import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { listMounts } from '../../../snapshotter/kernel/mountinfo.ts'
import { LayerDevices } from '../../../snapshotter/layers/layer-devices.ts'
import { LayerMounts } from '../../../snapshotter/layers/layer-mounts.ts'
import { layerPlaces } from '../../../snapshotter/layers/layer-places.ts'
import { TableThread } from '../../../snapshotter/layers/table-thread.ts'
import { failureOf } from '../../support/failure-of.ts'
import { listeningLog } from '../../support/fuse-mount.ts'
import { Scratch } from '../../support/scratch.ts'
import { imageOf } from '../erofs/mounted-image.ts'
import { directory, file } from '../erofs/tree-model.ts'

const { signal } = new AbortController()
const content = new Uint8Array(1024).fill(7)
const tree = directory({
  f: file({ size: 1024, extents: [{ fileOffset: 0, layerOffset: 0, length: 1024 }] }),
})
const traits = [{ id: 1, inheritsDirs: false, hidesBelow: false }]

/** Mounts of layer 1, over loop devices or from files; what is read of it comes from a plain file where the FUSE server would be. */
function openMounts(fuseMountsFrom: 'files' | 'loops'): { mounts: LayerMounts; dir: string } {
  const scratch = Scratch.open('layer-mounts')
  const places = layerPlaces(scratch.dir, join(scratch.dir, 'fuse'))
  for (const path of [places.layerDir(1), join(scratch.dir, 'fuse')]) {
    mkdirSync(path, { recursive: true })
  }
  writeFileSync(places.fusePath(1), content)
  writeFileSync(places.metadataPath(1), imageOf(tree, [content]).bytes)
  const tables = new TableThread()
  onTestFinished(async () => {
    await tables[Symbol.asyncDispose]()
    await scratch[Symbol.asyncDispose]()
  })
  const identity = { blobCid: 'bafy', format: 'tar', layerSize: content.length }
  const mounts = new LayerMounts(
    { places, fuseMountsFrom, plainMountsFrom: 'files', mergeLayersMin: 24, readAheadKb: 128 },
    {
      // Nothing of the layer is known to be here, so that it is mounted through FUSE.
      store: { get: () => undefined, layers: () => [].values(), read: () => Promise.reject() },
      log: listeningLog(),
      tables,
      devices: new LayerDevices({ root: scratch.dir, places }, () => identity),
      isVerified: () => false,
      signal,
    },
  )
  return { mounts, dir: scratch.dir }
}

test.each(['files', 'loops'] as const)(
  'ten starts at once mount a layer once (from %s)',
  async (from) => {
    const { mounts, dir } = openMounts(from)
    const dirs = await Promise.all(
      Array.from({ length: 10 }, () => mounts.lowerDirs(traits, signal)),
    )
    expect(new Set(dirs.flat()).size).toBe(1)
    expect(listMounts(dir)).toHaveLength(1)
    expect(readFileSync(join(dirs[0]?.[0] ?? '', 'f'))).toEqual(Buffer.from(content))
  },
)

test.each(['files', 'loops'] as const)(
  'a layer that is taken down while it is mounted is not mounted, and whoever wanted it is told to try again (from %s)',
  async (from) => {
    const { mounts, dir } = openMounts(from)
    const mounting = failureOf(() => mounts.lowerDirs(traits, signal))
    // All that is done at once: the kernel is asked for the rest now.
    for (let step = 0; step < 20; step++) await Promise.resolve()
    mounts.release(1)
    expect(await mounting).toMatchObject({ code: 'ABORTED' })
    expect(listMounts(dir)).toEqual([])
    expect(mounts.list()).toEqual([])
    await mounts.lowerDirs(traits, signal)
    expect(listMounts(dir)).toHaveLength(1)
  },
)
