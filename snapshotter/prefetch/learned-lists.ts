import { mkdir, readdir, readFile, rm, stat, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import { writeDurably } from '../layers/durable-file.ts'
import { decodePrefetchList, encodePrefetchList, type PrefetchList } from './prefetch-list.ts'

/** Lists kept. 512: a node has a hundred images with two lists each, at some 10 KiB a list. */
const LISTS_MAX = 512

/** And bytes of them, in all. 64 MiB: that many at an eighth of the largest list. */
const BYTES_MAX = 64 * 1024 ** 2

/** Who made a list: this node, from a start that it saw, another node of its cluster, or whoever published the image. */
export type ListOrigin = 'learned' | 'peer' | 'published'

type Kept = { readonly name: string; readonly usedMs: number; readonly bytes: number }

/**
 * Prefetch lists on this node's disk: learned ones, here or on a peer, by the chain ID of the image's top layer, which names the
 * bytes of all layers, published ones by the root CID and manifest digest of the image.
 */
export class LearnedLists {
  readonly #dir: string
  /** Diff IDs of the layers of each list, read once. */
  readonly #layers = new Map<string, ReadonlySet<string>>()

  private constructor(dir: string) {
    this.#dir = dir
  }

  /** Opens the lists in `dir`, which is made if it is not there. */
  static async open(dir: string): Promise<LearnedLists> {
    await mkdir(dir, { recursive: true, mode: 0o700 })
    return new LearnedLists(dir)
  }

  /** The list of an image; undefined if there is none. One that is damaged is deleted. */
  async get(image: string, origin: ListOrigin): Promise<PrefetchList | undefined> {
    const name = fileName(image, origin)
    const list = await this.#read(name)
    const now = new Date()
    if (list !== undefined) await utimes(join(this.#dir, name), now, now)
    return list
  }

  /** Keeps a list in place of the one before; the ones not used for longest go. */
  async keep(image: string, origin: ListOrigin, list: PrefetchList): Promise<void> {
    const name = fileName(image, origin)
    await writeDurably(join(this.#dir, name), encodePrefetchList(list))
    this.#layers.set(name, diffIdsOf(list))
    await this.#dropOldest()
  }

  /**
   * The list of the image that has most layers in common with one of these diff IDs, and was used last: an image that was
   * built anew shares its lower layers with the one before. Undefined if none has any.
   */
  async nearest(diffIds: readonly string[]): Promise<PrefetchList | undefined> {
    let best: { readonly name: string; readonly shared: number } | undefined
    for (const { name } of await this.#list()) {
      const layers = this.#layers.get(name) ?? diffIdsOf(await this.#read(name))
      this.#layers.set(name, layers)
      const shared = diffIds.filter((diffId) => layers.has(diffId)).length
      if (shared > (best?.shared ?? 0)) best = { name, shared }
    }
    return best && this.#read(best.name)
  }

  async #read(name: string): Promise<PrefetchList | undefined> {
    const path = join(this.#dir, name)
    try {
      return decodePrefetchList(await readFile(path))
    } catch {
      // It is not there, or damaged, or of another version: the next start makes another.
      this.#layers.delete(name)
      await rm(path, { force: true })
      return undefined
    }
  }

  /** The lists that are here, the one used last first. */
  async #list(): Promise<Kept[]> {
    const kept: Kept[] = []
    for (const name of await readdir(this.#dir)) {
      const found = await stat(join(this.#dir, name)).catch(() => undefined)
      if (found !== undefined) kept.push({ name, usedMs: found.mtimeMs, bytes: found.size })
    }
    return kept.toSorted((a, b) => b.usedMs - a.usedMs)
  }

  async #dropOldest(): Promise<void> {
    let bytes = 0
    for (const [position, { name, bytes: own }] of (await this.#list()).entries()) {
      bytes += own
      if (position < LISTS_MAX && bytes <= BYTES_MAX) continue
      this.#layers.delete(name)
      await rm(join(this.#dir, name), { force: true })
    }
  }
}

/** CIDs and digests are checked long before they come here; no other character gets into a file name. */
function fileName(image: string, origin: ListOrigin): string {
  return `${image.replace(/[^a-z0-9]/g, '-')}.${origin}`
}

function diffIdsOf(list: PrefetchList | undefined): ReadonlySet<string> {
  return new Set(list?.layers.map(({ diffId }) => diffId))
}
