import { readFile } from 'node:fs/promises'
import { CID } from 'multiformats/cid'
import type { BlobStore } from '../blobs/blob-store.ts'
import type { LazyLayer } from '../blobs/lazy-layer.ts'
import type { BlockSource } from '../block-source.ts'
import type { ClusterPeers } from '../cluster-peers.ts'
import { CodedError, LayerError } from '../errors.ts'
import type { Catalog, ImageLayer, LayerRecord } from '../layers/catalog.ts'
import { fuseInode, type LayerPlaces } from '../layers/layer-places.ts'
import type { TableThread } from '../layers/table-thread.ts'
import type { Log } from '../log.ts'
import type { Digest } from '../oci/digest.ts'
import { layerChainIds } from '../oci/layer-chain-id.ts'
import type { LayerRange } from './first-uses.ts'
import { LearnedLists } from './learned-lists.ts'
import { OnceAWhile } from './once-a-while.ts'
import { placeRanges, sameLayers } from './place-ranges.ts'
import {
  decodePrefetchList,
  type ListedLayer,
  type ListedRange,
  listTotals,
  type PrefetchList,
} from './prefetch-list.ts'
import { PrefetchedUnits } from './prefetched-units.ts'
import { readPublishedList } from './published-list.ts'
import { REPLAY_BYTES_MAX, type ReplayBudget, type Replayed, replayRanges } from './replay-list.ts'
import { LEARNED_BYTES_MAX, type Recording, type StartRecorder } from './start-recorder.ts'

/** A start within this after a replay needs none: what was evicted since is little. In ms. */
const REPLAYED_MS = 60_000

/** An image's directory that had no list which can be used is not asked for one again within this, in ms: a pull asks with each layer. */
const ASKED_MS = 60_000

/** A start that read less than this share of what an earlier one did is not learned from: it failed, or was stopped. */
const LEARNED_SHARE_MIN = 0.5

/** Images of which that is remembered; more than start in a minute. */
const IMAGES_REMEMBERED = 256

type Parts = {
  readonly catalog: Pick<Catalog, 'imagesWithChain'>
  readonly store: BlobStore
  readonly blocks: BlockSource
  readonly tables: TableThread
  readonly places: LayerPlaces
  /** Undefined where nothing is mounted lazily: then nothing is recorded. */
  readonly recorder: StartRecorder | undefined
  readonly peers: ClusterPeers | undefined
  readonly log: Log
}

/** What is done with prefetch lists. */
export type PrefetchConfig = {
  /** Fetch what they name. */
  readonly replay: boolean
  /** Learn them from starts. */
  readonly learn: boolean
}

/** Lists are learned, and used. */
export const PREFETCH_ALL: PrefetchConfig = { replay: true, learn: true }

type Config = PrefetchConfig & {
  readonly dir: string
  readonly storeBytesMax: number
}

/** What of lists was found in an image, and how many ranges were not. */
type FoundRanges = { readonly ranges: readonly LayerRange[]; readonly dropped: number }

/**
 * Learns from real starts what an image reads first, and fetches that before it is read when the image starts again: from the
 * list that this node learned, from the one that was published with the image, or from that of an image much like it.
 */
export class Prefetcher implements AsyncDisposable {
  readonly #lists: LearnedLists
  readonly #config: Config
  readonly #parts: Parts
  readonly #closing = new AbortController()
  readonly #units = new PrefetchedUnits()
  readonly #working = new Set<Promise<void>>()
  /** Images that are being pulled, by the blobs of their layers. */
  readonly #pulls = new Set<string>()
  /** Images, named by their layers' ids. */
  readonly #replayed = new OnceAWhile(REPLAYED_MS, IMAGES_REMEMBERED)
  /** Images, named by root and manifest. */
  readonly #asked = new OnceAWhile(ASKED_MS, IMAGES_REMEMBERED)

  private constructor(lists: LearnedLists, config: Config, parts: Parts) {
    this.#lists = lists
    this.#config = config
    this.#parts = parts
  }

  /** Opens what was learned before. Rejects with what the disk says. */
  static async open(config: Config, parts: Parts): Promise<Prefetcher> {
    return new Prefetcher(await LearnedLists.open(config.dir), config, parts)
  }

  /** Bytes of layer files that were prefetched since the start, and of those the ones read since. */
  counters(): { fetchedBytes: number; usedBytes: number } {
    return this.#units.counters()
  }

  /**
   * An image is being pulled, of these layers, bottom first, each of which can be mounted once it is `ready`: begins to fetch what a
   * start will read, of one layer while another is still worked on; returns at once. Only now is the image's directory asked for a list.
   */
  replayPull(layers: readonly ImageLayer[], ready: readonly Promise<LayerRecord>[]): void {
    if (!this.#isWanted) return
    const name = layers.map(({ blobCid }) => blobCid).join(' ')
    // containerd asks for one layer after the other.
    if (this.#pulls.has(name)) return
    this.#pulls.add(name)
    this.#work(layers, 'was not prefetched for', () =>
      this.#replayPull(layers, ready).finally(() => this.#pulls.delete(name)),
    )
  }

  /** Begins to fetch what a start of the image with these layers, bottom first, will read; returns at once. No peer is asked for a list. */
  replay(layers: readonly LayerRecord[]): void {
    if (!this.#isWanted || !this.#replayed.begin(nameOf(layers))) return
    this.#work(layers, 'was not prefetched for', async () => {
      const lists = await this.#listsOf(layers, chainIdOf(layers), { isPull: false })
      const found = await this.#placeAll(lists, layers)
      const startedAt = performance.now()
      const replayed = await this.#fetch(found.ranges, layers, this.#budget())
      this.#tell(layers, { found, replayed: [replayed], startedAt })
    })
  }

  get #isWanted(): boolean {
    return this.#config.replay && !this.#closing.signal.aborted
  }

  /**
   * Begins to learn what the image with these layers reads. `cold` are those mounted just now: nothing of them is in the page
   * cache, so that all that is read of them is seen. Returns at once.
   */
  learn(layers: readonly LayerRecord[], cold: ReadonlySet<number>): void {
    const { recorder } = this.#parts
    if (
      !this.#config.learn ||
      recorder === undefined ||
      cold.size === 0 ||
      this.#closing.signal.aborted
    )
      return
    const recording = recorder.record({
      layers: new Set(layers.map(({ id }) => id)),
      isBounded: true,
      bytesMax: LEARNED_BYTES_MAX,
    })
    this.#work(layers, 'was not learned from a start of', () =>
      this.#learn(layers, cold, recording),
    )
  }

  /** Names what a recording has seen of these layers, bottom first. */
  async name(layers: readonly LayerRecord[], { uses }: Recording): Promise<PrefetchList> {
    const positions = new Map(layers.map(({ id }, position) => [id, position]))
    const ranges = uses.ranges.flatMap(({ layer, start, end }) => {
      const position = positions.get(layer)
      return position === undefined ? [] : [{ layer: position, start, end }]
    })
    const { list } = await this.#parts.tables.list({
      kind: 'name',
      layers: await this.#withTables(layers),
      ranges,
    })
    return list
  }

  /** What this node learned of the image with this chain ID, for others; undefined if nothing. */
  async learned(layerChainId: string): Promise<PrefetchList | undefined> {
    return this.#lists.get(layerChainId, 'learned')
  }

  /** Stops what is being fetched and recorded, and waits for its end. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort()
    this.#parts.recorder?.[Symbol.dispose]()
    await Promise.all(this.#working)
  }

  /** In the background of everything: its failure is a sentence in the log. */
  #work(
    layers: readonly { readonly blobDigest: string }[],
    what: string,
    work: () => Promise<void>,
  ): void {
    const done = work()
      .catch((error: unknown) => {
        if (this.#closing.signal.aborted) return
        const image = layers.at(-1)?.blobDigest
        const reason = error instanceof Error ? error.message : String(error)
        this.#parts.log.warn({ image }, `a list ${what} the image on layer ${image}: ${reason}`)
      })
      .finally(() => this.#working.delete(done))
    this.#working.add(done)
  }

  async #replayPull(
    layers: readonly ImageLayer[],
    ready: readonly Promise<LayerRecord>[],
  ): Promise<void> {
    const chainId = layers.at(-1)?.layerChainId
    if (chainId === undefined) return
    // Noted before anything starts on them; whoever pulls hears of one that cannot be mounted.
    const all = Promise.all(ready).then(
      (records) => {
        this.#replayed.note(nameOf(records))
        return records
      },
      () => undefined,
    )
    const lists = await this.#listsOf(layers, chainId, { isPull: true })
    const [budget, startedAt] = [this.#budget(), performance.now()]
    const early = await Promise.allSettled(
      ready.map(async (each) => {
        const layer = await each
        const ranges = lists.flatMap((list) => rangesIn(list, layer))
        return this.#fetch(ranges, [layer], budget)
      }),
    )
    const records = await all
    if (records === undefined) return
    // What lies elsewhere than in the image of the list: its tables say where.
    const found = await this.#placeAll(lists, records)
    const late = await this.#fetch(found.ranges, records, budget)
    const replayed = early.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))
    this.#tell(layers, { found, replayed: [...replayed, late], startedAt })
  }

  /** A quarter of the store at most: prefetching must not evict what others use. */
  #budget(): ReplayBudget {
    return { bytesLeft: Math.min(REPLAY_BYTES_MAX, this.#config.storeBytesMax / 4) }
  }

  #fetch(
    ranges: readonly LayerRange[],
    layers: readonly LayerRecord[],
    budget: ReplayBudget,
  ): Promise<Replayed> {
    return replayRanges(ranges, {
      layers: this.#held(layers),
      budget,
      signal: this.#closing.signal,
      onUnit: (layer, unit) => this.#units.add(layer, unit),
    })
  }

  #tell(
    layers: readonly { readonly blobDigest: string }[],
    {
      found: { ranges, dropped },
      replayed,
      startedAt,
    }: {
      readonly found: FoundRanges
      readonly replayed: readonly Replayed[]
      readonly startedAt: number
    },
  ): void {
    const sum = (count: (one: Replayed) => number): number =>
      replayed.reduce((total, one) => total + count(one), 0)
    const [units, bytes, failed] = [sum((a) => a.units), sum((a) => a.bytes), sum((a) => a.failed)]
    // All of it was here: a start like most.
    if (units + failed === 0) return
    const image = layers.at(-1)?.blobDigest
    const ms = Math.round(performance.now() - startedAt)
    this.#parts.log.info(
      { image, ranges: ranges.length, dropped, units, bytes, failed, ms },
      `prefetched ${bytes} bytes for the image on layer ${image}, by a list of ${ranges.length} ranges`,
    )
    if (failed === 0) return
    const first = replayed.find((one) => one.failed > 0)
    throw new LayerError(
      'UNAVAILABLE',
      `${failed} units failed, the first because ${sentenceOf(first?.reason)}`,
    )
  }

  /**
   * What this node saw comes first, then what the publisher saw; where there is neither, what a peer of this cluster saw, or what an
   * image much like it read.
   */
  async #listsOf(
    layers: readonly { readonly diffId: string }[],
    chainId: string,
    { isPull }: { readonly isPull: boolean },
  ): Promise<PrefetchList[]> {
    const learned = await this.#lists.get(chainId, 'learned')
    const published = await this.#published(chainId, isPull)
    const own = [learned, published].filter((list) => list !== undefined)
    if (own.length > 0) return own
    const other =
      (await this.#ofPeers(chainId)) ??
      (await this.#lists.nearest(layers.map(({ diffId }) => diffId)))
    return other === undefined ? [] : [other]
  }

  async #placeAll(
    lists: readonly PrefetchList[],
    layers: readonly LayerRecord[],
  ): Promise<FoundRanges> {
    const found = await Promise.all(lists.map((list) => this.#place(list, layers)))
    return {
      ranges: found.flatMap(({ ranges }) => ranges),
      dropped: found.reduce((sum, { dropped }) => sum + dropped, 0),
    }
  }

  /** The list in the directory of the image seen last: asked for once and kept, so that later starts need no peer. */
  async #published(chainId: string, isPull: boolean): Promise<PrefetchList | undefined> {
    const { catalog, blocks, log } = this.#parts
    const [image] = catalog.imagesWithChain(chainId)
    // In a registry, nothing lies beside an image.
    if (image === undefined || image.reference !== undefined) return undefined
    const { rootCid, manifestDigest } = image
    const name = `${rootCid}-${manifestDigest}`
    const kept = await this.#lists.get(name, 'published')
    if (kept !== undefined || !isPull || !this.#asked.begin(name)) return kept
    const request = { priority: 'prefetch', signal: this.#closing.signal } as const
    try {
      const list = await readPublishedList(CID.parse(rootCid), manifestDigest, blocks, request)
      if (list !== undefined) await this.#lists.keep(name, 'published', list)
      return list
    } catch (error) {
      if (this.#closing.signal.aborted) throw error
      log.warn(
        { image: rootCid, manifest: manifestDigest },
        `the prefetch list of image ${rootCid} is not used: ${sentenceOf(error)}`,
      )
      return undefined
    }
  }

  /** The list that a peer learned of the same layers, kept: it is a hint from a friend, and checked as one from a stranger. */
  async #ofPeers(chainId: string): Promise<PrefetchList | undefined> {
    const { peers, log } = this.#parts
    const kept = await this.#lists.get(chainId, 'peer')
    if (kept !== undefined || peers === undefined) return kept
    const found = await peers.prefetchList(chainId, this.#closing.signal)
    if (found === undefined) return undefined
    try {
      const list = decodePrefetchList(found.bytes)
      await this.#lists.keep(chainId, 'peer', list)
      return list
    } catch (error) {
      if (!(error instanceof CodedError)) throw error
      const sentence = `the prefetch list from ${found.peer} is not used: ${error.message}`
      log.warn({ chainId, peer: found.peer }, sentence)
      return undefined
    }
  }

  async #place(list: PrefetchList, layers: readonly LayerRecord[]): Promise<FoundRanges> {
    const listed = layers.map(asListed)
    const used = new Set(list.ranges.map(({ layer }) => layer))
    const positions = sameLayers(list, listed)
    // Tables of contents are only read where a file must be looked up in them.
    if ([...used].every((layer) => positions[layer] !== undefined)) {
      return placeRanges(list, listed)
    }
    const { tables } = this.#parts
    const withTables = await this.#withTables(layers)
    const { placed } = await tables.list({ kind: 'place', list, layers: withTables })
    return placed
  }

  async #learn(
    layers: readonly LayerRecord[],
    cold: ReadonlySet<number>,
    recording: Recording,
  ): Promise<void> {
    await recording.ended
    if (recording.uses.ranges.length === 0) return
    const seen = await this.name(layers, recording)
    const chainId = chainIdOf(layers)
    const own = await this.#lists.get(chainId, 'learned')
    const before = own ?? (await this.#lists.nearest(layers.map(({ diffId }) => diffId)))
    const list = withKnown(
      seen,
      before,
      layers.map(({ id }) => cold.has(id)),
    )
    if (own !== undefined && listTotals(list).bytes < listTotals(own).bytes * LEARNED_SHARE_MIN)
      return
    await this.#lists.keep(chainId, 'learned', list)
    this.#parts.log.info(
      { image: layers.at(-1)?.blobDigest, ranges: seen.ranges.length, bytes: recording.uses.bytes },
      `learned what a start of the image on layer ${layers.at(-1)?.blobDigest} reads: ${recording.uses.bytes} bytes`,
    )
  }

  #held(layers: readonly LayerRecord[]): Map<number, LazyLayer> {
    const held = new Map<number, LazyLayer>()
    for (const [position, { id }] of layers.entries()) {
      const layer = this.#parts.store.get(fuseInode(id))
      if (layer !== undefined) held.set(position, layer)
    }
    return held
  }

  #withTables(
    layers: readonly LayerRecord[],
  ): Promise<(ListedLayer & { readonly toc: Uint8Array })[]> {
    const { places } = this.#parts
    return Promise.all(
      layers.map(async (layer) => ({
        ...asListed(layer),
        toc: await readFile(places.tocPath(layer.id)),
      })),
    )
  }
}

/**
 * A list of what was seen; of layers that were mounted already, what was known before, since most of what is read of them
 * comes from the page cache and is not seen.
 */
function withKnown(
  seen: PrefetchList,
  before: PrefetchList | undefined,
  isCold: readonly boolean[],
): PrefetchList {
  if (before === undefined) return seen
  const positions = sameLayers(before, seen.layers)
  const known = before.ranges.flatMap((range): ListedRange[] => {
    const layer = positions[range.layer]
    return layer === undefined || isCold[layer] === true ? [] : [{ ...range, layer }]
  })
  const isKnown = new Set(known.map(({ layer }) => layer))
  const fresh = seen.ranges.filter(({ layer }) => !isKnown.has(layer))
  // Lower layers hold the loader and the libraries, which are read first.
  return { layers: seen.layers, ranges: [...known, ...fresh] }
}

function nameOf(layers: readonly LayerRecord[]): string {
  return layers.map(({ id }) => id).join(' ')
}

/** What a list names of one layer, where both have the same tar. */
function rangesIn(list: PrefetchList, layer: LayerRecord): readonly LayerRange[] {
  const listed = [asListed(layer)]
  const positions = sameLayers(list, listed)
  const ranges = list.ranges.filter((range) => positions[range.layer] !== undefined)
  return placeRanges({ ...list, ranges }, listed).ranges
}

function asListed({ diffId, layerSize }: LayerRecord): ListedLayer {
  return { diffId: diffId as Digest, layerSize }
}

function chainIdOf(layers: readonly LayerRecord[]): string {
  return String(layerChainIds(layers.map(({ diffId }) => diffId as Digest)).at(-1))
}

function sentenceOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
