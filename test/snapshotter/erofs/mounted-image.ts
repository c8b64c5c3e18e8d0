import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { mountErofs, unmountErofs } from '../../../snapshotter/erofs/mount-image.ts'
import {
  type ErofsImage,
  filesToInline,
  writeErofsImage,
} from '../../../snapshotter/erofs/write-image.ts'
import { isMounted } from '../../../snapshotter/kernel/mountinfo.ts'
import type { DirNode, FileNode } from '../../../snapshotter/toc/layer-tree.ts'
import { fsckErofs } from '../../support/fsck-erofs.ts'

/** A layer file: its bytes, or a path of one that is too large for memory, with its length. */
export type TestLayer = Uint8Array | { readonly path: string; readonly bytes: number }

/** A folder that is gone, with every mount that was made in it, when the scope ends. */
export class Scratch implements Disposable {
  readonly path: string = mkdtempSync(join(tmpdir(), 'ipdr-erofs-'))
  readonly #targets: string[] = []
  #count = 0

  /** A new empty folder. */
  folder(): string {
    const path = join(this.path, `folder-${this.#count++}`)
    mkdirSync(path)
    return path
  }

  /** A new file. */
  file(bytes: Uint8Array): string {
    const path = join(this.path, `file-${this.#count++}`)
    writeFileSync(path, bytes)
    return path
  }

  /** Unmounts `target` at the end. */
  mounted(target: string): string {
    this.#targets.push(target)
    return target
  }

  [Symbol.dispose](): void {
    for (const target of this.#targets.toReversed()) if (isMounted(target)) unmountErofs(target)
    rmSync(this.path, { recursive: true })
  }
}

/** Writes the image of `root`, has fsck.erofs check it, and mounts it in `scratch`. */
export async function mountTree(
  scratch: Scratch,
  root: DirNode,
  layers: readonly TestLayer[] = [],
  { fsckContent = true }: { fsckContent?: boolean } = {},
): Promise<{ target: string; image: ErofsImage; imagePath: string; devicePaths: string[] }> {
  const devicePaths = layers.map((layer) =>
    layer instanceof Uint8Array ? scratch.file(layer) : layer.path,
  )
  const image = imageOf(root, layers)
  const imagePath = scratch.file(image.bytes)
  const checked = fsckErofs(imagePath, fsckContent ? devicePaths : [])
  if (checked.status !== 0) throw new Error(`fsck.erofs: ${checked.output}`)
  const target = scratch.mounted(scratch.folder())
  await mountErofs({ imagePath, devicePaths, target, readAheadKb: 128 })
  return { target, image, imagePath, devicePaths }
}

/** The image of `root` with the given layer files; those in memory serve the content to inline. */
export function imageOf(root: DirNode, layers: readonly TestLayer[] = []): ErofsImage {
  const inlined = new Map(filesToInline(root).map((file) => [file, contentOf(file, layers)]))
  return writeErofsImage(root, {
    devices: layers.map((layer, position) => ({
      tag: `layer-${position}`,
      bytes: layer instanceof Uint8Array ? layer.length : layer.bytes,
    })),
    uuid: Buffer.from('0123456789abcdef'),
    inline: (file) => inlined.get(file) ?? new Uint8Array(0),
  })
}

/** What a file must read as, put together byte by byte from its extents. */
export function contentOf(file: FileNode, layers: readonly TestLayer[]): Uint8Array {
  const layer = layers[file.layer]
  const content = new Uint8Array(file.size)
  for (const { fileOffset, layerOffset, length } of file.extents) {
    if (!(layer instanceof Uint8Array)) throw new Error('the layer is not in memory')
    content.set(layer.subarray(layerOffset, layerOffset + length), fileOffset)
  }
  return content
}
