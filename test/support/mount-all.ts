import { execFile } from 'node:child_process'
import { dirname } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)

/** A mount as a snapshotter answers it, with fields left out where they are empty. */
export type MountToMake = {
  readonly type?: string
  readonly source?: string
  readonly options?: readonly string[]
}

/** Mounts on `target`, as containerd's mount.All would, with mount(8). Dispose of the result to unmount all again. */
export async function mountAll(
  mounts: readonly MountToMake[],
  target: string,
): Promise<AsyncDisposable> {
  const mounted = new AsyncDisposableStack()
  try {
    for (const mount of mounts) {
      await mountOne(mount, target)
      mounted.defer(async () => {
        await run('umount', [target])
      })
    }
  } catch (error) {
    await mounted.disposeAsync()
    throw error
  }
  return mounted
}

async function mountOne(mount: MountToMake, target: string): Promise<void> {
  const { type = '', source = '', options = [] } = mount
  if (type === 'bind') {
    await run('mount', ['--rbind', source, target])
    // The kernel ignores `ro` while it binds.
    if (options.includes('ro')) await run('mount', ['-o', 'remount,bind,ro', target])
    return
  }
  const { cwd, relative } = relativeToShared(options)
  await run('mount', ['-t', type, source, target, '-o', relative.join(',')], {
    cwd,
    // Newer versions of mount(8) use fsconfig(2), which takes 256 bytes a value.
    env: { ...process.env, LIBMOUNT_FORCE_MOUNT2: 'always' },
  })
}

/** containerd's way to mount many layers: the lower directories, seen from the directory that they share. */
function relativeToShared(options: readonly string[]): { cwd: string; relative: string[] } {
  const lowerDirs = options
    .find((option) => option.startsWith('lowerdir='))
    ?.slice(9)
    .split(':')
  const [first] = lowerDirs ?? []
  if (lowerDirs === undefined || first === undefined) return { cwd: '/', relative: [...options] }
  let shared = dirname(first)
  while (!lowerDirs.every((dir) => dir.startsWith(`${shared}/`))) shared = dirname(shared)
  const names = lowerDirs.map((dir) => dir.slice(shared.length + 1))
  return {
    cwd: shared,
    relative: options.map((option) =>
      option.startsWith('lowerdir=') ? `lowerdir=${names.join(':')}` : option,
    ),
  }
}
