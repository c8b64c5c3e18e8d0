import { readFileSync } from 'node:fs'

/** One mount as this process sees it. */
export type MountEntry = {
  /** Absolute path of the mount point. */
  readonly target: string
  /** File system type: 'erofs', 'overlay', 'fuse'. */
  readonly type: string
  readonly source: string
  /** `major:minor` of the mounted file system; all mounts of one superblock share it. */
  readonly device: string
  /** Of the file system, as the kernel tells them: `ro,lowerdir=/a:/b`. */
  readonly options: string
}

/**
 * The mounts at `directory` and below it, in the order they were made, so the last of equal targets is the visible one.
 * Format: proc_pid_mountinfo(5).
 */
export function listMounts(directory: string): MountEntry[] {
  const below = directory.endsWith('/') ? directory : `${directory}/`
  return parseMountinfo(readFileSync('/proc/self/mountinfo', 'utf8')).filter(
    ({ target }) => target === directory || target.startsWith(below),
  )
}

/** Whether something is mounted at exactly `target`. */
export function isMounted(target: string): boolean {
  return listMounts(target).some((mount) => mount.target === target)
}

/** Every mount of a mountinfo text. */
export function parseMountinfo(text: string): MountEntry[] {
  const mounts: MountEntry[] = []
  for (const line of text.split('\n')) {
    if (line === '') continue
    // Between the sixth field and the dash stands any number of optional fields.
    const [before = '', after = ''] = line.split(' - ', 2)
    const [, , device = '', , target = ''] = before.split(' ')
    const [type = '', source = '', options = ''] = after.split(' ')
    const [mounted, from] = [unescaped(target), unescaped(source)]
    mounts.push({ target: mounted, type, source: from, device, options: unescaped(options) })
  }
  return mounts
}

/** The kernel writes space, tab, newline, backslash and hash as a backslash and three octal digits. */
function unescaped(field: string): string {
  return field.replace(/\\([0-7]{3})/g, (_, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  )
}
