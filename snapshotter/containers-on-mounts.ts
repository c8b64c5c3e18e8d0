import { readFileSync } from 'node:fs'
import { parseMountinfo } from './kernel/mountinfo.ts'

/** A container, by the names that containerd gives it. */
export type ContainerName = { readonly namespace: string; readonly id: string }

/** Where containerd's runtime mounts root file systems, below its state (plugin io.containerd.runtime.v2.task). */
const ROOT_FS = /\/io\.containerd\.runtime\.v2\.task\/(?<namespace>[^/]+)\/(?<id>[^/]+)\/rootfs$/

/** Containers of this node whose root file system has a directory below it that passes, mounted there still or not. */
export function containersOn(
  isMeant: (lowerDir: string) => boolean,
  mountinfo: string = readFileSync('/proc/self/mountinfo', 'utf8'),
): ContainerName[] {
  return parseMountinfo(mountinfo).flatMap(({ target, type, options }) => {
    const { namespace, id } = ROOT_FS.exec(target)?.groups ?? {}
    if (type !== 'overlay' || namespace === undefined || id === undefined) return []
    return lowerDirsOf(options).some(isMeant) ? [{ namespace, id }] : []
  })
}

/** `lowerdir=/a:/b` of overlayfs, or `lowerdir+=/a` for each where they came one by one. */
function lowerDirsOf(options: string): string[] {
  return options
    .split(',')
    .flatMap((option) =>
      option.startsWith('lowerdir') ? option.slice(option.indexOf('=') + 1).split(':') : [],
    )
}
