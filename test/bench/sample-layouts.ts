import { randomFillSync } from 'node:crypto'
import { closeSync, mkdirSync, openSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { type OciLayout, packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { makeTar } from '../support/make-tar.ts'
import { runCommand } from '../support/run-command.ts'
import { seeded } from '../support/seeded.ts'

const MiB = 1024 ** 2

/** Files of the image that is walked, and the directories that hold 14 each: 15,000 entries, a Debian with Python. */
const TREE_FILES = 14_000
const TREE_DIRECTORIES = 1_000

/** 512 MiB: half a second from this machine's disk, and 131,072 pages to choose from. */
const BIG_FILE_BYTES = 512 * MiB

/** Files of a small layer: an image of 20 has 4,000. */
const SMALL_LAYER_FILES = 200

/** An image of one layer, and where the same files lie on ext4. */
export type ReadSample = {
  readonly layout: OciLayout
  readonly dir: string
}

/** In an image made by `writeReadSample`: 15,000 small entries, and one large file that does not compress. */
export const TREE = 'tree'
export const BIG_FILE = 'big/file'

/** Makes the image that the mechanism is measured with, in `dir`. */
export async function writeReadSample(dir: string): Promise<ReadSample> {
  const files = join(dir, 'files')
  const random = seeded(15)
  for (let directory = 0; directory < TREE_DIRECTORIES; directory++) {
    const path = join(files, TREE, `d${directory}`)
    mkdirSync(path, { recursive: true })
    for (let file = 0; file < TREE_FILES / TREE_DIRECTORIES; file++) {
      writeFileSync(join(path, `f${file}`), Buffer.alloc(random(4096), `${directory} ${file} `))
    }
  }
  mkdirSync(join(files, 'big'))
  writeRandomFile(join(files, BIG_FILE))
  const tar = join(dir, 'layer.tar')
  await runCommand('tar', ['--create', '--file', tar, '--directory', files, '--sort=name', '.'])
  const layer = await packLayer(tar, 'none', join(dir, 'layers'))
  return { layout: writeOciLayout(join(dir, 'layout'), { layers: [layer] }), dir: files }
}

/** An image of many small layers of 200 files, unlike every image of another `seed`. */
export async function writeLayeredSample(
  dir: string,
  { layers: count, seed }: { layers: number; seed: number },
): Promise<OciLayout> {
  const layers = []
  for (let number = 0; number < count; number++) {
    const random = seeded(seed * 1000 + number)
    const folder = `usr/share/layer-${number}`
    const tar = makeTar(
      ...['usr/', 'usr/share/', `${folder}/`].map((name) => ({ name, typeflag: '5', mode: 0o755 })),
      ...Array.from({ length: SMALL_LAYER_FILES }, (_, file) => ({
        name: `${folder}/file-${file}`,
        content: `${seed} ${random(2 ** 31)} `.repeat(1 + random(200)),
      })),
    )
    layers.push(await packLayer(Readable.from([tar]), 'none', join(dir, 'layers')))
  }
  return writeOciLayout(join(dir, 'layout'), { layers })
}

/** The files of an image, unpacked one layer over the other. */
export async function unpack({ layers }: OciLayout, dir: string): Promise<void> {
  mkdirSync(dir)
  for (const { path } of layers) {
    await runCommand('tar', ['--extract', '--file', path, '--directory', dir])
  }
}

function writeRandomFile(path: string): void {
  const piece = Buffer.alloc(MiB)
  const file = openSync(path, 'w')
  for (let bytes = 0; bytes < BIG_FILE_BYTES; bytes += MiB) writeSync(file, randomFillSync(piece))
  closeSync(file)
}
