import {
  Composer,
  CST,
  type Document,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  LineCounter,
  type ParsedNode,
  Parser,
  visit,
} from 'yaml'
import { DeploymentFileError, formatField, type Problem } from '../deployment-file-error.ts'
import { DEPLOYMENT_LIMITS } from '../deployment-limits.ts'

/** Keys and indexes from the top of a file to one value. */
export type Path = readonly (string | number)[]

/** Where values stand in a file. */
export type Source = {
  /** Of the file, for people. */
  readonly path: string
  readonly value: unknown
  /** A problem with the value at `path`, or with what should be there. */
  problem(path: Path, message: string): Problem
  /** A problem with the key that `path` ends in. */
  keyProblem(path: Path, message: string): Problem
  /** A scalar as it was written: `1.10` is no 1.1. */
  written(path: Path): string | undefined
}

/** Maps and lists within each other. Twice what the format has. */
const DEPTH_MAX = 16

/** Entries of one map or list: what the longest of the format, an environment, may have, and room to say that it has too many. */
const ENTRIES_MAX = 1000

/** Of the whole file: 16 containers with 256 entries of environment and of arguments each, and as much again. */
const ENTRIES_ALL_MAX = 20_000

/** Aliases may not multiply: of all together, and of what one expands to. */
const ALIASES_MAX = 100

/** A YAML or JSON file, read with the places of its values. Only YAML's core schema; no tags, no merge keys. */
export class YamlSource implements Source {
  readonly path: string
  readonly value: unknown
  readonly #document: Document.Parsed
  readonly #lines: LineCounter

  private constructor(path: string, document: Document.Parsed, lines: LineCounter, value: unknown) {
    this.path = path
    this.value = value
    this.#document = document
    this.#lines = lines
  }

  /** Throws DeploymentFileError with everything that is no YAML, or more of it than a person writes. */
  static read(path: string, contents: string | Uint8Array): YamlSource {
    const text = textOf(path, contents)
    const lines = new LineCounter()
    const place = (offset: number): { line: number; column: number } => {
      const { line, col } = lines.linePos(Math.max(0, offset))
      return { line: Math.max(1, line), column: Math.max(1, col) }
    }
    const refuse = (message: string, offset: number): never => {
      throw new DeploymentFileError(path, [{ ...place(offset), field: '', message }])
    }
    const tokens: CST.Token[] = []
    for (const token of new Parser(lines.addNewLine).parse(text)) {
      tokens.push(token)
      // Before anything recursive, or quadratic in the number of keys, sees it.
      checkSize(token, refuse)
    }
    const composer = new Composer({
      schema: 'core',
      version: '1.2',
      merge: false,
      resolveKnownTags: false,
      stringKeys: true,
      uniqueKeys: true,
      strict: true,
      prettyErrors: false,
      logLevel: 'silent',
    })
    const documents = [...composer.compose(tokens, true, text.length)]
    const [document, second] = documents
    if (document === undefined) return refuse('is empty; it must have name: and containers:', 0)
    if (second !== undefined) {
      refuse('holds more than one document; write each pod into a file of its own', second.range[0])
    }
    const problems = [...document.errors, ...document.warnings].map((error): Problem => {
      return { ...place(error.pos[0]), field: '', message: sentenceOf(error) }
    })
    visit(document, {
      Alias(_, alias) {
        if (alias.resolve(document) !== undefined) return
        problems.push({
          ...place(alias.range?.[0] ?? 0),
          field: '',
          message: `there is no &${alias.source.slice(0, 80)} before this alias`,
        })
      },
      Scalar(_, { value, range }) {
        if (typeof value !== 'string') return
        const at = place(range?.[0] ?? 0)
        if (value === '__proto__') {
          problems.push({
            ...at,
            field: '',
            message: '__proto__ cannot be used; choose another word',
          })
        } else if (value.includes('\0') || !value.isWellFormed()) {
          problems.push({
            ...at,
            field: '',
            message:
              'has a character that no program can be given: NUL, or half of a surrogate pair',
          })
        }
      },
    })
    if (problems.length > 0) throw new DeploymentFileError(path, problems)
    let value: unknown
    try {
      value = document.toJS({ maxAliasCount: ALIASES_MAX })
    } catch (error) {
      return refuse(
        `its aliases cannot be resolved: ${error instanceof Error ? error.message : String(error)}`,
        0,
      )
    }
    return new YamlSource(path, document, lines, value)
  }

  problem(path: Path, message: string): Problem {
    for (let length = path.length; length > 0; length--) {
      const node = this.#nodeAt(path.slice(0, length))
      if (node === undefined) continue
      // What is missing is missing in the thing that a key names; an empty value has no place of its own.
      const isMissing = length < path.length || (isScalar(node) && node.value === null)
      const start = isMissing
        ? (this.#keyAt(path.slice(0, length))?.range[0] ?? node.range[0])
        : node.range[0]
      return { ...this.#place(start), field: formatField(path), message }
    }
    return {
      ...this.#place(this.#document.contents?.range[0] ?? 0),
      field: formatField(path),
      message,
    }
  }

  keyProblem(path: Path, message: string): Problem {
    const key = this.#keyAt(path)
    if (key === undefined) return this.problem(path, message)
    return { ...this.#place(key.range[0]), field: formatField(path), message }
  }

  written(path: Path): string | undefined {
    const node = this.#nodeAt(path)
    return isScalar(node) ? node.source : undefined
  }

  #place(offset: number): { line: number; column: number } {
    const { line, col } = this.#lines.linePos(offset)
    return { line: Math.max(1, line), column: Math.max(1, col) }
  }

  #nodeAt(path: Path): ParsedNode | undefined {
    let node: ParsedNode | undefined = this.#document.contents ?? undefined
    for (const step of path) {
      node = this.#resolved(node)
      const next: unknown = isMap(node) || isSeq(node) ? node.get(step, true) : undefined
      node = next === undefined ? undefined : (next as ParsedNode)
    }
    return node
  }

  #keyAt(path: Path): ParsedNode | undefined {
    const holder = this.#resolved(this.#nodeAt(path.slice(0, -1)))
    if (!isMap(holder)) return undefined
    const name = path.at(-1)
    const pair = holder.items.find(({ key }) => isScalar(key) && key.value === name)
    return pair?.key
  }

  #resolved(node: ParsedNode | undefined): ParsedNode | undefined {
    return isAlias(node) ? (node.resolve(this.#document) as ParsedNode | undefined) : node
  }
}

function textOf(path: string, contents: string | Uint8Array): string {
  const refuse = (message: string): never => {
    throw new DeploymentFileError(path, [{ field: '', message }])
  }
  const max = DEPLOYMENT_LIMITS.fileBytesMax
  const size =
    typeof contents === 'string' ? new TextEncoder().encode(contents).length : contents.length
  if (size > max) refuse(`has ${size} bytes, it may have ${max}`)
  if (typeof contents === 'string') return contents
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(contents)
  } catch {
    return refuse('is no text in UTF-8')
  }
}

/** Walks a token's tree without recursion, which deep nesting would turn against us. */
function checkSize(root: CST.Token, refuse: (message: string, offset: number) => never): void {
  let [entries, aliases] = [0, 0]
  const open: { token: CST.Token; depth: number }[] = [{ token: root, depth: 0 }]
  for (let next = open.pop(); next !== undefined; next = open.pop()) {
    const { token, depth } = next
    if (token.type === 'alias') aliases += 1
    if (aliases > ALIASES_MAX) refuse(`has more than ${ALIASES_MAX} aliases`, token.offset)
    if (token.type === 'document') {
      if (token.value !== undefined) open.push({ token: token.value, depth })
      continue
    }
    if (!CST.isCollection(token)) continue
    if (depth >= DEPTH_MAX)
      refuse(`has more than ${DEPTH_MAX} maps and lists within each other`, token.offset)
    entries += token.items.length
    if (token.items.length > ENTRIES_MAX)
      refuse(`has a map or list of more than ${ENTRIES_MAX} entries`, token.offset)
    if (entries > ENTRIES_ALL_MAX) refuse(`has more than ${ENTRIES_ALL_MAX} entries`, token.offset)
    for (const { key, value } of token.items) {
      if (key !== undefined && key !== null) open.push({ token: key, depth: depth + 1 })
      if (value !== undefined) open.push({ token: value, depth: depth + 1 })
    }
  }
}

function sentenceOf(error: { readonly code: string; readonly message: string }): string {
  switch (error.code) {
    case 'DUPLICATE_KEY':
      return 'this key is here twice; remove one of them'
    case 'TAG_RESOLVE_FAILED':
      return 'tags are not used here; write the value alone'
    case 'TAB_AS_INDENT':
      return 'is indented with a tab; use spaces'
    case 'NON_STRING_KEY':
      return 'a key must be a word; a line that begins with { or [ belongs into quotes'
    default:
      return `is no YAML: ${error.message}`
  }
}
