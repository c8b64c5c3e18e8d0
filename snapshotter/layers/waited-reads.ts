import type { WaitEvent } from '../blobs/lazy-layer.ts'
import type { LayerToc, TocEntry } from '../toc/layer-toc.ts'
import { layerOfInode } from './layer-places.ts'

/** Waits kept. 20,000 at about 100 bytes are 2 MB: some 40 cold starts of 500 waits each. */
const WAITS_MAX = 20_000

/** A read that had to wait for bytes, in the words of a person: which file of which layer. */
export type WaitedRead = {
  readonly layer: number
  /** Path in the layer, with a leading slash; undefined for bytes between files, such as tar headers. */
  readonly path: string | undefined
  /** In the layer file. */
  readonly offset: number
  readonly length: number
  /** Milliseconds since the epoch. */
  readonly startedMs: number
  readonly waitedMs: number
  readonly pid: number | undefined
  /** One sentence; undefined if the bytes came. */
  readonly error: string | undefined
}

/** What containers waited for, the newest so many of them. */
export class WaitedReads {
  readonly #tocOf: (layer: number) => Promise<LayerToc>
  readonly #waits: WaitEvent[] = []

  constructor(tocOf: (layer: number) => Promise<LayerToc>) {
    this.#tocOf = tocOf
  }

  add(wait: WaitEvent): void {
    this.#waits.push(wait)
    // In batches, so that each wait costs no copy of all.
    if (this.#waits.length > WAITS_MAX * 1.25) this.#waits.splice(0, this.#waits.length - WAITS_MAX)
  }

  /** The waits on some layers, or on all, oldest first. Tables of contents are read from disk and dropped again. */
  async list(layers?: ReadonlySet<number>): Promise<WaitedRead[]> {
    const byLayer = Map.groupBy(this.#waits, ({ inode }) => layerOfInode(inode))
    const reads: WaitedRead[] = []
    for (const [layer, waits] of byLayer) {
      if (layers !== undefined && !layers.has(layer)) continue
      const files = await this.#filesOf(layer)
      for (const wait of waits) reads.push(readOf(layer, wait, files))
    }
    return reads.toSorted((a, b) => a.startedMs - b.startedMs)
  }

  /** The file that a byte of a layer belongs to, for a log line. */
  async pathAt(layer: number, offset: number): Promise<string | undefined> {
    return pathAt(await this.#filesOf(layer), offset)
  }

  async #filesOf(layer: number): Promise<FileStart[]> {
    try {
      return fileStarts(await this.#tocOf(layer))
    } catch {
      return [] // The layer is gone; what was waited for is still worth telling.
    }
  }
}

type FileStart = { readonly start: number; readonly end: number; readonly path: string }

function fileStarts({ entries }: LayerToc): FileStart[] {
  return entries.flatMap(extentsOf).toSorted((a, b) => a.start - b.start)
}

function extentsOf({ path, extents = [] }: TocEntry): FileStart[] {
  // Names are bytes, one a character; people read them as UTF-8.
  const readable = `/${Buffer.from(path, 'latin1').toString('utf8')}`
  return extents.map(({ layerOffset, length }) => ({
    start: layerOffset,
    end: layerOffset + length,
    path: readable,
  }))
}

function pathAt(files: readonly FileStart[], offset: number): string | undefined {
  let [low, high] = [0, files.length]
  while (low < high) {
    const middle = (low + high) >>> 1
    if ((files[middle]?.start ?? 0) <= offset) low = middle + 1
    else high = middle
  }
  const file = files[low - 1]
  return file !== undefined && offset < file.end ? file.path : undefined
}

function readOf(layer: number, wait: WaitEvent, files: readonly FileStart[]): WaitedRead {
  const { error } = wait
  return {
    layer,
    path: pathAt(files, wait.offset),
    offset: wait.offset,
    length: wait.length,
    startedMs: wait.startedMs,
    waitedMs: wait.durationMs,
    pid: wait.pid,
    error: error === undefined ? undefined : sentenceOf(error),
  }
}

function sentenceOf(error: unknown): string {
  return error instanceof Error ? error.message : 'an unknown failure'
}
