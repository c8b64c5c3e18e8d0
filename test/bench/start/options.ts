import { parseArgs } from 'node:util'
import type { Arm } from './arm.ts'
import { ARMS } from './arms.ts'
import { LINKS, type LinkProfile, UNSHAPED } from './link/link-profile.ts'
import { SMALLEST, WORKLOADS, type Workload } from './workloads.ts'

export const USAGE: string = `usage: bench-start.ts [--workloads NAME,...] [--links NAME,...] [--arms NAME,...] [--only ROW]... [--rounds N]
                     [--to FOLDER] [--traces] [--output text|json]
  --workloads  of ${[...WORKLOADS, SMALLEST].map(({ name }) => name).join(', ')}; all but the last unless given
  --links      of ${[...LINKS, UNSHAPED].map(({ name }) => name).join(', ')}; all but the last unless given
  --arms       of ${ARMS.map(({ name }) => name).join(', ')}; all unless given
  --only ROW   measure this row, as workload/link/arm, or those that begin like this, as workload/link
  --rounds N   how often each row is measured; 5 unless given
  --to FOLDER  for results.json and cold-start.svg; build/bench-start unless given
  --traces     have every request of every start in results.json
  --output     text for people, or json`

/** The most rounds; an hour each, if all is measured. */
const ROUNDS_MAX = 100

/** What is measured, and where the answer goes. */
export type StartOptions = {
  /** Not empty, in the order in which they are measured. */
  readonly cells: readonly Cell[]
  readonly rounds: number
  readonly to: string
  readonly traces: boolean
  readonly output: 'text' | 'json'
}

/** A workload behind a link, and the arms that are measured there in turn. */
export type Cell = {
  readonly workload: Workload
  readonly link: LinkProfile
  readonly arms: readonly Arm[]
}

/** Reads a command line. Throws Error, with a sentence for the user, if there is something wrong with it. */
export function parseStartOptions(words: readonly string[]): StartOptions {
  const { values } = parseArgs({
    args: [...words],
    options: {
      workloads: { type: 'string', multiple: true },
      links: { type: 'string', multiple: true },
      arms: { type: 'string', multiple: true },
      only: { type: 'string', multiple: true, default: [] },
      rounds: { type: 'string', default: '5' },
      to: { type: 'string', default: 'build/bench-start' },
      traces: { type: 'boolean', default: false },
      output: { type: 'string', default: 'text' },
    },
  })
  const workloads = chosen('--workloads', values.workloads, [...WORKLOADS, SMALLEST], WORKLOADS)
  const links = chosen('--links', values.links, [...LINKS, UNSHAPED], LINKS)
  const arms = chosen('--arms', values.arms, ARMS)
  const rounds = Number(values.rounds)
  if (!Number.isInteger(rounds) || rounds < 1 || rounds > ROUNDS_MAX) {
    throw new Error(`--rounds is a whole number from 1 to ${ROUNDS_MAX}, not '${values.rounds}'`)
  }
  if (values.output !== 'text' && values.output !== 'json') {
    throw new Error(`--output is text or json, not '${values.output}'`)
  }
  const rows = workloads.flatMap((workload) =>
    links.map((link) => ({
      workload,
      link,
      names: arms.map((arm) => rowName(workload, link, arm)),
    })),
  )
  const lost = values.only.find(
    (only) => !rows.some(({ names }) => names.some((name) => isWithin(name, only))),
  )
  if (lost !== undefined) {
    throw new Error(
      `--only '${lost}' is no row of these workloads, links and arms: python/100m/ipdr`,
    )
  }
  const isWanted = (name: string): boolean =>
    values.only.length === 0 || values.only.some((only) => isWithin(name, only))
  const cells = rows
    .map(({ workload, link, names }) => ({
      workload,
      link,
      arms: arms.filter((_, index) => isWanted(names[index] ?? '')),
    }))
    .filter(({ arms }) => arms.length > 0)
  return { cells, rounds, to: values.to, traces: values.traces, output: values.output }
}

function rowName(workload: Workload, link: LinkProfile, arm: Arm): string {
  return `${workload.name}/${link.name}/${arm.name}`
}

function isWithin(name: string, only: string): boolean {
  return name === only || name.startsWith(`${only}/`)
}

/** Those that were named, in the order of `known`; by default `usual`. */
function chosen<Known extends { readonly name: string }>(
  option: string,
  given: readonly string[] | undefined,
  known: readonly Known[],
  usual: readonly Known[] = known,
): readonly Known[] {
  if (given === undefined) return usual
  const names = given.flatMap((words) => words.split(','))
  const unknown = names.find((name) => !known.some((one) => one.name === name))
  if (unknown !== undefined) {
    const all = known.map(({ name }) => name).join(', ')
    throw new Error(`${option}: there is no '${unknown}'; there are ${all}`)
  }
  return known.filter(({ name }) => names.includes(name))
}
