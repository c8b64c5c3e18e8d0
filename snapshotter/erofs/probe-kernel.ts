import {
  accessSync,
  closeSync,
  constants,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { fsopen } from '../kernel/libc.ts'
import type { DirNode } from '../toc/layer-tree.ts'
import { mountErofs, unmountErofs } from './mount-image.ts'
import { writeErofsImage } from './write-image.ts'

/** How this kernel mounts layers: EROFS straight from files (Linux 6.12), over loop devices, or not at all. */
export type KernelRung = 'erofs-file' | 'erofs-loop' | 'none'

export type KernelReport = {
  /** The best way that this kernel has. */
  readonly rung: KernelRung
  /** A sentence that says why it is this rung, with what the kernel answered on the higher ones. */
  readonly reason: string
}

const rungs: readonly Exclude<KernelRung, 'none'>[] = ['erofs-file', 'erofs-loop']

/**
 * Finds out what this kernel can do by doing it: mounts a small image with an extra device and reads through it. Version
 * numbers lie where distributions backport. Needs `folder` on the file system that metadata images will lie on, for not
 * every one can back an EROFS; leaves nothing there. Never rejects: what is missing becomes the reason.
 */
export async function probeKernel(
  folder: string,
  attempts: readonly Exclude<KernelRung, 'none'>[] = rungs,
): Promise<KernelReport> {
  const missing = missingPrerequisite()
  if (missing !== undefined) return { rung: 'none', reason: missing }
  const failures: string[] = []
  for (const rung of attempts) {
    try {
      await mountAndRead(folder, rung)
    } catch (error) {
      failures.push(`${rung}: ${error instanceof Error ? error.message : String(error)}`)
      continue
    }
    const before = failures.length === 0 ? '' : ` (${failures.join('; ')})`
    return { rung, reason: `a test image was mounted as ${rung} and read back${before}` }
  }
  return { rung: 'none', reason: `no test image could be mounted and read: ${failures.join('; ')}` }
}

function missingPrerequisite(): string | undefined {
  if (process.getuid?.() !== 0) {
    return `mounting needs root, this process runs as user ${process.getuid?.() ?? 'unknown'}`
  }
  try {
    accessSync('/dev/fuse', constants.R_OK | constants.W_OK)
  } catch (error) {
    return `/dev/fuse cannot be used: ${String(error)}`
  }
  for (const type of ['fuse', 'overlay']) {
    try {
      closeSync(fsopen(type)) // Loads the kernel module if there is one; /proc/filesystems would only list those loaded.
    } catch (error) {
      return `the kernel has no file system ${type}: ${String(error)}`
    }
  }
  return undefined
}

/** Two records of content behind one record of something else, in a file that reads as `content`. */
const content: Uint8Array = new Uint8Array(1024).map((_, index) => index * 7)
const CONTENT_AT = 512

/** Of the loop devices of the test image. */
const PROBE_TAG = 'ipdr-probe'

async function mountAndRead(parent: string, rung: Exclude<KernelRung, 'none'>): Promise<void> {
  using cleanup = new DisposableStack()
  const folder = mkdtempSync(join(parent, 'probe-'))
  cleanup.defer(() => rmSync(folder, { recursive: true }))
  const [imagePath, devicePath] = [join(folder, 'image'), join(folder, 'device')]
  const target = mkdtempSync(join(folder, 'mount-'))
  const bytes = CONTENT_AT + content.length
  const image = writeErofsImage(probeTree(), {
    devices: [{ tag: 'probe', bytes }],
    uuid: new Uint8Array(16),
  })
  writeFileSync(imagePath, image.bytes)
  writeFileSync(devicePath, Buffer.concat([new Uint8Array(CONTENT_AT), content]))
  await mountErofs({
    imagePath,
    devicePaths: [devicePath],
    target,
    readAheadKb: 128,
    ...(rung === 'erofs-loop' && { loopTags: { image: PROBE_TAG, devices: [PROBE_TAG] } }),
  })
  cleanup.defer(() => unmountErofs(target))
  const read = readFileSync(join(target, 'file'))
  if (!read.equals(content)) throw new Error('the mounted test image gave wrong bytes')
}

function probeTree(): DirNode {
  const attributes = { uid: 0, gid: 0, mtimeSec: 0, mtimeNsec: 0, xattrs: new Map() }
  const extents = [{ fileOffset: 0, layerOffset: CONTENT_AT, length: content.length }]
  return {
    kind: 'dir',
    mode: 0o755,
    ...attributes,
    opaque: false,
    implied: false,
    children: new Map([
      [
        'file',
        { kind: 'reg', mode: 0o644, ...attributes, size: content.length, layer: 0, extents },
      ],
    ]),
  }
}
