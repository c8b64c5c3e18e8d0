import { mkdirSync, writeFileSync } from 'node:fs'
import { loadavg } from 'node:os'
import { join } from 'node:path'
import { Output } from '../../../agent/cli/output.ts'
import type { PublishedImage } from '../../demo/publish.ts'
import type { OciLayout } from '../../support/images/oci-layout.ts'
import { Scratch } from '../../support/scratch.ts'
import { listedBytes } from '../listed-bytes.ts'
import { optimize } from '../optimize.ts'
import { inTurn } from '../rounds.ts'
import type { Arm, ImageToStart } from './arm.ts'
import { describe } from './describe.ts'
import { type MeasuredStart, measuredStart } from './measured-start.ts'
import { type Cell, parseStartOptions, type StartOptions } from './options.ts'
import { drawPicture } from './picture.ts'
import { rowsOf, type StartFailure, type StartResults, type StartRow } from './results.ts'
import { Site } from './site.ts'
import type { Workload } from './workloads.ts'

// The second half of `make bench-start`, in a network namespace of its own: all that comes from elsewhere is here already.

/** Starts of one arm, and the bytes that it cannot do without. */
type Measured = {
  readonly arm: Arm
  readonly reference: string
  readonly neededBytes: number
  readonly starts: MeasuredStart[]
}

class StartBenchmark {
  readonly #options: StartOptions
  readonly #site: Site
  readonly #startedAt = new Date()
  readonly #loadBefore = loadavg()
  readonly #pushed = new Map<string, PublishedImage>()
  readonly #rows: StartRow[] = []
  readonly #failures: StartFailure[] = []

  constructor(options: StartOptions, site: Site) {
    this.#options = options
    this.#site = site
  }

  /** Measures all cells, one workload after the other. */
  async run(): Promise<StartResults> {
    const { cells, to } = this.#options
    for (const workload of new Set(cells.map(({ workload }) => workload))) {
      const ofWorkload = cells.filter((cell) => cell.workload === workload)
      const arms = [...new Set(ofWorkload.flatMap(({ arms }) => arms))]
      const { image, references } = await this.#publish(workload, arms)
      for (const cell of ofWorkload) {
        await this.#measure(cell, image, references)
        // Again after every cell: what an interrupted run has measured is kept.
        writeResults(to, this.#results)
      }
    }
    return this.#results
  }

  get #results(): StartResults {
    return {
      rounds: this.#options.rounds,
      startedAt: this.#startedAt.toISOString(),
      load: { before: this.#loadBefore, after: loadavg() },
      rows: this.#rows,
      failures: this.#failures,
    }
  }

  /** Puts the workload's image on the far side in the form of each arm. */
  async #publish(
    workload: Workload,
    arms: readonly Arm[],
  ): Promise<{ image: ImageToStart; references: ReadonlyMap<Arm, string> }> {
    const { publisher } = this.#site
    const layout = await workload.build((line) => this.#say(line))
    const published = await this.#push(workload, layout)
    this.#say(`${workload.name}: running it for its list`)
    const { ready } = workload
    const words = ['--ready', ready.kind === 'line' ? ready.text : ready.url]
    const listed = await optimize(publisher, published.reference, workload.command, words)
    const optimised = await publisher.push(layout, ['--optimize', listed.reference])
    const neededBytes = await listedBytes(optimised.reference, publisher.repository)
    const image = { workload, layout, published, listed, optimised, neededBytes }
    const references = new Map<Arm, string>()
    for (const arm of arms) {
      this.#say(`${workload.name}: preparing it for ${arm.title}`)
      try {
        references.set(arm, await arm.publish(image, this.#site))
      } catch (error) {
        this.#failed({ workload: workload.name, link: 'any link', arm: arm.name }, error)
      }
    }
    return { image, references }
  }

  /** Once for each image: workloads may share one. */
  async #push(workload: Workload, layout: OciLayout): Promise<PublishedImage> {
    const pushed = this.#pushed.get(layout.dir)
    if (pushed !== undefined) return pushed
    this.#say(`${workload.name}: publishing`)
    const published = await this.#site.publisher.push(layout)
    this.#pushed.set(layout.dir, published)
    return published
  }

  async #measure(
    { workload, link, arms }: Cell,
    image: ImageToStart,
    references: ReadonlyMap<Arm, string>,
  ): Promise<void> {
    const measured = arms.flatMap((arm): Measured[] => {
      const reference = references.get(arm)
      if (reference === undefined) return []
      return [{ arm, reference, neededBytes: neededBy(arm, image), starts: [] }]
    })
    await inTurn(this.#options.rounds, measured, async ({ arm, reference, starts }) => {
      try {
        const start = await measuredStart({ arm, workload, image: reference }, link, this.#site)
        this.#say(
          `${workload.name}/${link.name}/${arm.name}: ready after ${Math.round(start.readyMs)} ms`,
        )
        starts.push(start)
      } catch (error) {
        this.#failed({ workload: workload.name, link: link.name, arm: arm.name }, error)
      }
    })
    this.#rows.push(...rowsOf(workload.name, link, measured, { traces: this.#options.traces }))
  }

  /** One that fails does not keep the others from being measured. */
  #failed(row: Omit<StartFailure, 'reason'>, error: unknown): void {
    const reason = error instanceof Error ? error.message : String(error)
    this.#say(`${row.workload}/${row.link}/${row.arm}: ${reason}`)
    this.#failures.push({ ...row, reason })
  }

  /** Tells what is being done, for whoever waits. */
  #say(what: string): void {
    const seconds = (Date.now() - this.#startedAt.getTime()) / 1000
    console.error(`${seconds.toFixed(0).padStart(5)} s  ${what}`)
  }
}

/** The whole image for whom it has to be whole; else what a start reads. */
function neededBy(arm: Arm, { layout, neededBytes }: ImageToStart): number {
  return arm.isWhole ? layout.layers.reduce((sum, { size }) => sum + size, 0) : neededBytes
}

function writeResults(folder: string, results: StartResults): void {
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'results.json'), `${JSON.stringify(results, null, 2)}\n`)
  writeFileSync(join(folder, 'cold-start.svg'), drawPicture(results))
}

const options = parseStartOptions(process.argv.slice(2))
await using scratch = Scratch.open('bench-site')
await using site = await Site.open(scratch)
const results = await new StartBenchmark(options, site).run()
const output = new Output({ format: options.output, quiet: false, stream: process.stdout })
output.answer(results, () => describe(results, output))
process.exitCode = results.failures.length === 0 ? 0 : 1
