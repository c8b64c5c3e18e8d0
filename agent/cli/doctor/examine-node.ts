import type { Config } from '../../config.ts'
import { agentChecks } from './agent-checks.ts'
import { containerdChecks } from './containerd-checks.ts'
import { type Check, type Finding, failure } from './finding.ts'
import { machineChecks } from './machine-checks.ts'
import { RunningAgent } from './running-agent.ts'
import { secretChecks } from './secret-checks.ts'
import { sourceChecks } from './source-checks.ts'

export type CheckedFinding = { readonly check: string } & Finding

export type ExamineOptions = {
  /** Folder of hosts.toml files, where containerd does not tell its own. */
  readonly certsDir: string
  /** How long one check may take, in ms. */
  readonly checkMs: number
}

/**
 * Looks at everything that a pod of this node needs, all at once, and changes nothing. Gives back what each check found, in the order
 * in which one builds on the other. Never rejects, but for `signal`.
 */
export async function examineNode(
  config: Config,
  options: ExamineOptions,
  signal: AbortSignal,
): Promise<CheckedFinding[]> {
  using agent = new RunningAgent(config)
  const checks = [
    ...machineChecks(config, agent),
    ...agentChecks(config, agent),
    ...containerdChecks(config, options),
    ...sourceChecks(config),
    ...secretChecks(config),
  ]
  return await Promise.all(
    checks.map(async (check) => ({
      check: check.name,
      ...(await findingOf(check, options, signal)),
    })),
  )
}

async function findingOf(
  check: Check,
  { checkMs }: Pick<ExamineOptions, 'checkMs'>,
  signal: AbortSignal,
): Promise<Finding> {
  const deadline = new AbortController()
  const late = Promise.withResolvers<Finding>()
  const timer = setTimeout(() => {
    deadline.abort(new Error(`no answer in ${checkMs / 1000} s`))
    late.resolve(
      failure(
        `there was no answer in ${checkMs / 1000} s`,
        'See why it hangs, or look again with more time (--timeout).',
      ),
    )
  }, checkMs)
  try {
    const looked = check.look(AbortSignal.any([signal, deadline.signal]))
    return await Promise.race([looked, late.promise])
  } catch (error) {
    signal.throwIfAborted()
    if (deadline.signal.aborted) return await late.promise
    const why = error instanceof Error ? error.message : String(error)
    return failure(why, 'It cannot be used as it is: mend what the sentence names.')
  } finally {
    clearTimeout(timer)
  }
}
