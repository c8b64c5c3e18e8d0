import { MultiBar, type SingleBar } from 'cli-progress'
import { formatBytes, formatRate } from './quantity.ts'

/** `bars` on a terminal, `lines` every few seconds elsewhere, `json` one object a line, `none`. */
export type ProgressStyle = 'bars' | 'lines' | 'json' | 'none'

/** How far one item is: a layer, as a rule. */
export type ItemProgress = {
  /** Tells items apart, and is shown: a short digest. */
  readonly item: string
  readonly doneBytes: number
  /** Undefined while it is not known. */
  readonly totalBytes: number | undefined
  /** What happens to it, in a word or two. */
  readonly step: string
}

/** Time between two plain lines, in ms: 3 s, so that a log of a ten-minute push has 200 lines. */
const LINE_INTERVAL_MS = 3000
/** Time between two JSON lines of one item, in ms: ten a second are smooth in any user interface. */
const JSON_INTERVAL_MS = 100
/** Bars drawn at once. More than a screenful would scroll instead of being redrawn: an image of 100 layers shows the latest. */
const BARS_MAX = 16
/** Used where the total is not known, in bytes: a bar needs one. */
const UNKNOWN_TOTAL = 0

/** Progress on standard error, so that standard output holds the answer alone. */
export class Progress implements Disposable {
  readonly #style: ProgressStyle
  readonly #stream: NodeJS.WriteStream
  readonly #now: () => number
  readonly #items = new Map<string, ItemProgress>()
  readonly #bars = new Map<string, SingleBar>()
  readonly #reportedAt = new Map<string, number>()
  readonly #startedAt: number
  #multiBar: MultiBar | undefined
  #lineAt: number

  constructor(
    style: ProgressStyle,
    stream: NodeJS.WriteStream,
    now: () => number = () => performance.now(),
  ) {
    this.#style = style
    this.#stream = stream
    this.#now = now
    this.#startedAt = now()
    this.#lineAt = this.#startedAt
  }

  /** Says how far an item is; call it as often as you like. */
  update(progress: ItemProgress): void {
    this.#items.set(progress.item, progress)
    switch (this.#style) {
      case 'bars':
        return this.#draw(progress)
      case 'lines':
        return this.#sayLine()
      case 'json':
        return this.#sayJson(progress)
      case 'none':
    }
  }

  /** Takes the bars away and gives the terminal its cursor back: before an answer is printed. */
  finish(): void {
    this.#multiBar?.stop()
    this.#multiBar = undefined
  }

  [Symbol.dispose](): void {
    this.finish()
  }

  #draw(progress: ItemProgress): void {
    this.#multiBar ??= new MultiBar({
      stream: this.#stream,
      format: '{item}  [{bar}] {percentage}%  {done} of {all}  {step}',
      barCompleteChar: '#',
      barIncompleteChar: '.',
      barsize: 24,
      fps: 10,
      hideCursor: true,
      clearOnComplete: true,
      // It would install its own handlers and end the process; main.ts unwinds instead.
      gracefulExit: false,
      autopadding: true,
    })
    const total = progress.totalBytes ?? UNKNOWN_TOTAL
    const payload = {
      item: progress.item,
      step: progress.step,
      done: formatBytes(progress.doneBytes),
      all: progress.totalBytes === undefined ? '?' : formatBytes(total),
    }
    const known = this.#bars.get(progress.item)
    if (known !== undefined) {
      known.setTotal(total)
      known.update(Math.min(progress.doneBytes, total), payload)
      return
    }
    const [oldest] = this.#bars
    if (this.#bars.size >= BARS_MAX && oldest !== undefined) {
      this.#multiBar.remove(oldest[1])
      this.#bars.delete(oldest[0])
    }
    const startAt = Math.min(progress.doneBytes, total)
    this.#bars.set(progress.item, this.#multiBar.create(total, startAt, payload))
  }

  #sayLine(): void {
    const now = this.#now()
    if (now - this.#lineAt < LINE_INTERVAL_MS) return
    this.#lineAt = now
    const items = [...this.#items.values()]
    const done = items.reduce((sum, { doneBytes }) => sum + doneBytes, 0)
    const total = items.reduce((sum, { totalBytes }) => sum + (totalBytes ?? 0), 0)
    const latest = items.findLast(({ doneBytes, totalBytes }) => doneBytes !== totalBytes)
    const where = latest === undefined ? '' : `; ${latest.item} ${latest.step}`
    this.#stream.write(
      `${formatBytes(done)} of ${formatBytes(total)}, ${formatRate(done, now - this.#startedAt)}${where}\n`,
    )
  }

  #sayJson(progress: ItemProgress): void {
    const now = this.#now()
    const isLast = progress.doneBytes === progress.totalBytes
    const before = this.#reportedAt.get(progress.item) ?? Number.NEGATIVE_INFINITY
    if (!isLast && now - before < JSON_INTERVAL_MS) return
    this.#reportedAt.set(progress.item, now)
    this.#stream.write(`${JSON.stringify(progress)}\n`)
  }
}
