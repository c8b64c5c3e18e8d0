import { loadavg } from 'node:os'
import { parseArgs } from 'node:util'
import { Output } from '../../agent/cli/output.ts'
import { table } from '../../agent/cli/table.ts'
import { buildProgram } from '../../node-image/build-program.ts'
import { buildDemoImage } from '../support/images/demo-image.ts'
import type { BenchContext, Measurement } from './bench-context.ts'
import { BenchPublisher } from './bench-node.ts'
import { coldStart } from './cold-start.ts'
import { compact } from './compact.ts'
import { contentProxy } from './content-proxy.ts'
import { dedup } from './dedup.ts'
import { excess, type Figure, formatLimit, formatValue, formatVerdict } from './figure.ts'
import { fleet } from './fleet.ts'
import { layerIndex } from './layer-index.ts'
import { manyStarts } from './many-starts.ts'
import { imageRead, reads } from './mechanism.ts'
import { memoryGrowth } from './memory-growth.ts'
import { networkPath } from './network-path.ts'
import { prefetchStart } from './prefetch-start.ts'
import { snapshotCalls } from './snapshot-calls.ts'
import { fetchWhole, inflate, push } from './throughput.ts'

// `make bench`: every figure of the README beside it, measured now, each beside its limit.

const USAGE = `usage: bench.ts [--only NAME]... [--rounds N] [--output text|json]
  --only NAME  measure this figure, and what comes along with it; "fleet" stands for all that begin with it
  --rounds N   how often each arm of a comparison is measured; 5 unless given
  --minutes N  how long the figures of "hour" are measured; 60 unless given
  --output     text for people, or json`

const MEASUREMENTS: readonly Measurement[] = [
  reads,
  imageRead,
  snapshotCalls,
  coldStart,
  prefetchStart,
  push,
  compact,
  inflate,
  layerIndex,
  networkPath,
  fetchWhole,
  dedup,
  contentProxy,
  manyStarts,
  memoryGrowth,
  fleet,
]

const NAMES = MEASUREMENTS.flatMap(({ names }) => names)

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
  const { only, format } = options
  const chosen = MEASUREMENTS.filter(({ names, isLong = false }) =>
    only.length === 0 ? !isLong : names.some((name) => isChosen(name, only)),
  )
  await buildProgram()
  const load = { before: loadavg() }
  const { figures, failures } = await measure(chosen, options)
  const shown = figures.filter(({ name }) => only.length === 0 || isChosen(name, only))
  const output = new Output({ format, quiet: false, stream: process.stdout })
  const document = {
    rounds: options.rounds,
    load: { ...load, after: loadavg() },
    figures: shown,
    failures,
  }
  output.answer(document, () => describe(document, output))
  return failures.length === 0 ? EXIT.ok : EXIT.failure
}

type Options = {
  readonly only: readonly string[]
  readonly rounds: number
  readonly minutes: number
  readonly format: 'text' | 'json'
}

function parseOptions(): Options {
  const { values } = parseArgs({
    options: {
      only: { type: 'string', multiple: true, default: [] },
      rounds: { type: 'string', default: '5' },
      minutes: { type: 'string', default: '60' },
      output: { type: 'string', default: 'text' },
    },
  })
  const unknown = values.only.find((name) => !NAMES.some((figure) => isChosen(figure, [name])))
  if (unknown !== undefined) {
    throw new Error(`there is no figure '${unknown}'; there are ${NAMES.join(', ')}`)
  }
  const rounds = countOf('--rounds', values.rounds, 100)
  const minutes = countOf('--minutes', values.minutes, 1440)
  if (values.output !== 'text' && values.output !== 'json') {
    throw new Error(`--output is text or json, not '${values.output}'`)
  }
  return { only: values.only, rounds, minutes, format: values.output }
}

/** By its name, or by the beginning of it where no figure is called just that. */
function countOf(flag: string, text: string, max: number): number {
  const count = Number(text)
  if (Number.isInteger(count) && count >= 1 && count <= max) return count
  throw new Error(`${flag} is a whole number from 1 to ${max}, not '${text}'`)
}

function isChosen(figure: string, only: readonly string[]): boolean {
  return only.some(
    (name) => name === figure || (!NAMES.includes(name) && figure.startsWith(`${name}-`)),
  )
}

type Failure = { readonly names: readonly string[]; readonly reason: string }

/** One after the other; one that fails does not keep the others from being measured. */
async function measure(
  measurements: readonly Measurement[],
  { rounds, minutes }: Pick<Options, 'rounds' | 'minutes'>,
): Promise<{ figures: Figure[]; failures: Failure[] }> {
  const started = performance.now()
  const say = (what: string): void => {
    console.error(`${((performance.now() - started) / 1000).toFixed(0).padStart(5)} s  ${what}`)
  }
  await using publisher = await BenchPublisher.start()
  let demo: ReturnType<BenchContext['demo']> | undefined
  const publishDemo: BenchContext['demo'] = async () => {
    say('making the demo image')
    const layout = await buildDemoImage()
    say('publishing the demo image')
    return { layout, published: await publisher.push(layout) }
  }
  const context: BenchContext = {
    publisher,
    rounds,
    minutes,
    say,
    demo: () => (demo ??= publishDemo()),
  }
  const figures: Figure[] = []
  const failures: Failure[] = []
  for (const { names, measure } of measurements) {
    try {
      figures.push(...(await measure(context)))
    } catch (error) {
      say(`not measured, ${names.join(', ')}: ${String(error)}`)
      failures.push({ names, reason: String(error) })
    }
  }
  return { figures, failures }
}

type Document = {
  readonly rounds: number
  readonly load: Readonly<Record<'before' | 'after', readonly number[]>>
  readonly figures: readonly Figure[]
  readonly failures: readonly Failure[]
}

function describe({ rounds, load, figures, failures }: Document, output: Output): string {
  const columns = [
    { heading: 'FIGURE' },
    { heading: 'MEASURED', align: 'right' },
    { heading: 'LIMIT' },
    { heading: '' },
    { heading: 'FROM' },
  ] as const
  const rows = figures.map((figure) => [
    figure.name,
    formatValue(figure.value, figure.unit),
    formatLimit(figure.limit, figure.unit),
    formatVerdict(figure),
    figure.detail,
  ])
  const limited = figures.filter(({ limit }) => limit !== undefined)
  const within = limited.filter((figure) => excess(figure) <= 0).length
  const loads = [load.before, load.after].map(([minute = 0]) => minute.toFixed(1))
  return [
    table(columns, rows, output),
    '',
    `${within} of ${limited.length} limits kept; medians of ${rounds} rounds; load average ${loads.join(' before, ')} after.`,
    ...failures.map(({ names, reason }) => `Not measured: ${names.join(', ')}: ${reason}`),
  ].join('\n')
}
