import type { BlobStore } from '../blobs/blob-store.ts'
import type { Log } from '../log.ts'
import type { LayerRecord } from './catalog.ts'
import { fuseInode } from './layer-places.ts'

type Parts = {
  readonly store: BlobStore
  /** As `Layers.fetchWhole`. */
  readonly fetchWhole: (record: LayerRecord, signal: AbortSignal) => Promise<void>
  readonly log: Log
}

/**
 * Fetches what is missing of layers, one at a time and behind everything that somebody waits for: of images that run, so that their
 * containers come to need neither network nor agent, and of layers that were read for the most part. One that cannot be had is tried again when a container next starts on it;
 * one that would push others out of the store is left as it is.
 */
export class RestFetcher implements AsyncDisposable {
  readonly #bytesMax: number
  readonly #parts: Parts
  readonly #closing = new AbortController()
  readonly #waiting = new Map<number, LayerRecord>()
  #working: Promise<void> | undefined

  constructor({ bytesMax }: { readonly bytesMax: number }, parts: Parts) {
    this.#bytesMax = bytesMax
    this.#parts = parts
  }

  /** A container starts on these layers. Returns at once. */
  add(layers: readonly LayerRecord[]): void {
    if (this.#closing.signal.aborted) return
    for (const record of layers) {
      const file = this.#parts.store.get(fuseInode(record.id))?.file
      if (file !== undefined && !file.isComplete) this.#waiting.set(record.id, record)
    }
    this.#working ??= this.#work().finally(() => {
      this.#working = undefined
    })
  }

  /** What has arrived is kept. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort()
    await this.#working
  }

  async #work(): Promise<void> {
    const { log } = this.#parts
    const { signal } = this.#closing
    for (let next = this.#next(); next !== undefined; next = this.#next()) {
      const { id, blobDigest: layer } = next
      try {
        if (!(await this.#fits(next))) continue
        await this.#parts.fetchWhole(next, signal)
        log.info({ layer }, `the rest of layer ${layer} is here`)
      } catch (error) {
        if (signal.aborted) return
        const reason = error instanceof Error ? error.message : String(error)
        log.warn({ layer, id, reason }, `the rest of layer ${layer} is not here: ${reason}`)
      }
    }
  }

  #next(): LayerRecord | undefined {
    if (this.#closing.signal.aborted) return undefined
    const [entry] = this.#waiting
    if (entry === undefined) return undefined
    this.#waiting.delete(entry[0])
    return entry[1]
  }

  async #fits({ id, blobDigest: layer, layerSize }: LayerRecord): Promise<boolean> {
    const { store, log } = this.#parts
    const file = store.get(fuseInode(id))?.file
    if (file === undefined || file.isComplete) return false
    const missing = layerSize - file.presentBytes
    if ((await store.diskBytes()) + missing <= this.#bytesMax) return true
    log.info(
      { layer, missing, bytesMax: this.#bytesMax },
      `the rest of layer ${layer}, ${missing} bytes, is not fetched: others would have to go from the store for it`,
    )
    return false
  }
}
