import { mkdirSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import { debianPath } from './debian-programs.ts'
import type { Scratch } from './scratch.ts'
import { type DebianSuite, SuitePrograms } from './suite-programs.ts'

/** Versions of containerd that nodes have: those of Debian bookworm, trixie and sid. */
export type ContainerdVersion = '1.6' | '1.7' | '2'

/** What of containerd's package runs on this machine's C library; trixie's and sid's runc does not, and Debian's own is used. */
const PROGRAMS = ['containerd', 'containerd-shim-runc-v2', 'ctr']

const SUITES: Readonly<Record<Exclude<ContainerdVersion, '1.6'>, DebianSuite>> = {
  '1.7': 'trixie',
  '2': 'sid',
}

/** PATH on which containerd of this version, its shim and ctr come first. The first call of a version unpacks it. */
export function containerdPath(version: ContainerdVersion, scratch: Scratch): string {
  if (version === '1.6') return debianPath
  const programs = SuitePrograms.unpack(SUITES[version], 'containerd', 'containerd')
  const bin = join(scratch.dir, 'bin')
  mkdirSync(bin, { recursive: true })
  for (const name of PROGRAMS) symlinkSync(programs.path(`usr/bin/${name}`), join(bin, name))
  return `${bin}:${debianPath}`
}
