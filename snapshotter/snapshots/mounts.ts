import { dirname } from 'node:path'
import { SnapshotError } from '../errors.ts'

/** One mount that containerd makes for a container, in mount(8)'s words. */
export type Mount = {
  readonly type: 'overlay' | 'bind'
  readonly source: string
  readonly options: readonly string[]
}

/** Length of overlay's options, in bytes: the page that mount(2) takes, less its NUL. */
const OPTION_BYTES_MAX = 4_096 - 1

/** Lower directories of one overlay mount: OVL_MAX_STACK of the kernel's fs/overlayfs/params.h. */
const LOWER_DIRS_MAX = 500

/** The mount of an active snapshot: writes go to `upperDir`. Throws as `overlay`. */
export function writableMount(
  own: { readonly upperDir: string; readonly workDir: string },
  lowerDirs: readonly string[],
): Mount {
  // overlayfs wants at least one lower directory.
  if (lowerDirs.length === 0) return bind(own.upperDir, 'rw')
  return overlay([`workdir=${own.workDir}`, `upperdir=${own.upperDir}`], lowerDirs)
}

/** The mount of a view: `lowerDirs`, topmost first, at least one, read-only. Throws as `overlay`. */
export function readOnlyMount(lowerDirs: readonly string[]): Mount {
  const [only] = lowerDirs
  if (only !== undefined && lowerDirs.length === 1) return bind(only, 'ro')
  return overlay([], lowerDirs)
}

function bind(source: string, access: 'ro' | 'rw'): Mount {
  return { type: 'bind', source, options: [access, 'rbind'] }
}

/** Throws SnapshotError FAILED_PRECONDITION if the kernel could not take so many or so long names. */
function overlay(own: readonly string[], lowerDirs: readonly string[]): Mount {
  // Without an index, a layer may be lower and upper directory of several mounts at once.
  const options = [...own, `lowerdir=${lowerDirs.join(':')}`, 'index=off']
  const length = options.join(',').length
  const bytes = length - savedByRelativeNames(lowerDirs)
  if (lowerDirs.length > LOWER_DIRS_MAX || bytes > OPTION_BYTES_MAX) {
    throw new SnapshotError(
      'FAILED_PRECONDITION',
      `an image of ${lowerDirs.length} layers needs ${bytes} bytes of mount options: the kernel takes ${LOWER_DIRS_MAX} layers and ${OPTION_BYTES_MAX} bytes`,
    )
  }
  return { type: 'overlay', source: 'overlay', options }
}

/** What containerd's mount.All saves: it changes into the directory that all lower ones share. */
function savedByRelativeNames(lowerDirs: readonly string[]): number {
  const [first = '/'] = lowerDirs
  let shared = dirname(first)
  while (shared !== '/' && !lowerDirs.every((dir) => dir.startsWith(`${shared}/`))) {
    shared = dirname(shared)
  }
  return shared === '/' ? 0 : lowerDirs.length * (shared.length + 1)
}
