import { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { listSideIndexes } from '../dag/side-indexes.ts'
import { CodedError } from '../errors.ts'
import type { Log } from '../log.ts'

/** How long a root that could not be read is left alone, in ms. 60 s: pulls then do not wait for it one after the other. */
const REST_MS = 60_000

/**
 * Side indexes that the operator of this node vouches for, by the roots under which `ipdr index` published them: of layers that lie
 * elsewhere, as in a registry, whose manifests name no table of contents.
 */
export class KnownIndexes {
  readonly #roots: readonly string[]
  readonly #blocks: BlockSource
  readonly #log: Pick<Log, 'warn'>
  /** A root names its indexes for ever. */
  readonly #listed = new Map<string, ReadonlyMap<string, CID>>()
  readonly #restsUntil = new Map<string, number>()

  constructor(
    roots: readonly string[],
    { blocks, log }: { readonly blocks: BlockSource; readonly log: Pick<Log, 'warn'> },
  ) {
    this.#roots = roots
    this.#blocks = blocks
    this.#log = log
  }

  /** CIDs of indexes, by the digests of their layers; of two roots that name one, the first's. Rejects when `signal` aborts. */
  async all(request: BlockRequest): Promise<ReadonlyMap<string, CID>> {
    const listed = await Promise.all(this.#roots.map((root) => this.#list(root, request)))
    return new Map(listed.toReversed().flatMap((indexes) => [...indexes]))
  }

  async #list(root: string, request: BlockRequest): Promise<ReadonlyMap<string, CID>> {
    const known = this.#listed.get(root)
    if (known !== undefined) return known
    if ((this.#restsUntil.get(root) ?? 0) > performance.now()) return new Map()
    try {
      const indexes = await listSideIndexes(CID.parse(root), this.#blocks, request)
      this.#listed.set(root, indexes)
      return indexes
    } catch (error) {
      if (request.signal.aborted || !(error instanceof CodedError)) throw error
      this.#restsUntil.set(root, performance.now() + REST_MS)
      this.#log.warn(
        { root, reason: error.message },
        `the indexes under ${root} cannot be read, so images that need them are downloaded whole: ${error.message}`,
      )
      return new Map()
    }
  }
}
