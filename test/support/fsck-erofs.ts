import { spawnSync } from 'node:child_process'
import { SuitePrograms } from './suite-programs.ts'

/**
 * What fsck.erofs 1.8 says about an image: its exit status, 0 for sound, and its words. `devicePaths` are read too:
 * then every file's content is, and an address outside of a device is an error.
 * It is trixie's, since that of bookworm (1.5) refuses blocks of 512 bytes.
 */
export function fsckErofs(
  imagePath: string,
  devicePaths: readonly string[] = [],
): { status: number; output: string } {
  const fsck = SuitePrograms.unpack('trixie', 'erofs-utils', 'erofs-utils').command(
    'usr/bin/fsck.erofs',
  )
  const devices = devicePaths.map((path) => `--device=${path}`)
  const extract = devicePaths.length > 0 ? ['--extract'] : []
  // Without a limit to the stack, since it calls itself once per directory level and needs 4 KiB for each.
  const unlimited = ['-c', 'ulimit -s unlimited && exec "$@"', 'fsck']
  const ran = spawnSync('sh', [...unlimited, ...fsck, ...extract, ...devices, imagePath], {
    encoding: 'utf8',
  })
  return { status: ran.status ?? -1, output: `${ran.stdout}${ran.stderr}` }
}
