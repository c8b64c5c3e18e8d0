import { open, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { LayerFile } from '../../snapshotter/blobs/layer-file.ts'
import { unitCount, unitRange } from '../../snapshotter/blobs/shared-units.ts'
import { readLayerMap } from '../../snapshotter/layers/read-layer-map.ts'
import { listeningLog } from './fuse-mount.ts'

/** The units of a layer, and which of them its directory calls present. Of a node that runs, what it had called so when it last did. */
export async function unitsOnDisk(dir: string): Promise<{
  readonly present: number[]
  readonly missing: number[]
  readonly starts: Float64Array
  /** As `LayerFile.wasMounted`. */
  readonly wasMounted: boolean
}> {
  const map = readLayerMap(await readFile(join(dir, 'map')))
  await using file = await LayerFile.open(dir, map, { log: listeningLog() })
  const missing = file.missingUnits()
  const units = [...Array(unitCount(map.starts)).keys()]
  const present = units.filter((unit) => file.has(unit))
  return { missing, present, starts: map.starts, wasMounted: file.wasMounted }
}

/**
 * Turns bits at random places of `count` units, or as many as are there, that a layer's directory calls present, as a disk
 * would, of which nobody is told. Resolves to the units.
 */
export async function damageUnits(
  dir: string,
  random: (max: number) => number,
  count: number,
): Promise<number[]> {
  const { present, starts } = await unitsOnDisk(dir)
  const damaged: number[] = []
  await using data = await open(join(dir, 'data'), 'r+')
  while (damaged.length < count && present.length > 0) {
    const [unit = 0] = present.splice(random(present.length), 1)
    const { start, end } = unitRange({ starts }, unit)
    const at = start + random(end - start)
    const byte = Buffer.alloc(1)
    await data.read(byte, 0, 1, at)
    byte[0] = (byte[0] ?? 0) ^ (1 << random(8))
    await data.write(byte, 0, 1, at)
    damaged.push(unit)
  }
  return damaged
}
