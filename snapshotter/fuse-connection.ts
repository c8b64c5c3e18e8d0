import { closeSync, fstatSync } from 'node:fs'
import { KernelError } from './errors.ts'
import { mountFuse } from './fuse/mount-fuse.ts'
import {
  isInError,
  MNT_DETACH,
  pidfdGetfd,
  pidfdOpen,
  UMOUNT_NOFOLLOW,
  umount,
} from './kernel/libc.ts'
import { isMounted, listMounts } from './kernel/mountinfo.ts'

/** The device number of /dev/fuse, 10:229 in Linux's admin-guide/devices.txt, as stat(2) has it. */
const FUSE_DEVICE = (10 << 8) | 229

/** Opens /dev/fuse and mounts the flat file system of layers at `target`. Returns the descriptor. Throws KernelError. */
export function mountLayerFiles(target: string): number {
  return mountFuse(target)
}

/**
 * A copy of the FUSE descriptor that process `pid` holds, if `target` is still mounted and the connection lives; undefined if the
 * process, the mount or the connection is gone. Throws KernelError if the kernel refuses for another reason.
 */
export function adoptLayerFiles(held: {
  pid: number
  fd: number
  target: string
}): number | undefined {
  if (!isMounted(held.target)) return undefined
  const process = pidfdOpen(held.pid)
  try {
    const fd = pidfdGetfd(process, held.fd)
    if (isLiveConnection(fd)) return fd
    closeSync(fd)
    return undefined
  } finally {
    closeSync(process)
  }
}

/**
 * Which file system is mounted at `target`, as `0:57`; undefined if none is. The kernel gives the number to another one only once the
 * connection of this one has ended.
 */
export function layerFilesDevice(target: string): string | undefined {
  return listMounts(target).findLast((mount) => mount.target === target)?.device
}

/** Whether descriptor `fd` is open, of /dev/fuse, and of a connection that was neither aborted nor unmounted. */
export function isLiveConnection(fd: number): boolean {
  return isFuseDevice(fd) && !isInError(fd)
}

/** Whether descriptor `fd` is open, and of /dev/fuse. */
export function isFuseDevice(fd: number): boolean {
  try {
    const { rdev } = fstatSync(fd)
    return rdev === FUSE_DEVICE
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EBADF') return false
    throw error
  }
}

/**
 * Takes mounts at or below these directories out of the tree, deepest first; who still uses one keeps it. `all`, or but those over
 * loop devices, which can be given another FUSE connection. Returns where they were.
 */
export function detachMountsBelow(
  directories: readonly string[],
  which: 'all' | 'unmendable',
): string[] {
  const targets = directories
    .flatMap((directory) => listMounts(directory))
    .filter(({ source }) => which === 'all' || !source.startsWith('/dev/loop'))
    .map(({ target }) => target)
    .toReversed()
  for (const target of targets) umount(target, MNT_DETACH | UMOUNT_NOFOLLOW)
  return targets
}

/**
 * Unmounts the flat file system of layers at `target`, unless the kernel still reads it for anybody: an EROFS mount
 * holds the files of its devices open for as long as a container, or a mount made by hand, stands on it, also after it was
 * taken out of the tree. False: it is still read and stays mounted. Throws KernelError if the kernel refuses for another reason.
 */
export function unmountLayerFiles(target: string): boolean {
  if (!isMounted(target)) return true
  try {
    umount(target, UMOUNT_NOFOLLOW)
    return true
  } catch (error) {
    if (error instanceof KernelError && error.facts['errno'] === 'EBUSY') return false
    throw error
  }
}
