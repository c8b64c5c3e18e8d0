import { readFileSync } from 'node:fs'
import { busyboxPath } from '../debian-programs.ts'
import type { TarPart } from '../make-tar.ts'

/** What a layer needs so that containers can run these programs of busybox: `/bin` with it and a link a program. */
export function busyboxFiles(...programs: readonly string[]): TarPart[] {
  return [
    { name: 'bin/', typeflag: '5', mode: 0o755 },
    { name: 'bin/busybox', mode: 0o755, content: readFileSync(busyboxPath) },
    ...programs.map((name) => ({ name: `bin/${name}`, typeflag: '2', linkName: 'busybox' })),
  ]
}
