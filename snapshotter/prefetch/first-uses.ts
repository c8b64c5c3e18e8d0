import type { ByteRange } from '../byte-range.ts'

/** What is noted alone, in bytes: the grid of a tar, on which contents lie. */
const GRID_BYTES = 512

/** Bytes of a layer file that were read. */
export type LayerRange = ByteRange & { readonly layer: number }

/** The first use of each byte, in order: what was read before is not noted again. */
export class FirstUses {
  readonly #bytesMax: number
  readonly #rangesMax: number
  readonly #ranges: { layer: number; start: number; end: number }[] = []
  /** Of each layer, 32 grid cells a number: memory goes with what is read, not with what the layer has. */
  readonly #read = new Map<number, Map<number, number>>()
  #bytes = 0

  /** Notes at most so many bytes and ranges; what comes after is passed over. */
  constructor({ bytesMax, rangesMax }: { bytesMax: number; rangesMax: number }) {
    this.#bytesMax = bytesMax
    this.#rangesMax = rangesMax
  }

  get ranges(): readonly LayerRange[] {
    return this.#ranges
  }

  get bytes(): number {
    return this.#bytes
  }

  /** Whether nothing more will be noted. */
  get isFull(): boolean {
    return this.#bytes >= this.#bytesMax || this.#ranges.length >= this.#rangesMax
  }

  /** Notes a read; answers whether a byte of it was new. */
  add({ layer, start, end }: LayerRange): boolean {
    let isNew = false
    let cells = this.#read.get(layer)
    if (cells === undefined) this.#read.set(layer, (cells = new Map()))
    for (let at = start - (start % GRID_BYTES); at < end && !this.isFull; at += GRID_BYTES) {
      const cell = at / GRID_BYTES
      const word = Math.floor(cell / 32)
      const bit = 1 << (cell % 32)
      const bits = cells.get(word) ?? 0
      if ((bits & bit) !== 0) continue
      cells.set(word, bits | bit)
      isNew = true
      this.#append(layer, Math.max(at, start), Math.min(at + GRID_BYTES, end))
    }
    return isNew
  }

  #append(layer: number, start: number, end: number): void {
    this.#bytes += end - start
    const last = this.#ranges.at(-1)
    if (last?.layer === layer && last.end === start) last.end = end
    else this.#ranges.push({ layer, start, end })
  }
}
