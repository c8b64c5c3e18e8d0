import { join } from 'node:path'

const UNPACKED = join(import.meta.dirname, '../../build/debian')

/** PATH on which Debian's containerd, its shims, ctr, runc and docker-registry come first; see install/unpack.sh. */
export const debianPath: string = [
  ...['usr/bin', 'usr/sbin'].map((dir) => join(UNPACKED, dir)),
  '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
].join(':')

/** A statically linked busybox. */
export const busyboxPath: string = join(UNPACKED, 'bin/busybox')
