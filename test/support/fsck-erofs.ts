import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'

const repository = join(import.meta.dirname, '../..')
const folder = join(repository, 'build/erofs-utils')
const root = join(folder, 'root')

/**
 * What fsck.erofs 1.8 says about an image: its exit status, 0 for sound, and its words. `devicePaths` are read too:
 * then every file's content is, and an address outside of a device is an error.
 * The first call unpacks the tool under build/; it needs apt and the network for that.
 */
export function fsckErofs(
  imagePath: string,
  devicePaths: readonly string[] = [],
): { status: number; output: string } {
  install()
  const devices = devicePaths.map((path) => `--device=${path}`)
  const extract = devicePaths.length > 0 ? ['--extract'] : []
  // Without a limit to the stack, since it calls itself once per directory level and needs 4 KiB for each.
  const ran = spawnSync(
    'sh',
    [
      '-c',
      'ulimit -s unlimited && exec "$@"',
      'fsck',
      join(root, libraries(), loader()),
      '--library-path',
      join(root, libraries()),
      join(root, 'usr/bin/fsck.erofs'),
      ...extract,
      ...devices,
      imagePath,
    ],
    { encoding: 'utf8' },
  )
  return { status: ran.status ?? -1, output: `${ran.stdout}${ran.stderr}` }
}

/** Test files run side by side: one of them unpacks, the others wait for it. */
function install(): void {
  mkdirSync(join(repository, 'build'), { recursive: true })
  execFileSync(
    'flock',
    [`${folder}.lock`, join(import.meta.dirname, 'install-erofs-utils.sh'), folder],
    { stdio: ['ignore', 'inherit', 'pipe'] },
  )
}

function libraries(): string {
  return process.arch === 'arm64' ? 'usr/lib/aarch64-linux-gnu' : 'usr/lib/x86_64-linux-gnu'
}

function loader(): string {
  return process.arch === 'arm64' ? 'ld-linux-aarch64.so.1' : 'ld-linux-x86-64.so.2'
}
