import { closeSync, openSync, readdirSync, readSync, writeFileSync } from 'node:fs'
import { basename } from 'node:path'
import { KernelError } from '../errors.ts'
import { MNT_DETACH, UMOUNT_NOFOLLOW, umount } from '../kernel/libc.ts'
import { attachLoop } from '../kernel/loop-device.ts'
import { mountFileSystem } from '../kernel/mount-file-system.ts'
import {
  SUPERBLOCK_BYTES,
  SUPERBLOCK_DEVICES_AT,
  SUPERBLOCK_MAGIC,
  SUPERBLOCK_OFFSET,
} from './format.ts'

export type ErofsMount = {
  /** The image of `writeErofsImage`, on a file system with a page cache of its own: ext4, xfs, btrfs; not tmpfs. */
  readonly imagePath: string
  /** The layer files in the order of the image's devices; files of a FUSE file system will do. */
  readonly devicePaths: readonly string[]
  /** An existing directory. */
  readonly target: string
  /** How far the kernel reads ahead in a file, in KiB. */
  readonly readAheadKb: number
  /**
   * Where it is to go over loop devices (Linux 5.16, and 6.4 for our blocks): what each of them is found again by, see `attachLoop`.
   * Then each file must have whole sectors. Without: straight from the files (Linux 6.12).
   */
  readonly loopTags?: { readonly image: string; readonly devices: readonly string[] }
}

/** Block device information of the kernel: one folder per mounted file system that reads ahead. */
const BDI_FOLDER = '/sys/class/bdi'

/**
 * Mounts an image read-only. Rejects with KernelError and leaves nothing mounted. A FUSE server behind the devices must not need this
 * thread to answer: after a failure it is what waits for them.
 */
export async function mountErofs(request: ErofsMount): Promise<void> {
  checkDeviceCount(request.imagePath, request.devicePaths.length)
  if (request.loopTags === undefined) await mountFiles(request)
  else await mountLoops(request, request.loopTags)
}

async function mountLoops(
  { imagePath, devicePaths, target, readAheadKb }: ErofsMount,
  tags: NonNullable<ErofsMount['loopTags']>,
): Promise<void> {
  // Closed at the end: the mounted file system has them open then.
  using loops = new DisposableStack()
  // Around the page cache of the file: the device has one of its own.
  const attach = async (path: string, tag: string): Promise<string> =>
    loops.use(await attachLoop(path, { tag, direct: true })).path
  const source = await attach(imagePath, tags.image)
  const devices: string[] = []
  for (const [index, path] of devicePaths.entries())
    devices.push(await attach(path, tags.devices[index] ?? ''))
  // Of the first device: that of the file system is its.
  writeFileSync(`/sys/block/${basename(source)}/queue/read_ahead_kb`, String(readAheadKb))
  await mountFileSystem({
    type: 'erofs',
    target,
    options: [['source', source], ...devices.map((path) => ['device', path] as const), ['ro']],
    readOnly: true,
  })
}

async function mountFiles({
  imagePath,
  devicePaths,
  target,
  readAheadKb,
}: ErofsMount): Promise<void> {
  const before = new Set(erofsBdis())
  await mountFileSystem({
    type: 'erofs',
    target,
    options: [
      ['source', imagePath],
      ...devicePaths.map((path) => ['device', path] as const),
      ['ro'],
    ],
    readOnly: true,
  })
  // No system call leads from a mount to its bdi, so those that have appeared are taken. If another process mounted an
  // EROFS in between, that one reads ahead as far too: harmless.
  try {
    for (const bdi of erofsBdis()) {
      if (!before.has(bdi)) writeFileSync(`${BDI_FOLDER}/${bdi}/read_ahead_kb`, String(readAheadKb))
    }
  } catch (error) {
    unmountErofs(target)
    throw new KernelError(
      'INTERNAL',
      `read-ahead of the EROFS at ${target} could not be set to ${readAheadKb} KiB: ${String(error)}`,
      { target, readAheadKb },
      error,
    )
  }
}

/**
 * Takes the mount at `target` out of the tree. Detached, because a container may still read it, also from a mount
 * namespace that we do not see: the name goes at once, the file system and its devices are closed by their last user.
 * Throws KernelError INVALID_ARGUMENT if nothing is mounted there.
 */
export function unmountErofs(target: string): void {
  umount(target, MNT_DETACH | UMOUNT_NOFOLLOW)
}

/** With a device left out the kernel mounts all the same, and every read of that layer gives EIO. */
function checkDeviceCount(imagePath: string, given: number): void {
  const superblock = readSuperblock(imagePath)
  if (superblock.readUInt32LE(0) !== SUPERBLOCK_MAGIC) {
    throw new KernelError('INVALID_ARGUMENT', `${imagePath} is not an EROFS image`, { imagePath })
  }
  const needed = superblock.readUInt16LE(SUPERBLOCK_DEVICES_AT)
  if (needed !== given) {
    throw new KernelError(
      'INVALID_ARGUMENT',
      `${imagePath} takes its content from ${needed} devices, ${given} were given`,
      { imagePath, needed, given },
    )
  }
}

function readSuperblock(imagePath: string): Buffer {
  const superblock = Buffer.alloc(SUPERBLOCK_BYTES)
  try {
    const image = openSync(imagePath, 'r')
    try {
      readSync(image, superblock, 0, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET)
    } finally {
      closeSync(image)
    }
  } catch (error) {
    throw new KernelError(
      'NOT_FOUND',
      `EROFS image ${imagePath} cannot be read: ${String(error)}`,
      { imagePath },
      error,
    )
  }
  return superblock
}

function erofsBdis(): string[] {
  return readdirSync(BDI_FOLDER).filter((name) => name.startsWith('erofs-'))
}
