import { join } from 'node:path'
import { runCommand } from './run-command.ts'

export type GoProgram =
  | 'stargz-snapshotter'
  | 'containerd'
  | 'containerd-shim-runc-v2'
  | 'ctr'
  | 'kube-apiserver'
  | 'kube-controller-manager'
  | 'kube-scheduler'
  | 'kubelet'
  | 'connect-go'
  | 'critest'
  | 'nonewprivs'

type Source = {
  /** The folder of its Go module beside this. */
  readonly module: string
  readonly package: string
  readonly ldflags: string
  /** It is a suite of tests. */
  readonly isTest?: boolean
}

/** Programs of peers that no distribution packages. */
const SOURCES: Readonly<Record<GoProgram, Source>> = {
  'stargz-snapshotter': { module: 'stargz-snapshotter', package: '.', ldflags: '' },
  containerd: ofContainerd('containerd'),
  'containerd-shim-runc-v2': ofContainerd('containerd-shim-runc-v2'),
  ctr: ofContainerd('ctr'),
  'kube-apiserver': ofKubernetes('kube-apiserver'),
  'kube-controller-manager': ofKubernetes('kube-controller-manager'),
  'kube-scheduler': ofKubernetes('kube-scheduler'),
  kubelet: ofKubernetes('kubelet'),
  'connect-go': { module: 'connect-go', package: '.', ldflags: '' },
  critest: {
    module: 'cri-tools',
    package: 'sigs.k8s.io/cri-tools/cmd/critest',
    ldflags: '',
    isTest: true,
  },
  nonewprivs: { module: 'cri-tools', package: './nonewprivs', ldflags: '' },
}

function ofContainerd(name: GoProgram): Source {
  return {
    module: 'containerd',
    package: `github.com/containerd/containerd/v2/cmd/${name}`,
    ldflags: '',
  }
}

function ofKubernetes(name: GoProgram): Source {
  return {
    module: 'kubernetes',
    package: `k8s.io/kubernetes/cmd/${name}`,
    // They refuse to start without a version; that of go.mod.
    ldflags: '-X k8s.io/component-base/version.gitVersion=v1.34.4',
  }
}

/** Whether there is a program of this name. */
export function isGoProgram(name: string): name is GoProgram {
  return Object.hasOwn(SOURCES, name)
}

/** kube-apiserver took 5 minutes on two idle cores; an hour is the longest that was heard of. */
const BUILD_DEADLINE_MS = 3_600_000

/** Builds a program, once, and resolves to its path. Rejects with CommandError that says what is lacking. */
export async function goProgram(name: GoProgram, onLine?: (line: string) => void): Promise<string> {
  const { module, package: packagePath, ldflags, isTest = false } = SOURCES[name]
  const places = [join(import.meta.dirname, '../../build'), join(import.meta.dirname, module)]
  const built = await runCommand(
    join(import.meta.dirname, 'build-go.sh'),
    [...places, packagePath, ldflags, isTest ? 'test' : 'build'],
    {
      env: process.env,
      signal: AbortSignal.timeout(BUILD_DEADLINE_MS),
      ...(onLine === undefined ? {} : { onLine }),
    },
  )
  return built.trim()
}
