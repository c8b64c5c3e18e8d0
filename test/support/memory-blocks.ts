import { createHash } from 'node:crypto'
import { encode } from '@ipld/dag-pb'
import { UnixFS } from 'ipfs-unixfs'
import { type ImporterOptions, importer } from 'ipfs-unixfs-importer'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { CID } from 'multiformats/cid'
import { create } from 'multiformats/hashes/digest'
import type { BlockRequest, BlockSource } from '../../snapshotter/block-source.ts'
import { BlockError } from '../../snapshotter/errors.ts'

/** Files by path ("blobs/sha256:…"), as `addDirectory` takes them. */
export type TestFiles = Readonly<Record<string, Uint8Array>>

/** The CIDv1 of a block with a SHA-256 digest. */
export function cidOf(block: Uint8Array, codec = 0x55): CID {
  return CID.createV1(codec, create(0x12, createHash('sha256').update(block).digest()))
}

/** Blocks in memory, with what was asked for on record. */
export class MemoryBlocks implements BlockSource {
  readonly blocks: Map<string, Uint8Array> = new Map()
  /** CIDs asked for, in order. */
  readonly asked: string[] = []
  /** Most gets that were open at once. */
  mostOpen = 0
  #open = 0

  async get(cid: CID, { signal }: BlockRequest): Promise<Uint8Array> {
    this.asked.push(cid.toString())
    this.mostOpen = Math.max(this.mostOpen, ++this.#open)
    try {
      await new Promise((resolve) => setImmediate(resolve))
      signal.throwIfAborted()
      const block = this.blocks.get(cid.toV1().toString())
      if (block !== undefined) return new Uint8Array(block)
      throw new BlockError('NOT_FOUND', `no block ${cid.toString()} in memory`)
    } finally {
      this.#open--
    }
  }

  /** Keeps a block under the CID of its bytes. */
  add(block: Uint8Array, codec = 0x55): CID {
    const cid = cidOf(block, codec)
    this.blocks.set(cid.toString(), block)
    return cid
  }

  /** A dag-pb UnixFS node of the given parts; nothing is checked, so it can lie. */
  addNode(unixfs: UnixFS, links: readonly { cid: CID; name?: string; size?: number }[]): CID {
    const Links = links.map(({ cid, name = '', size = 0 }) => ({
      Hash: cid,
      Name: name,
      Tsize: size,
    }))
    return this.add(encode({ Data: unixfs.marshal(), Links }), 0x70)
  }

  /** Imports one file as kubo 0.23 does, or as `options` say. */
  async addFile(content: Uint8Array, options: ImporterOptions = {}): Promise<CID> {
    return this.#import([{ content }], options)
  }

  /** Imports a tree of files under one directory. */
  async addDirectory(files: TestFiles, options: ImporterOptions = {}): Promise<CID> {
    const entries = Object.entries(files).map(([path, content]) => ({ path, content }))
    return this.#import(entries, { wrapWithDirectory: true, ...options })
  }

  async #import(
    entries: readonly { path?: string; content: Uint8Array }[],
    options: ImporterOptions,
  ): Promise<CID> {
    const store = {
      put: async (
        cid: CID,
        block: Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
      ) => {
        const chunks: Uint8Array[] = []
        if (block instanceof Uint8Array) chunks.push(block)
        else for await (const chunk of block) chunks.push(chunk)
        this.blocks.set(cid.toV1().toString(), Buffer.concat(chunks))
        return cid
      },
    }
    const kubo: ImporterOptions = {
      cidVersion: 1,
      rawLeaves: true,
      chunker: fixedSize({ chunkSize: 262_144 }),
      ...options,
    }
    let root: CID | undefined
    for await (const { cid } of importer(entries, store, kubo)) root = cid
    if (root === undefined) throw new Error('nothing was imported')
    return root
  }
}
