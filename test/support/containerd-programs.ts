import { mkdirSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import { debianPath } from './debian-programs.ts'
import { goProgram } from './go-programs.ts'
import type { Scratch } from './scratch.ts'
import { type DebianSuite, SuitePrograms } from './suite-programs.ts'

/** Versions of containerd that nodes have: those of Debian bookworm, trixie and sid, and 2.4, which Go builds (`make test-peers`). */
export type ContainerdVersion = '1.6' | '1.7' | '2' | '2.4'

/** What of containerd runs on this machine's C library; runc of the same suite does not. */
const PROGRAMS = ['containerd', 'containerd-shim-runc-v2', 'ctr'] as const

const SUITES: Readonly<Record<'1.7' | '2', DebianSuite>> = { '1.7': 'trixie', '2': 'sid' }

/** The version whose configuration a node with this one has: see node-image/containerd. */
export function configVersion(version: ContainerdVersion): Exclude<ContainerdVersion, '2.4'> {
  return version === '2.4' ? '2' : version
}

/**
 * PATH on which containerd of this version, its shim and ctr come first, and from 2 on sid's runc; before, it is bookworm's. The
 * first call of a version unpacks or builds it.
 */
export async function containerdPath(
  version: ContainerdVersion,
  scratch: Scratch,
): Promise<string> {
  if (version === '1.6') return debianPath
  const bin = join(scratch.dir, 'bin')
  mkdirSync(bin, { recursive: true })
  for (const [name, path] of await programs(version)) symlinkSync(path, join(bin, name))
  if (version !== '1.7') {
    // From 1.2 on it gives pods user namespaces; and it runs itself again.
    const unpacked = SuitePrograms.unpack('sid', 'runc', 'runc', 'patchelf')
    unpacked.link('usr/sbin/runc', join(bin, 'runc'))
  }
  return `${bin}:${debianPath}`
}

async function programs(
  version: Exclude<ContainerdVersion, '1.6'>,
): Promise<[name: string, path: string][]> {
  if (version === '2.4') {
    return await Promise.all(
      PROGRAMS.map(async (name): Promise<[string, string]> => [name, await goProgram(name)]),
    )
  }
  const unpacked = SuitePrograms.unpack(SUITES[version], 'containerd', 'containerd')
  return PROGRAMS.map((name) => [name, unpacked.path(`usr/bin/${name}`)])
}
