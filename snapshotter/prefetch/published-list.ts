import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { orUndefined } from '../dag/ipfs-image.ts'
import { UnixfsFile } from '../dag/unixfs-file.ts'
import { listUnixfsDirectory, resolveUnixfsPath } from '../dag/unixfs-path.ts'
import { ImageError } from '../errors.ts'
import type { Digest } from '../oci/digest.ts'
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

/**
 * Beside `manifests` and `blobs` in an image's directory: lists, each under the digest of the manifest that it is for, and the blocks
 * that a start with it wants, under the same name with BLOCKS_SUFFIX.
 */
const PREFETCH_DIRECTORY = 'prefetch'
const BLOCKS_SUFFIX = '.blocks'

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
    const file = await UnixfsFile.open(cid, blocks, request)
    // One byte more than is accepted, so that a longer one is refused by its parser.
    const end = Math.min(file.size, LIST_BYTES_MAX + 1)
    return decodePrefetchList(await file.readRange({ start: 0, end }, request))
  } catch (error) {
    if (error instanceof ImageError && error.code === 'NOT_FOUND') return undefined
    throw error
  }
}

/**
 * The blocks that a start of a manifest wants, as its publisher says; without a manifest, of the only one of which it says so.
 * None if it says nothing, or if `isNew` says of the list that it is known. Rejects with LayerError if it is malformed or
 * too long, and as BlockSource.get.
 */
export async function readPublishedBlocks(
  root: CID,
  manifest: Digest | undefined,
  {
    blocks,
    request,
    isNew,
  }: {
    readonly blocks: BlockSource
    readonly request: BlockRequest
    readonly isNew: (list: CID) => boolean
  },
): Promise<StartBlock[]> {
  const directory = await orUndefined(
    resolveUnixfsPath(root, [PREFETCH_DIRECTORY], blocks, request),
  )
  if (directory?.kind !== 'directory') return []
  const lists = (await listUnixfsDirectory(directory.cid, blocks, request)).filter(({ name }) =>
    manifest === undefined ? name.endsWith(BLOCKS_SUFFIX) : name === manifest + BLOCKS_SUFFIX,
  )
  const [only, ...more] = lists
  if (only === undefined || more.length > 0 || !isNew(only.cid)) return []
  const file = await UnixfsFile.open(only.cid, blocks, request)
  // One byte more than is accepted, so that a longer one is refused by its parser.
  const end = Math.min(file.size, START_BLOCKS_BYTES_MAX + 1)
  return decodeStartBlocks(await file.readRange({ start: 0, end }, request))
}

/**
 * Writes the image under `root` again with lists beside it, by manifest digest, and with what blocks these starts want; those of other
 * manifests stay. Nothing but two directories and the lists is written: no manifest, no digest changes. Resolves to the new
 * root. Rejects as `addFilesBeside` and `findStartBlocks`.
 */
export async function addPublishedLists(
  root: CID,
  lists: ReadonlyMap<Digest, PrefetchList>,
  { blocks, sink, signal }: { blocks: BlockSource; sink: BlockSink; signal: AbortSignal },
): Promise<CID> {
  const request = { priority: 'foreground', signal } as const
  const files = new Map<string, Uint8Array>()
  for (const [manifest, list] of lists) {
    const wanted = await findStartBlocks({ root, manifest }, list, { blocks, request })
    files.set(manifest, encodePrefetchList(list))
    files.set(manifest + BLOCKS_SUFFIX, encodeStartBlocks(wanted))
  }
  const beside = [{ directory: PREFETCH_DIRECTORY, files }]
  return addFilesBeside(root, beside, { blocks, sink }, request)
}
