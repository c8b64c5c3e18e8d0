/** What was done last, by name: what needs no repetition within a while. */
export class OnceAWhile {
  readonly #whileMs: number
  readonly #namesMax: number
  readonly #doneAt = new Map<string, number>()

  /** `namesMax` are remembered, the youngest. */
  constructor(whileMs: number, namesMax: number) {
    this.#whileMs = whileMs
    this.#namesMax = namesMax
  }

  /** Whether to do it: it was not done within the while. It counts as done from now on. */
  begin(name: string): boolean {
    const last = this.#doneAt.get(name)
    if (last !== undefined && performance.now() - last < this.#whileMs) return false
    this.note(name)
    return true
  }

  /** It is done now, by whatever way. */
  note(name: string): void {
    // Set anew, it is the youngest.
    this.#doneAt.delete(name)
    this.#doneAt.set(name, performance.now())
    const [oldest] = this.#doneAt.keys()
    if (this.#doneAt.size > this.#namesMax) this.#doneAt.delete(oldest ?? '')
  }
}
