import { createHash } from 'node:crypto'
import { CID } from 'multiformats/cid'
import * as MultihashDigest from 'multiformats/hashes/digest'
import type { BlockRequest, Priority } from '../block-source.ts'
import type { ByteRange } from '../byte-range.ts'
import { BlockError } from '../errors.ts'
import { type Digest, isDigest, parseDigest } from '../oci/digest.ts'
import type { LayerBlob } from './layer-blob.ts'

/** Reads bytes of the blob from wherever it is to be had now. */
export type ReadRegistryBlob = (range: ByteRange, request: BlockRequest) => Promise<Uint8Array>

/** What a blob in a registry is known by. */
export type RegistryBlobName = { readonly digest: Digest; readonly size: number }

/** A blob, in bytes. 1 TiB: two million parts, 16 MB of places where they start. */
export const REGISTRY_BLOB_BYTES_MAX: number = 1024 ** 4

/**
 * What is fetched at once, in bytes. 512 KiB: as the largest leaf of small files that `ipdr push` writes. The start of an image with
 * numpy fetches 40 MB in 78 requests so, 34 MB in 102 with 256 KiB: as long at 100 Mbit/s and 20 ms a round trip.
 */
const LEAF_BYTES = 512 * 1024

/** Bytes between two reads that are fetched with them, rather than to ask twice. 64 KiB: 5 ms at 100 Mbit/s, less than a round trip. */
const GAP_BYTES_MAX = 64 * 1024

/** One request, in bytes. 8 MiB: 0.7 s at 100 Mbit/s, and more does not get faster. */
const REQUEST_BYTES_MAX = 8 * 1024 * 1024

/** Marks what is kept of a blob in a registry, with its version. */
const MAGIC = Buffer.from('REG1')
const CHECKSUM_BYTES = 32

/** Code of raw bytes (multicodec). */
const RAW = 0x55
/** Codes of the digests that OCI allows (multihash). */
const HASH_CODES = { sha256: 0x12, sha512: 0x13 } as const

type Waiting = {
  readonly range: ByteRange
  readonly request: BlockRequest
  readonly resolve: (bytes: Uint8Array) => void
  readonly reject: (error: unknown) => void
}

/**
 * A blob in a registry. Unlike one on IPFS, its parts are not verified here: a digest is of the whole, and whoever reads it must
 * check what it makes of a part (`TableBlob.unverified`). Reads of one turn that lie side by side become one request.
 */
export class RegistryBlob implements LayerBlob {
  readonly cid: CID
  readonly size: number
  readonly leafStarts: Float64Array
  readonly #name: RegistryBlobName
  readonly #read: ReadRegistryBlob
  #waiting: Waiting[] = []

  /** Throws BlockError RESOURCE_EXHAUSTED for one beyond `REGISTRY_BLOB_BYTES_MAX`. */
  constructor(name: RegistryBlobName, read: ReadRegistryBlob) {
    if (!(name.size <= REGISTRY_BLOB_BYTES_MAX)) {
      throw new BlockError(
        'RESOURCE_EXHAUSTED',
        `blob ${name.digest} has ${name.size} bytes, ${REGISTRY_BLOB_BYTES_MAX} are read`,
      )
    }
    this.cid = blobCid(name.digest)
    this.size = name.size
    this.leafStarts = Float64Array.from(
      { length: Math.ceil(name.size / LEAF_BYTES) + 1 },
      (_, leaf) => Math.min(leaf * LEAF_BYTES, name.size),
    )
    this.#name = name
    this.#read = read
  }

  /** Whether `bytes` are what `toBytes` of such a blob wrote. */
  static isKept(bytes: Uint8Array): boolean {
    return MAGIC.equals(bytes.subarray(0, MAGIC.length))
  }

  /** What `toBytes` wrote down. Throws BlockError DATA_LOSS if it is damaged. */
  static nameFromBytes(bytes: Uint8Array): RegistryBlobName {
    const body = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
    const end = Math.max(body.length - CHECKSUM_BYTES, 0)
    const text = body.toString('latin1', MAGIC.length, end)
    const [digest = '', size = ''] = text.split(' ')
    const isIntact = sha256(body.subarray(0, end)).equals(body.subarray(end))
    const isName = isDigest(digest) && /^\d{1,15}$/.test(size)
    if (RegistryBlob.isKept(bytes) && isIntact && isName) {
      return { digest, size: Number(size) }
    }
    throw new BlockError('DATA_LOSS', 'what is kept of a blob in a registry is damaged')
  }

  readRange(range: ByteRange, request: BlockRequest): Promise<Uint8Array> {
    if (!(range.start >= 0 && range.start <= range.end && range.end <= this.size)) {
      throw new RangeError(`bytes ${range.start} to ${range.end} are not in a blob of ${this.size}`)
    }
    if (range.start === range.end) return Promise.resolve(new Uint8Array())
    const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>()
    this.#waiting.push({ range, request, resolve, reject })
    // The units of one page fault are asked for in one turn of the event loop.
    if (this.#waiting.length === 1) setImmediate(() => this.#sendWaiting())
    return promise
  }

  async *stream(range: ByteRange, request: BlockRequest): AsyncGenerator<Uint8Array, void> {
    for (let start = range.start; start < range.end; start += REQUEST_BYTES_MAX) {
      yield await this.readRange(
        { start, end: Math.min(start + REQUEST_BYTES_MAX, range.end) },
        request,
      )
    }
  }

  /** None: its parts have no names of their own. */
  leafOf(): undefined {
    return undefined
  }

  toBytes(): Uint8Array {
    const body = Buffer.concat([MAGIC, Buffer.from(`${this.#name.digest} ${this.#name.size}`)])
    return Buffer.concat([body, sha256(body)])
  }

  #sendWaiting(): void {
    const waiting = this.#waiting.toSorted((a, b) => a.range.start - b.range.start)
    this.#waiting = []
    let together: Waiting[] = []
    let [start, end] = [0, 0]
    for (const each of waiting) {
      const joins =
        together.length > 0 &&
        each.range.start - end <= GAP_BYTES_MAX &&
        each.range.end - start <= REQUEST_BYTES_MAX
      if (!joins) {
        void this.#send(together, { start, end })
        together = []
        start = each.range.start
        end = start
      }
      together.push(each)
      end = Math.max(end, each.range.end)
    }
    void this.#send(together, { start, end })
  }

  async #send(together: readonly Waiting[], range: ByteRange): Promise<void> {
    const [only, ...more] = together
    if (only === undefined) return
    const request = more.length === 0 ? only.request : sharedRequest(together)
    try {
      const bytes = await this.#read(range, request)
      for (const { range: part, resolve } of together) {
        const own = bytes.subarray(part.start - range.start, part.end - range.start)
        resolve(more.length === 0 ? own : Uint8Array.from(own))
      }
    } catch (error) {
      for (const { reject } of together) reject(error)
    }
  }
}

/** The name of a blob by its digest: whoever has the same bytes has the same name, in a registry or as one block on IPFS. */
export function blobCid(digest: Digest): CID {
  const { algorithm, hex } = parseDigest(digest)
  return CID.createV1(RAW, MultihashDigest.create(HASH_CODES[algorithm], Buffer.from(hex, 'hex')))
}

/** As urgent as the most urgent of them; given up when all of them are. */
function sharedRequest(together: readonly Waiting[]): BlockRequest {
  const requests = together.map(({ request }) => request)
  const priorities: readonly Priority[] = ['foreground', 'prefetch', 'background']
  const priority = priorities.find((each) => requests.some((request) => request.priority === each))
  const allGone = new AbortController()
  let left = requests.length
  for (const { signal } of requests) {
    const gone = (): void => {
      left -= 1
      if (left === 0) allGone.abort(signal.reason)
    }
    if (signal.aborted) gone()
    else signal.addEventListener('abort', gone, { once: true, signal: allGone.signal })
  }
  const escalated = requests.flatMap((request) => request.escalated ?? [])
  return {
    priority: priority ?? 'background',
    signal: allGone.signal,
    ...(escalated.length === 0 ? {} : { escalated: AbortSignal.any(escalated) }),
  }
}

function sha256(bytes: Uint8Array): Buffer {
  return createHash('sha256').update(bytes).digest()
}
