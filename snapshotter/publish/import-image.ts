import { encode, prepare } from '@ipld/dag-pb'
import { UnixFS } from 'ipfs-unixfs'
import type { WritableStorage } from 'ipfs-unixfs-importer'
import { importFile } from 'ipfs-unixfs-importer'
import type { Chunker } from 'ipfs-unixfs-importer/chunker'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { balanced } from 'ipfs-unixfs-importer/layout'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'
import type { Digest } from '../oci/digest.ts'

/** Where blocks go. Blocks may come twice; the array is not changed afterwards. */
export interface BlockSink {
  put(cid: CID, block: Uint8Array, signal: AbortSignal): Promise<void>
}

/** A file or directory in the sink: its CID, and its bytes with all inner nodes (UnixFS `Tsize`). */
export type ImportedNode = { readonly cid: CID; readonly size: number }

/** Kubo's and the existing publisher's way of importing: leaves of 256 KiB. */
export const IMPORT_CHUNK_BYTES: number = 256 * 1024

/** Links of an inner node. 174: Kubo's default, one node is 8 KiB. */
const LINKS_PER_NODE = 174

/** dag-pb, https://github.com/multiformats/multicodec */
const dagPb = 0x70

/**
 * Imports a file as a balanced UnixFS tree with raw leaves, CIDv1 and SHA-256. Leaves are the pieces of `content` as they come
 * ('pieces'), or `IMPORT_CHUNK_BYTES` each ('kubo'). Rejects with what `content` or the sink fail with.
 */
export async function importBlob(
  content: AsyncIterable<Uint8Array>,
  leaves: 'pieces' | 'kubo',
  sink: BlockSink,
  signal: AbortSignal,
): Promise<ImportedNode> {
  const asTheyCome: Chunker = (source) => source
  const { cid, size } = await importFile({ content }, storage(sink, signal), {
    cidVersion: 1,
    rawLeaves: true,
    reduceSingleLeafToSelf: true,
    chunker: leaves === 'pieces' ? asTheyCome : fixedSize({ chunkSize: IMPORT_CHUNK_BYTES }),
    layout: balanced({ maxChildrenPerNode: LINKS_PER_NODE }),
  })
  return { cid, size: Number(size) }
}

/** An image under one CID, as github.com/ipdr/ipdr lays it out. */
export class ImageDirectory {
  readonly #manifests = new Map<string, ImportedNode>()
  readonly #blobs = new Map<string, ImportedNode>()

  /** Adds a manifest or index under its digest, and under `tag` if given. */
  addManifest(digest: Digest, file: ImportedNode, tag?: string): void {
    this.#manifests.set(digest, file)
    if (tag !== undefined) this.#manifests.set(tag, file)
  }

  /** Adds a config, a layer, or a manifest that an index names. */
  addBlob(digest: Digest, file: ImportedNode): void {
    this.#blobs.set(digest, file)
  }

  /** Writes `manifests/` and `blobs/` and the root directory over them, whose CID names the image. */
  async write(sink: BlockSink, signal: AbortSignal): Promise<ImportedNode> {
    const manifests = await writeDirectory(this.#manifests, sink, signal)
    const blobs = await writeDirectory(this.#blobs, sink, signal)
    const root = new Map([
      ['blobs', blobs],
      ['manifests', manifests],
    ])
    return writeDirectory(root, sink, signal)
  }
}

/** Writes one directory, with all its names in one block: an image's has some hundreds at most. */
export async function writeDirectory(
  files: ReadonlyMap<string, ImportedNode>,
  sink: BlockSink,
  signal: AbortSignal,
): Promise<ImportedNode> {
  const links = [...files].map(([name, { cid, size }]) => ({ Name: name, Hash: cid, Tsize: size }))
  const data = new UnixFS({ type: 'directory' }).marshal()
  // `prepare` sorts the links by name, as dag-pb wants them.
  const block = encode(prepare({ Data: data, Links: links }))
  const cid = CID.createV1(dagPb, await sha256.digest(block))
  await sink.put(cid, block, signal)
  return { cid, size: links.reduce((total, { Tsize }) => total + Tsize, block.length) }
}

/** The sink as the importer wants it. */
function storage(sink: BlockSink, signal: AbortSignal): WritableStorage {
  return {
    put: async (cid, block) => {
      if (!(block instanceof Uint8Array)) throw new TypeError('the importer gave a block in pieces')
      await sink.put(cid, block, signal)
      return cid
    },
  }
}
