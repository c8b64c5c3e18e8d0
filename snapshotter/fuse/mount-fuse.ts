import { closeSync, openSync } from 'node:fs'
import { KernelError } from '../errors.ts'
import { MS_NODEV, MS_NOSUID, MS_RDONLY, mount } from '../kernel/libc.ts'

const MS_NOEXEC = 8 // linux/mount.h

/**
 * Opens /dev/fuse, mounts the file system that will be served on it at the directory `target`, and returns the
 * descriptor. Nobody need serve yet: what is asked meanwhile waits. Only root may look inside; the kernel checks that.
 * `noexec` does not reach the EROFS mounts on top, which read these files but carry their own flags.
 * Throws KernelError.
 */
export function mountFuse(target: string): number {
  const deviceFd = openDevice()
  try {
    mount({
      source: 'ipdr-layers',
      target,
      type: 'fuse',
      flags: MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
      // allow_other: page faults come from the containers' users. default_permissions: modes are root's alone.
      options: `fd=${deviceFd},rootmode=40500,user_id=0,group_id=0,allow_other,default_permissions`,
    })
  } catch (error) {
    closeSync(deviceFd)
    throw error
  }
  return deviceFd
}

function openDevice(): number {
  try {
    return openSync('/dev/fuse', 'r+')
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    const missing = code === 'ENOENT' || code === 'ENODEV' || code === 'ENXIO'
    throw new KernelError(
      missing ? 'UNIMPLEMENTED' : 'PERMISSION_DENIED',
      missing
        ? 'this kernel has no /dev/fuse: load the module fuse, or give the device to the container of the agent'
        : `/dev/fuse cannot be opened (${code}): the agent has to be root with the device allowed`,
      { errno: code },
      error,
    )
  }
}
