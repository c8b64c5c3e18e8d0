import type { BlockMemory } from './block-source.ts'

/** Memory kept for what comes next, in bytes. 16 MiB: what is decoded at once by four threads, eight times over. */
const KEPT_BYTES_MAX = 16 * 1024 * 1024

/** Sizes of buffers, four between one power of two and the next: from 64 KiB, below which V8 takes them from its own heap soon enough, to the largest unit that `ipdr push` writes. */
const LEAST_BYTES = 64 * 1024
const MOST_BYTES = 8 * 1024 * 1024

/** Without work for so long, all of it is given back, in ms. 5 s: as `whenAtRest`. */
const IDLE_MS = 5_000

/**
 * Memory that blocks are received in and units are decoded into, one after another. A new buffer for each costs more than hashing
 * it: V8 collects garbage for every few of them.
 */
export class ReusedMemory implements BlockMemory, Disposable {
  readonly #kept = new Map<number, Uint8Array[]>()
  /** What was taken and has not come back, by its memory. */
  readonly #taken = new WeakMap<ArrayBufferLike, Uint8Array>()
  #keptBytes = 0
  #idle: NodeJS.Timeout | undefined

  take(bytes: number): Uint8Array {
    const size = sizeFor(bytes)
    if (size === undefined) return Buffer.allocUnsafeSlow(bytes)
    const whole = this.#takeWhole(size)
    this.#taken.set(whole.buffer, whole)
    return whole.subarray(0, bytes)
  }

  giveBack({ buffer }: Uint8Array): void {
    const whole = this.#taken.get(buffer)
    // Twice would lend it to two.
    if (whole !== undefined && this.#taken.delete(buffer)) this.#keep(whole)
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#idle)
    this.#idle = undefined
    this.#kept.clear()
    this.#keptBytes = 0
  }

  #takeWhole(size: number): Uint8Array {
    const whole = this.#kept.get(size)?.pop()
    if (whole === undefined) return Buffer.allocUnsafeSlow(size)
    this.#keptBytes -= size
    return whole
  }

  #keep(whole: Uint8Array): void {
    if (this.#keptBytes + whole.length > KEPT_BYTES_MAX) return
    const kept = this.#kept.get(whole.length)
    if (kept === undefined) this.#kept.set(whole.length, [whole])
    else kept.push(whole)
    this.#keptBytes += whole.length
    this.#idle ??= setTimeout(() => this[Symbol.dispose](), IDLE_MS).unref()
    this.#idle.refresh()
  }
}

function sizeFor(bytes: number): number | undefined {
  if (bytes > MOST_BYTES) return undefined
  if (bytes <= LEAST_BYTES) return LEAST_BYTES
  // Of the largest power of two below it.
  const step = 2 ** Math.floor(Math.log2(bytes - 1)) / 4
  return Math.ceil(bytes / step) * step
}
