import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Containerd } from './containerd.ts'
import { ControlGroup } from './control-group.ts'
import { debianPath } from './debian-programs.ts'
import { goProgram } from './go-programs.ts'
import { CommandError, runCommand } from './run-command.ts'
import type { Scratch } from './scratch.ts'

/** What became of a spec. */
export type SpecResult = {
  readonly state: 'passed' | 'failed' | 'skipped' | (string & {})
  /** Why it failed. */
  readonly message: string
}

/** What ginkgo reports of a suite, as far as it is read here. */
type SuiteReport = {
  readonly SpecReports: readonly {
    readonly ContainerHierarchyTexts: readonly string[] | null
    readonly LeafNodeType: string
    readonly LeafNodeText: string
    readonly State: string
    readonly Failure?: { readonly Message: string }
  }[]
}

/** All specs take two minutes when quiet, four beside other tests; a spec that waits in vain takes one. */
const DEADLINE_MS = 1_500_000

/**
 * Runs the specs of cri-tools whose names match `focus` against a containerd that has a network for pods, and tells what became of
 * each. Rejects with CommandError if the suite could not be run.
 */
export async function runCritest(
  scratch: Scratch,
  containerd: Containerd,
  { focus, skip }: { readonly focus: string; readonly skip?: string },
): Promise<ReadonlyMap<string, SpecResult>> {
  const dir = join(scratch.dir, 'critest')
  mkdirSync(dir)
  // Its pods name no group to be in, and are then in containerd's.
  if (containerd.pid !== undefined) {
    new ControlGroup(join(containerd.cgroup, 'critest')).take(containerd.pid)
  }
  const report = join(dir, 'report.json')
  const words = [
    `--runtime-endpoint=unix://${containerd.socketPath}`,
    `--ginkgo.focus=${focus}`,
    ...(skip === undefined ? [] : [`--ginkgo.skip=${skip}`]),
    `--ginkgo.json-report=${report}`,
    '--ginkgo.seed=1',
    '--ginkgo.no-color',
  ]
  try {
    await runCommand(await goProgram('critest'), words, {
      cwd: dir,
      env: { PATH: debianPath, TMPDIR: dir, HOME: dir },
      signal: AbortSignal.timeout(DEADLINE_MS),
    })
  } catch (error) {
    // Specs may fail; the report says which.
    if (!(error instanceof CommandError) || error.exitCode !== 1) throw error
  }
  const suites = JSON.parse(readFileSync(report, 'utf8')) as readonly SuiteReport[]
  return new Map(
    suites
      .flatMap(({ SpecReports: specs }) => specs)
      .filter(({ LeafNodeType: type }) => type === 'It')
      .map((spec) => [
        [...(spec.ContainerHierarchyTexts ?? []), spec.LeafNodeText].join(' '),
        { state: spec.State, message: spec.Failure?.Message ?? '' },
      ]),
  )
}
