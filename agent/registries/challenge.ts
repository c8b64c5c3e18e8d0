import { RegistryError } from '../../snapshotter/errors.ts'

/** One way in that a registry offers in WWW-Authenticate (RFC 9110, section 11.6.1). Names are in lower case. */
export type Challenge = {
  readonly scheme: string
  readonly parameters: ReadonlyMap<string, string>
}

/** Longest header read, in characters. 8 KiB: what HTTP servers accept of a whole header block. */
const HEADER_CHARS_MAX = 8 * 1024

/** tchar of RFC 9110; `=` ends a parameter's name, and token68 is told apart by what follows it. */
const TOKEN = /[!#$%&'*+\-.^_`|~0-9A-Za-z]+/y
const TOKEN68 = /[A-Za-z0-9\-._~+/]+=*(?=\s*(?:,|$))/y
const QUOTED = /"((?:[^"\\]|\\[^\r\n])*)"/y
const SPACE = /[ \t]*/y

/**
 * Reads the challenges of a WWW-Authenticate header, which may hold several and come several times. Throws RegistryError
 * INVALID_ARGUMENT for what is not one; `who` names the registry.
 */
export function parseChallenges(
  header: string | readonly string[] | undefined,
  who: string,
): Challenge[] {
  const headers = typeof header === 'string' ? [header] : (header ?? [])
  return headers.flatMap((text) => new ChallengeText(text, who).read())
}

class ChallengeText {
  readonly #text: string
  readonly #who: string
  #at = 0

  constructor(text: string, who: string) {
    this.#text = text
    this.#who = who
    if (text.length > HEADER_CHARS_MAX) throw this.#broken()
  }

  read(): Challenge[] {
    const challenges: Challenge[] = []
    this.#skipCommas()
    while (this.#at < this.#text.length) {
      challenges.push(this.#challenge())
      this.#skipCommas()
    }
    return challenges
  }

  #challenge(): Challenge {
    const scheme = this.#expect(TOKEN).toLowerCase()
    const parameters = new Map<string, string>()
    if (this.#take(SPACE) === '') return { scheme, parameters }
    // Credentials in one word, as Negotiate has them, say nothing to us.
    if (this.#take(TOKEN68) !== undefined) return { scheme, parameters }
    for (;;) {
      this.#skipCommas()
      const start = this.#at
      const name = this.#take(TOKEN)?.toLowerCase()
      this.#take(SPACE)
      if (name === undefined || this.#text[this.#at] !== '=') {
        // The next scheme, or the end.
        this.#at = start
        return { scheme, parameters }
      }
      this.#at += 1
      this.#take(SPACE)
      const value = this.#value()
      if (parameters.has(name)) throw this.#broken()
      parameters.set(name, value)
      this.#take(SPACE)
      if (this.#at < this.#text.length && this.#text[this.#at] !== ',') throw this.#broken()
    }
  }

  #value(): string {
    if (this.#text[this.#at] !== '"') return this.#expect(TOKEN)
    return this.#expect(QUOTED).slice(1, -1).replaceAll(/\\(.)/g, '$1')
  }

  #skipCommas(): void {
    this.#take(SPACE)
    while (this.#text[this.#at] === ',') {
      this.#at += 1
      this.#take(SPACE)
    }
  }

  #expect(pattern: RegExp): string {
    const found = this.#take(pattern)
    if (found === undefined) throw this.#broken()
    return found
  }

  #take(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at
    const found = pattern.exec(this.#text)?.[0]
    if (found !== undefined) this.#at += found.length
    return found
  }

  #broken(): RegistryError {
    return new RegistryError(
      'INVALID_ARGUMENT',
      `${this.#who} asks for credentials in a way that cannot be read (WWW-Authenticate, at character ${this.#at})`,
    )
  }
}
