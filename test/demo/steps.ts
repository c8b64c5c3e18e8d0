import { Output } from '../../agent/cli/output.ts'
import { formatMs } from '../../agent/cli/quantity.ts'

/** Says in a few words what a step is at; call it as often as you like. */
export type Say = (detail: string) => void

/** Time between two drawings of a line on a terminal, in ms: ten a second look smooth. */
const REDRAW_MS = 100
/** Time between two lines elsewhere, in ms: 5 s, so that two minutes of a build are 24 lines of a log. */
const LINE_INTERVAL_MS = 5000
/** Columns of a terminal that does not tell. */
const COLUMNS = 80
/** CR and EL (ECMA-48 8.3.15 and 8.3.41): to the start of the line, and clear it. */
const CLEAR_LINE = '\r\u001b[K'

/** The numbered steps of something long, each with its time: in place on a terminal, line by line elsewhere. */
export class Steps<Title extends string> {
  readonly #stream: NodeJS.WriteStream
  readonly #titles: readonly Title[]

  /** `titles` in the order in which they will be run, as long as all goes well. */
  constructor(stream: NodeJS.WriteStream, titles: readonly Title[]) {
    this.#stream = stream
    this.#titles = titles
  }

  /** Does a step, and closes it with its time and its outcome in words. Rejects as `work` does. */
  async run<T>(
    title: Title,
    work: (say: Say) => Promise<T>,
    outcome: (result: T) => string,
  ): Promise<T> {
    const count = this.#titles.length
    const number = String(this.#titles.indexOf(title) + 1).padStart(String(count).length)
    const width = Math.max(...this.#titles.map(({ length }) => length))
    const shown = new Step(this.#stream, `[${number}/${count}] ${title.padEnd(width)}`)
    try {
      const result = await work((detail) => shown.say(detail))
      shown.end(outcome(result))
      return result
    } catch (error) {
      shown.end('did not get done')
      throw error
    }
  }
}

class Step {
  readonly #stream: NodeJS.WriteStream
  readonly #output: Output
  readonly #heading: string
  readonly #startedAt = performance.now()
  readonly #timer: NodeJS.Timeout
  #detail = ''

  constructor(stream: NodeJS.WriteStream, heading: string) {
    this.#stream = stream
    this.#output = new Output({ format: 'text', quiet: false, stream })
    this.#heading = heading
    if (stream.isTTY) {
      this.#timer = setInterval(() => this.#redraw(), REDRAW_MS)
    } else {
      stream.write(`${heading.trimEnd()} …\n`)
      this.#timer = setInterval(() => this.#addLine(), LINE_INTERVAL_MS)
    }
  }

  say(detail: string): void {
    this.#detail = detail
  }

  end(outcome: string): void {
    clearInterval(this.#timer)
    const heading = this.#output.style('bold', this.#heading)
    const over = this.#stream.isTTY ? CLEAR_LINE : ''
    this.#stream.write(`${over}${heading}  ${this.#elapsed()}  ${outcome}\n`)
  }

  #redraw(): void {
    const text = `${this.#heading}  ${this.#elapsed()}  ${this.#detail}`
    // A line that wraps could not be drawn over.
    const fitting = text.slice(0, (this.#stream.columns || COLUMNS) - 1)
    this.#stream.write(`${CLEAR_LINE}${fitting}`)
  }

  #addLine(): void {
    this.#stream.write(`  ${this.#elapsed()}  ${this.#detail}\n`)
  }

  #elapsed(): string {
    return formatMs(performance.now() - this.#startedAt).padStart(9)
  }
}
