import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { openIpfsImage } from '../dag/open-ipfs-image.ts'
import { readPlainDirectory } from '../dag/plain-directory.ts'
import { UnixfsFile } from '../dag/unixfs-file.ts'
import { resolveUnixfsPath } from '../dag/unixfs-path.ts'
import { ImageError } from '../errors.ts'
import type { Digest } from '../oci/digest.ts'
import { isTagOfArtifact } from '../oci/reference.ts'
import { addFilesBeside } from '../publish/add-files-beside.ts'
import type { BlockSink } from '../publish/import-image.ts'
import { findStartBlocks } from './find-start-blocks.ts'
import {
  decodePrefetchList,
  encodePrefetchList,
  LIST_BYTES_MAX,
  type PrefetchList,
} from './prefetch-list.ts'
import {
  decodeStartBlocks,
  encodeStartBlocks,
  START_BLOCKS_BYTES_MAX,
  type StartBlock,
} from './start-blocks-list.ts'
import {
  decodeStartNodes,
  encodeStartNodes,
  START_NODES_BYTES_MAX,
  type StartNode,
} from './start-nodes.ts'

/** Beside `manifests` and `blobs` in an image's directory: lists, each under the digest of the manifest that it is for. */
const PREFETCH_DIRECTORY = 'prefetch'

/**
 * What such a start wants lies there as well, not in a directory, which would be a round trip more: `start.blocks` and `start.car` of
 * the only manifest of an image, `start-<manifest digest>.…` of one of several.
 */
function startName(manifest: Digest | undefined): string {
  return manifest === undefined ? 'start' : `start-${manifest}`
}

/**
 * The list that was published with an image; undefined if there is none. Rejects with LayerError if it is malformed or hostile,
 * RESOURCE_EXHAUSTED if it is too large, and as BlockSource.get.
 */
export async function readPublishedList(
  root: CID,
  manifest: string,
  blocks: BlockSource,
  request: BlockRequest,
): Promise<PrefetchList | undefined> {
  const path = [PREFETCH_DIRECTORY, manifest]
  try {
    const { cid } = await resolveUnixfsPath(root, path, blocks, request)
    return decodePrefetchList(await readUpTo(LIST_BYTES_MAX, cid, blocks, request))
  } catch (error) {
    if (error instanceof ImageError && error.code === 'NOT_FOUND') return undefined
    throw error
  }
}

/** The files of an image's only manifest, each with the most bytes that are read of it. */
export const ONLY_START_FILES: Readonly<
  Record<'nodes' | 'blocks', { readonly name: string; readonly bytesMax: number }>
> = {
  nodes: { name: `${startName(undefined)}.car`, bytesMax: START_NODES_BYTES_MAX },
  blocks: { name: `${startName(undefined)}.blocks`, bytesMax: START_BLOCKS_BYTES_MAX },
}

/** Where the image's publisher says what a start of a manifest wants. */
export type PublishedStart = {
  readonly blocks: CID | undefined
  readonly nodes: CID | undefined
}

/**
 * Of a manifest, or of the only one that the image has; before it is known which manifest is wanted, of the latter alone. Rejects as
 * BlockSource.get.
 */
export async function findPublishedStart(
  root: CID,
  manifest: Digest | undefined,
  blocks: BlockSource,
  request: BlockRequest,
): Promise<PublishedStart> {
  const names = await readPlainDirectory(root, blocks, request)
  const cidOf = (suffix: string): CID | undefined =>
    (names?.get(startName(manifest) + suffix) ?? names?.get(startName(undefined) + suffix))?.cid
  return { blocks: cidOf('.blocks'), nodes: cidOf('.car') }
}

/** The blocks that a start wants. Rejects as `decodeStartBlocks` and BlockSource.get. */
export async function readStartBlocks(
  cid: CID,
  blocks: BlockSource,
  request: BlockRequest,
): Promise<StartBlock[]> {
  return decodeStartBlocks(await readUpTo(START_BLOCKS_BYTES_MAX, cid, blocks, request))
}

/** The small ones that lead to them. Rejects as `decodeStartNodes` and BlockSource.get. */
export async function readStartNodes(
  cid: CID,
  blocks: BlockSource,
  request: BlockRequest,
): Promise<StartNode[]> {
  return decodeStartNodes(await readUpTo(START_NODES_BYTES_MAX, cid, blocks, request))
}

/** A file, or one byte more than is accepted of it, so that a longer one is refused by its parser. */
async function readUpTo(
  bytesMax: number,
  cid: CID,
  blocks: BlockSource,
  request: BlockRequest,
): Promise<Uint8Array> {
  const file = await UnixfsFile.open(cid, blocks, request)
  return file.readRange({ start: 0, end: Math.min(file.size, bytesMax + 1) }, request)
}

/**
 * Writes the image under `root` again with lists beside it, by manifest digest, and with what blocks these starts want; those of other
 * manifests stay. Nothing but two directories and these files is written: no manifest, no digest changes. Resolves to the new
 * root. Rejects as `addFilesBeside` and `findStartBlocks`.
 */
export async function addPublishedLists(
  root: CID,
  lists: ReadonlyMap<Digest, PrefetchList>,
  { blocks, sink, signal }: { blocks: BlockSource; sink: BlockSink; signal: AbortSignal },
): Promise<CID> {
  const request = { priority: 'foreground', signal } as const
  const files = new Map<string, Uint8Array>()
  const starts = new Map<string, Uint8Array>()
  const only = await onlyManifest(root, blocks, request)
  for (const [manifest, list] of lists) {
    const start = await findStartBlocks({ root, manifest }, list, { blocks, request })
    files.set(manifest, encodePrefetchList(list))
    const name = startName(manifest === only ? undefined : manifest)
    starts.set(`${name}.blocks`, encodeStartBlocks(start.blocks))
    starts.set(`${name}.car`, await encodeStartNodes(start.nodes))
  }
  const beside = [
    { directory: PREFETCH_DIRECTORY, files },
    { directory: undefined, files: starts },
  ]
  return addFilesBeside(root, beside, { blocks, sink }, request)
}

/** The manifest that every tag of the image leads to, signatures and the like aside; undefined if there are several. */
async function onlyManifest(
  root: CID,
  blocks: BlockSource,
  request: BlockRequest,
): Promise<Digest | undefined> {
  const image = await openIpfsImage(root, blocks, request)
  const digests = new Set<Digest>()
  for (const tag of await image.tags(request)) {
    if (!isTagOfArtifact(tag)) digests.add((await image.manifest(tag, request)).digest)
  }
  const [only, ...others] = digests
  return others.length === 0 ? only : undefined
}
