import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { DAG_PB } from '../dag/unixfs-node.ts'
import { CodedError } from '../errors.ts'
import type { Log } from '../log.ts'
import type { Digest } from '../oci/digest.ts'
import { unlessAborted } from '../unless-aborted.ts'
import { OnceAWhile } from './once-a-while.ts'
import {
  findPublishedStart,
  ONLY_START_FILES,
  readStartBlocks,
  readStartNodes,
} from './published-list.ts'
import type { StartBlock } from './start-blocks-list.ts'

/** Blocks asked for at once. 12: as many places as the fetch queue has for prefetching. */
const BLOCKS_AT_ONCE = 12

/**
 * Bytes held at most, until they are asked for; what is under way, 24 MiB at worst, comes on top. 32 MiB: as much as 100 Mbit/s bring
 * in 2.5 s, by when the first layers ask.
 */
const HELD_BYTES_MAX: number = 32 * 1024 * 1024

/** When nothing came and nothing was asked for within this, what is held is dropped, in ms: the pull was given up. */
const IDLE_MS = 20_000

/**
 * How long directories and inner nodes wait for those of a start that come in one piece, in ms. 1 s: three times what 256 KiB take by
 * 20 Mbit/s and two round trips of 80 ms.
 */
const AHEAD_MS = 1_000

/** What a CAR has beside a file: directories on the way and each block's CID. 64 KiB: a directory of 1,000 names. */
const AROUND_FILE_BYTES: number = 64 * 1024

/** Blocks in a row that cannot be had, after which the rest is left. */
const FAILURES_MAX = 24

/** A pull within this after another needs nothing, in ms. */
const ASKED_MS = 60_000

/** Images of which that is remembered. */
const IMAGES_REMEMBERED = 256

type Parts = {
  readonly blocks: BlockSource
  /** Whether the layer of this blob is open on this node. */
  readonly isOpen: (blob: CID) => boolean
  /** Whether the bytes of this leaf are on this node's disk. */
  readonly isHere: (leaf: CID) => boolean
  readonly log: Log
}

/** What is still to be fetched of one image's list, by CID. */
type Wanted = Map<string, StartBlock>

/**
 * Blocks as `blocks` gives them, but those that an image's publisher says a start wants are fetched as soon as the image is named,
 * and held until they are asked for: a pull comes to know only in some ten round trips, one after the other, what it wants, and
 * the link is idle meanwhile. The list is a hint; at worst bytes are fetched that nobody asks for, and no more are held than
 * HELD_BYTES_MAX. Every block is verified as any other.
 */
export class StartBlocks implements BlockSource, AsyncDisposable {
  readonly #parts: Parts
  readonly #closing = new AbortController()
  readonly #working = new Set<Promise<void>>()
  readonly #asked = new OnceAWhile(ASKED_MS, IMAGES_REMEMBERED)
  readonly #lists = new Set<Wanted>()
  readonly #held = new Map<string, Uint8Array>()
  /** Of those, the ones that a pull asks for several times, such as its config: they stay when they are asked for. */
  readonly #nodes = new Set<string>()
  /** Images whose nodes are being fetched in one piece, by their root, until these are held or it turns out that they cannot be had so. */
  readonly #ahead = new Map<string, Promise<void>>()
  /** Of those that are being fetched, the ones that nobody has asked for yet. */
  readonly #underway = new Set<string>()
  #heldBytes = 0
  #room = Promise.withResolvers<void>()
  #idle: NodeJS.Timeout | undefined

  constructor(parts: Parts) {
    this.#parts = parts
  }

  async get(cid: CID, request: BlockRequest): Promise<Uint8Array> {
    const key = keyOf(cid)
    const held = this.#take(key)
    if (held !== undefined) return held
    // Most likely it is in what comes. The root is not waited with: without it nothing is known of an image that has no such piece.
    if (cid.code === DAG_PB && this.#ahead.size > 0 && !this.#ahead.has(key)) {
      // Of its abort whoever is asked next tells.
      const come = Promise.all(this.#ahead.values())
      await unlessAborted(come, request.signal).catch(() => undefined)
      const taken = this.#take(key)
      if (taken !== undefined) return taken
    }
    // Whoever asks gets it; nobody else will.
    this.#underway.delete(key)
    for (const wanted of this.#lists) wanted.delete(key)
    return this.#parts.blocks.get(cid, request)
  }

  /** What is held of it; a leaf only once. */
  #take(key: string): Uint8Array | undefined {
    const held = this.#held.get(key)
    if (held === undefined) return undefined
    this.#stayAwake()
    if (this.#nodes.has(key)) return Uint8Array.from(held)
    this.#drop(key, held)
    return held
  }

  /** Bytes that are held now. */
  get heldBytes(): number {
    return this.#heldBytes
  }

  /**
   * The image under `root` is being pulled: begins to fetch what its publisher says a start of this manifest wants; returns at once.
   * Before the manifest is known, only what it says of an image that has no other.
   */
  begin(root: CID, manifest?: Digest): void {
    if (this.#closing.signal.aborted) return
    const work = this.#begin(root, manifest)
      .catch((error: unknown) => {
        // A root that cannot be read is what the pull itself will tell.
        if (this.#closing.signal.aborted || error instanceof CodedError) return
        const image = root.toString()
        const reason = error instanceof Error ? error.message : String(error)
        this.#parts.log.warn(
          { image, reason },
          `what image ${image} says its start wants is not fetched ahead: ${reason}`,
        )
      })
      .finally(() => this.#working.delete(work))
    this.#working.add(work)
  }

  /** Stops fetching, waits for its end and drops what is held. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort()
    this.#giveUp()
    await Promise.all(this.#working)
    clearTimeout(this.#idle)
  }

  async #begin(root: CID, manifest: Digest | undefined): Promise<void> {
    const { blocks } = this.#parts
    const request = { priority: 'prefetch', signal: this.#closing.signal } as const
    const isFirst = manifest === undefined && this.#asked.begin(`${keyOf(root)}/start`)
    if (isFirst && blocks.along !== undefined) return await this.#beginInPieces(root, request)
    const found = await findPublishedStart(root, manifest, blocks, request)
    const [wanted] = await Promise.all([
      this.#read(found.blocks, readStartBlocks, { blocks, request }),
      this.#holdNodes(found.nodes, { blocks, request }),
    ])
    // Only now: in the queue of a slow link these would be in front of the nodes, for which the pull waits.
    await this.#fetchAll(wanted ?? [], request)
  }

  /** What an image has of its only manifest, where whole files can be had: in the first round trip, instead of the first two. */
  async #beginInPieces(root: CID, request: BlockRequest): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const goOn = (): void => {
      clearTimeout(patience)
      this.#ahead.delete(keyOf(root))
      resolve()
    }
    const patience = setTimeout(goOn, AHEAD_MS)
    const nodes = async (): Promise<void> => {
      const piece = await this.#piece({ root, ...ONLY_START_FILES.nodes }, request)
      if (piece.size === 0) goOn()
      const blocks = whatCame(piece, this.#parts.blocks)
      const found = await findPublishedStart(root, undefined, blocks, request)
      await this.#holdNodes(found.nodes, { blocks, request })
    }
    const leaves = async (): Promise<void> => {
      const piece = await this.#piece({ root, ...ONLY_START_FILES.blocks }, request)
      const blocks = whatCame(piece, this.#parts.blocks)
      const found = await findPublishedStart(root, undefined, blocks, request)
      const wanted = await this.#read(found.blocks, readStartBlocks, { blocks, request })
      // Beside the nodes: their connection has yet to become as fast as the link.
      await this.#fetchAll(wanted ?? [], request)
    }
    this.#ahead.set(keyOf(root), promise)
    await Promise.all([nodes().finally(goOn), leaves()])
  }

  /** The blocks of a file and of the directory that it is in, by CID, as far as they come in one piece. */
  async #piece(
    { root, name, bytesMax }: { root: CID; name: string; bytesMax: number },
    request: BlockRequest,
  ): Promise<ReadonlyMap<string, Uint8Array>> {
    const come = new Map<string, Uint8Array>()
    const signal = AbortSignal.any([request.signal, AbortSignal.timeout(AHEAD_MS)])
    const path = { root, names: [name], bytesMax: bytesMax + AROUND_FILE_BYTES }
    const coming = this.#parts.blocks.along?.(path, { ...request, signal }) ?? []
    for await (const { cid, bytes } of coming) come.set(keyOf(cid), bytes)
    return come
  }

  async #holdNodes(
    list: CID | undefined,
    parts: { readonly blocks: BlockSource; readonly request: BlockRequest },
  ): Promise<void> {
    for (const { cid, bytes } of (await this.#read(list, readStartNodes, parts)) ?? []) {
      if (this.#heldBytes >= HELD_BYTES_MAX) return
      this.#hold(keyOf(cid), bytes)
      this.#nodes.add(keyOf(cid))
    }
  }

  /** Undefined if it is not there, was read a moment ago, or is of no use: the other is as good without. */
  async #read<Start>(
    cid: CID | undefined,
    read: (cid: CID, blocks: BlockSource, request: BlockRequest) => Promise<Start>,
    { blocks, request }: { readonly blocks: BlockSource; readonly request: BlockRequest },
  ): Promise<Start | undefined> {
    if (cid === undefined || !this.#asked.begin(keyOf(cid))) return undefined
    try {
      return await read(cid, blocks, request)
    } catch (error) {
      if (!(error instanceof CodedError) || request.signal.aborted) throw error
      this.#parts.log.warn(
        { cid: cid.toString(), reason: error.message },
        `what an image says its start wants, ${cid.toString()}, is not fetched ahead: ${error.message}`,
      )
      return undefined
    }
  }

  async #fetchAll(blocks: readonly StartBlock[], request: BlockRequest): Promise<void> {
    if (blocks.length === 0) return
    const wanted: Wanted = new Map(blocks.map((block) => [keyOf(block.cid), block]))
    this.#lists.add(wanted)
    this.#stayAwake()
    try {
      await this.#fetch(wanted, request)
    } finally {
      this.#lists.delete(wanted)
    }
  }

  #isWanted({ cid, opens }: StartBlock): boolean {
    const { isOpen, isHere } = this.#parts
    const key = keyOf(cid)
    if (this.#held.has(key) || this.#underway.has(key)) return false
    return opens === undefined ? !isHere(cid) : !isOpen(opens)
  }

  async #fetch(wanted: Wanted, request: BlockRequest): Promise<void> {
    let failedInRow = 0
    const work = async (): Promise<void> => {
      for (const [key, block] of wanted) {
        wanted.delete(key)
        if (!this.#isWanted(block)) continue
        this.#underway.add(key)
        try {
          const bytes = await this.#parts.blocks.get(block.cid, request)
          // Somebody who has come meanwhile has it, or all of this is over.
          if (this.#underway.has(key)) this.#hold(key, bytes)
          failedInRow = 0
        } catch (error) {
          // Whoever asks for it hears why; here one that is lost ends nothing.
          if (!(error instanceof CodedError)) throw error
          failedInRow += 1
          if (failedInRow >= FAILURES_MAX) wanted.clear()
        } finally {
          this.#underway.delete(key)
        }
        while (this.#heldBytes >= HELD_BYTES_MAX && wanted.size > 0) await this.#room.promise
      }
    }
    await Promise.all(Array.from({ length: BLOCKS_AT_ONCE }, work))
  }

  #hold(key: string, bytes: Uint8Array): void {
    this.#stayAwake()
    if (this.#held.has(key) || this.#closing.signal.aborted) return
    this.#held.set(key, bytes)
    this.#heldBytes += bytes.length
  }

  #drop(key: string, { length }: Uint8Array): void {
    this.#held.delete(key)
    this.#nodes.delete(key)
    this.#heldBytes -= length
    this.#room.resolve()
    this.#room = Promise.withResolvers()
  }

  #stayAwake(): void {
    this.#idle ??= setTimeout(() => {
      this.#idle = undefined
      this.#giveUp()
    }, IDLE_MS).unref()
    this.#idle.refresh()
  }

  #giveUp(): void {
    for (const wanted of this.#lists) wanted.clear()
    this.#underway.clear()
    for (const [key, bytes] of this.#held) this.#drop(key, bytes)
    this.#room.resolve()
  }
}

/** Blocks that are here, and the others from where all are. */
function whatCame(piece: ReadonlyMap<string, Uint8Array>, others: BlockSource): BlockSource {
  return {
    get: async (cid, request) => piece.get(keyOf(cid)) ?? (await others.get(cid, request)),
  }
}

function keyOf(cid: CID): string {
  return cid.toV1().toString()
}
