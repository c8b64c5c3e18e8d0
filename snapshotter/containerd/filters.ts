import { RE2JS } from 're2js'
import { RequestError } from '../errors.ts'

/** The value of a field such as `['labels', 'containerd', 'io']`, or undefined if the object has none. */
export type FieldOf = (path: readonly string[]) => string | undefined

/** Does an object, known by its fields, pass? */
export type Filter = (field: FieldOf) => boolean

/** Filters of one List. 100: containerd itself sends one. */
const FILTERS_MAX = 100

/** Length of one filter, in UTF-16 units. 64 Ki: a name and a parent of the longest kind. */
const FILTER_LENGTH_MAX = 65_536

/** Length of a regular expression, in UTF-16 units. Matching is linear in its product with the value. */
const PATTERN_LENGTH_MAX = 1_024

/**
 * Parses the filters of a List in containerd's grammar (package pkg/filters): an object passes if any filter does, and
 * a filter if all its selectors do; without filters everything passes. A selector is `field`, `field==value`,
 * `field!=value` or `field~=pattern`, its field a dotted path, and names and values may be quoted as in Go.
 * Throws RequestError INVALID_ARGUMENT.
 */
export function parseFilters(filters: readonly string[]): Filter {
  if (filters.length > FILTERS_MAX) {
    throw invalid(`a List takes at most ${FILTERS_MAX} filters, not ${filters.length}`)
  }
  if (filters.length === 0) return () => true
  const parsed = filters.map(parseFilter)
  return (field) => parsed.some((filter) => filter(field))
}

function parseFilter(text: string): Filter {
  if (text.length > FILTER_LENGTH_MAX) {
    throw invalid(`a filter takes at most ${FILTER_LENGTH_MAX} characters, not ${text.length}`)
  }
  if (text === '') return () => true
  const scanner = new Scanner(text)
  const selectors = [parseSelector(scanner)]
  while (scanner.take(/,/y) !== undefined) selectors.push(parseSelector(scanner))
  scanner.expectEnd()
  return (field) => selectors.every((selector) => selector(field))
}

function parseSelector(scanner: Scanner): Filter {
  const path = [scanner.field()]
  while (scanner.take(/\./y) !== undefined) path.push(scanner.field())
  const operator = scanner.take(/==|!=|~=/y)
  if (operator === undefined) return (field) => field(path) !== undefined
  const value = scanner.value(operator === '~=' ? /["/|]/y : /"/y)
  if (operator === '==') return (field) => field(path) === value
  // A field that is absent reads as empty here, as it does in containerd.
  if (operator === '!=') return (field) => (field(path) ?? '') !== value
  const pattern = compile(value)
  return (field) => pattern.matcher(field(path) ?? '').find()
}

/** RE2, as in Go: what it matches is the same there, and no pattern takes more than linear time. */
function compile(pattern: string): RE2JS {
  if (pattern.length > PATTERN_LENGTH_MAX) {
    throw invalid(`a pattern takes at most ${PATTERN_LENGTH_MAX} characters, not ${pattern.length}`)
  }
  try {
    return RE2JS.compile(pattern)
  } catch (error) {
    throw invalid(`the pattern ${JSON.stringify(pattern)} is not one of RE2`, error)
  }
}

class Scanner {
  readonly #text: string
  #position = 0

  constructor(text: string) {
    this.#text = text
  }

  /** What `pattern`, which is sticky, matches here after white space, or undefined. */
  take(pattern: RegExp): string | undefined {
    this.#position += this.#match(/\s*/y)?.length ?? 0
    const taken = this.#match(pattern)
    this.#position += taken?.length ?? 0
    return taken
  }

  field(): string {
    if (this.#peek(/"/y)) return this.#quoted('"')
    return this.take(/[A-Za-z0-9_]+/y) ?? this.#fail('a field')
  }

  value(quotes: RegExp): string {
    const quote = this.#peek(quotes)
    if (quote !== undefined) return this.#quoted(quote)
    // A bare value that began with a separator, operator or quote would be read as one.
    return this.take(/(?![.,=!~"/|])[^\s,\p{C}]+/uy) ?? this.#fail('a value')
  }

  expectEnd(): void {
    this.take(/\s*/y)
    if (this.#position < this.#text.length) this.#fail('a comma or the end')
  }

  #peek(pattern: RegExp): string | undefined {
    this.take(/\s*/y)
    return this.#match(pattern)
  }

  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#position
    return pattern.exec(this.#text)?.[0]
  }

  #quoted(quote: string): string {
    const literal = this.take(QUOTED[quote] ?? /$./y) ?? this.#fail(`a closing ${quote}`)
    return this.#unquote(literal.slice(1, -1), quote)
  }

  /** The text of a literal, by Go's escapes. An octal or \x escape is one byte of UTF-8, not a character. */
  #unquote(literal: string, quote: string): string {
    const bytes: Uint8Array[] = []
    let end = 0
    for (const { 0: escape, index } of literal.matchAll(ESCAPE)) {
      bytes.push(Buffer.from(literal.slice(end, index)), this.#unescape(escape, quote))
      end = index + escape.length
    }
    bytes.push(Buffer.from(literal.slice(end)))
    try {
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(Buffer.concat(bytes))
    } catch {
      return this.#fail('text in UTF-8')
    }
  }

  #unescape(escape: string, quote: string): Uint8Array {
    const body = escape.slice(1)
    const simple = SIMPLE_ESCAPES[body] ?? (body === quote ? quote : undefined)
    if (simple !== undefined) return Buffer.from(simple)
    if (/^[0-7]{3}$/.test(body) && Number.parseInt(body, 8) < 256) {
      return Uint8Array.of(Number.parseInt(body, 8))
    }
    const [kind, digits] = [body.charAt(0), body.slice(1)]
    const code = Number.parseInt(digits, 16)
    if (kind === 'x' && digits.length === 2) return Uint8Array.of(code)
    const wide = (kind === 'u' && digits.length === 4) || (kind === 'U' && digits.length === 8)
    if (!wide || code > 0x10ffff) return this.#fail('an escape that Go knows')
    return Buffer.from(String.fromCodePoint(code))
  }

  #fail(expected: string): never {
    throw invalid(
      `filter ${JSON.stringify(this.#text)}: expected ${expected} at character ${this.#position}`,
    )
  }
}

const QUOTED: Readonly<Record<string, RegExp>> = {
  '"': /"(?:[^"\\\n]|\\.)*"/y,
  '/': /\/(?:[^/\\\n]|\\.)*\//y,
  '|': /\|(?:[^|\\\n]|\\.)*\|/y,
}

/** As many digits as the kind of escape takes, or fewer: too few of them are found out later. */
const ESCAPE = /\\(?:x[0-9a-fA-F]{0,2}|u[0-9a-fA-F]{0,4}|U[0-9a-fA-F]{0,8}|[0-7]{1,3}|.)/gsu

const SIMPLE_ESCAPES: Readonly<Record<string, string>> = {
  a: '\u0007',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
  v: '\v',
  '\\': '\\',
}

function invalid(sentence: string, cause?: unknown): RequestError {
  return new RequestError('INVALID_ARGUMENT', sentence, {}, cause)
}
