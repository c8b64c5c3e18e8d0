import { join } from 'node:path'
import { runCommand } from './run-command.ts'

/** Programs of peers that no distribution packages, each with the folder of its Go module beside this. */
const PROGRAMS = {
  'stargz-snapshotter': { module: 'stargz-snapshotter', package: '.', ldflags: '' },
  'kube-apiserver': {
    module: 'kubernetes',
    package: 'k8s.io/kubernetes/cmd/kube-apiserver',
    // It refuses to start without a version; that of go.mod.
    ldflags: '-X k8s.io/component-base/version.gitVersion=v1.34.4',
  },
} as const

export type GoProgram = keyof typeof PROGRAMS

export const goProgramNames: readonly GoProgram[] = ['stargz-snapshotter', 'kube-apiserver']

/** kube-apiserver took 5 minutes on two idle cores; an hour is the longest that was heard of. */
const BUILD_DEADLINE_MS = 3_600_000

/** Builds a program, once, and resolves to its path. Rejects with CommandError that says what is lacking. */
export async function goProgram(name: GoProgram, onLine?: (line: string) => void): Promise<string> {
  const { module, package: packagePath, ldflags } = PROGRAMS[name]
  const places = [join(import.meta.dirname, '../../build'), join(import.meta.dirname, module)]
  const built = await runCommand(
    join(import.meta.dirname, 'build-go.sh'),
    [...places, packagePath, ldflags],
    {
      env: process.env,
      signal: AbortSignal.timeout(BUILD_DEADLINE_MS),
      ...(onLine === undefined ? {} : { onLine }),
    },
  )
  return built.trim()
}
