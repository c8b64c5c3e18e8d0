import { execFileSync } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'

const BUILD = join(import.meta.dirname, '../../build')

/** Debian's promtool, which checks rules as Prometheus reads them. The first call unpacks it, without installing anything. */
export function promtool(): string {
  mkdirSync(BUILD, { recursive: true })
  const folder = join(BUILD, 'prometheus')
  const unpack = join(import.meta.dirname, 'install/unpack.sh')
  execFileSync('flock', [`${folder}.lock`, unpack, folder, 'prometheus'], {
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  return join(folder, 'usr/bin/promtool')
}
