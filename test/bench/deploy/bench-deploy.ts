import { loadavg } from 'node:os'
import { parseArgs } from 'node:util'
import { Output } from '../../../agent/cli/output.ts'
import { table } from '../../../agent/cli/table.ts'
import { Scratch } from '../../support/scratch.ts'
import { apply } from './apply.ts'
import { calls } from './calls.ts'
import { connections } from './connections.ts'
import type { DeployContext, DeployFigure, DeployMeasurement, Step } from './deploy-figure.ts'

// `make bench-deploy`: what a deployment takes, what a connection holds, and what libp2p costs a call.

const USAGE = `usage: bench-deploy.ts [--only NAME]... [--rounds N] [--profile DIR] [--output text|json]
  --only NAME    measure this: apply, connections or calls
  --rounds N     how often each arm of a comparison is measured; 5 unless given
  --profile DIR  have the endpoint leave there where its processor time went, as V8 writes it; it costs some of it
  --output       text for people, or json`

const MEASUREMENTS: readonly DeployMeasurement[] = [apply, calls, connections]

const EXIT = { ok: 0, failure: 1, usage: 64 } as const

process.exitCode = await main()

async function main(): Promise<number> {
  let options: Options
  try {
    options = parseOptions()
  } catch (error) {
    console.error(`${(error as Error).message}\n${USAGE}`)
    return EXIT.usage
  }
  const load = { before: loadavg() }
  const measured = await measure(options)
  const output = new Output({ format: options.format, quiet: false, stream: process.stdout })
  const document = { rounds: options.rounds, load: { ...load, after: loadavg() }, ...measured }
  output.answer(document, () => describe(document, output))
  return measured.failures.length === 0 ? EXIT.ok : EXIT.failure
}

type Options = {
  readonly chosen: readonly DeployMeasurement[]
  readonly rounds: number
  readonly profileDir: string | undefined
  readonly format: 'text' | 'json'
}

function parseOptions(): Options {
  const { values } = parseArgs({
    options: {
      only: { type: 'string', multiple: true, default: [] },
      rounds: { type: 'string', default: '5' },
      profile: { type: 'string' },
      output: { type: 'string', default: 'text' },
    },
  })
  const { only, output } = values
  const names = MEASUREMENTS.map(({ name }) => name)
  const unknown = only.find((name) => !names.includes(name))
  if (unknown !== undefined) {
    throw new Error(`there is no measurement '${unknown}'; there are ${names.join(', ')}`)
  }
  const rounds = Number(values.rounds)
  if (!(Number.isInteger(rounds) && rounds >= 1 && rounds <= 100)) {
    throw new Error(`--rounds is a whole number from 1 to 100, not '${values.rounds}'`)
  }
  if (output !== 'text' && output !== 'json') {
    throw new Error(`--output is text or json, not '${output}'`)
  }
  const chosen = MEASUREMENTS.filter(({ name }) => only.length === 0 || only.includes(name))
  return { chosen, rounds, profileDir: values.profile, format: output }
}

type Failure = { readonly name: string; readonly reason: string }

type Results = {
  readonly figures: readonly DeployFigure[]
  readonly steps: readonly Step[]
  readonly failures: readonly Failure[]
}

/** One after the other; one that fails does not keep the others from being measured. */
async function measure({ chosen, rounds, profileDir }: Options): Promise<Results> {
  const started = performance.now()
  const say = (what: string): void => {
    console.error(`${((performance.now() - started) / 1000).toFixed(0).padStart(5)} s  ${what}`)
  }
  const figures: DeployFigure[] = []
  const steps: Step[] = []
  const failures: Failure[] = []
  for (const { name, measure } of chosen) {
    await using scratch = Scratch.open(`bench-${name}`)
    const context: DeployContext = { scratch, rounds, profileDir, say }
    try {
      const measured = await measure(context)
      figures.push(...measured.figures)
      steps.push(...(measured.steps ?? []))
    } catch (error) {
      say(`not measured, ${name}: ${String(error)}`)
      failures.push({ name, reason: String(error) })
    }
  }
  return { figures, steps, failures }
}

type Document = Results & {
  readonly rounds: number
  readonly load: Readonly<Record<'before' | 'after', readonly number[]>>
}

function describe({ rounds, load, figures, steps, failures }: Document, output: Output): string {
  const loads = [load.before, load.after].map(([minute = 0]) => minute.toFixed(1))
  return [
    table(
      [{ heading: 'FIGURE' }, { heading: 'MEASURED', align: 'right' }, { heading: 'FROM' }],
      figures.map(({ name, value, unit, detail }) => [name, formatted(value, unit), detail]),
      output,
    ),
    ...[...Map.groupBy(steps, ({ figure }) => figure)].flatMap(([figure, steps]) => [
      '',
      describeSteps(figure, steps, output),
    ]),
    '',
    `${rounds} rounds; load average ${loads.join(' before, ')} after.`,
    ...failures.map(({ name, reason }) => `Not measured: ${name}: ${reason}`),
  ].join('\n')
}

function describeSteps(figure: string, steps: readonly Step[], output: Output): string {
  const headings = ['CALLS', 'REQUESTS', 'MS A CALL', 'IN ITS REQUESTS', 'MS IN ALL']
  const right = headings.map((heading) => ({ heading, align: 'right' }) as const)
  return table(
    [{ heading: figure.toUpperCase() }, ...right],
    steps.map(({ words, callsOfEach, requestsOfEach, callMs, requestMs, ofEachMs }) => [
      words,
      ...[callsOfEach, requestsOfEach, callMs, requestMs, ofEachMs].map((value) =>
        value.toFixed(1),
      ),
    ]),
    output,
  )
}

/** Three digits that count; what is counted in whole pieces has no unit. */
function formatted(value: number, unit: DeployFigure['unit']): string {
  if (unit === '') return value.toFixed(0)
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2
  return `${value.toFixed(digits)} ${unit}`
}
