import { styleText } from 'node:util'

type Style = Parameters<typeof styleText>[0]

export type OutputFormat = 'text' | 'json'

/** Standard output. As JSON it holds documents and nothing else; as text what a person wants to read. */
export class Output {
  readonly format: OutputFormat
  /** Say only what was asked for. */
  readonly quiet: boolean
  readonly #stream: NodeJS.WriteStream

  constructor(options: { format: OutputFormat; quiet: boolean; stream: NodeJS.WriteStream }) {
    this.format = options.format
    this.quiet = options.quiet
    this.#stream = options.stream
  }

  /** Columns of the terminal; undefined where it is none, and nothing has to fit. */
  get columns(): number | undefined {
    return this.#stream.isTTY ? this.#stream.columns : undefined
  }

  /** The command's one answer: sizes in bytes and times in ms in `document`, in words in `text`. */
  answer(document: object, text: () => string): void {
    if (this.format === 'json') this.#line(JSON.stringify(document, null, 2))
    else this.#line(text())
  }

  /** One of several answers: a document a line, or, on a terminal, what replaces the answer before it. */
  refresh(document: object, text: () => string): void {
    if (this.format === 'json') return this.#line(JSON.stringify(document))
    // ED and CUP (ECMA-48 8.3.39 and 8.3.21): clear the screen, go to its top left.
    this.#line(this.#stream.isTTY ? `\u001b[2J\u001b[H${text()}` : text())
  }

  /** One of a stream of answers, which all stay: a document a line, or a line of text. */
  line(document: object, text: () => string): void {
    this.#line(this.format === 'json' ? JSON.stringify(document) : text())
  }

  /** `text` in a style, where the stream is a terminal and neither NO_COLOR nor the like objects. */
  style(style: Style, text: string): string {
    return styleText(style, text, { stream: this.#stream })
  }

  #line(text: string): void {
    this.#stream.write(`${text}\n`)
  }
}
