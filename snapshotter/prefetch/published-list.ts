import { decode } from '@ipld/dag-pb'
import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { readBlock } from '../dag/read-block.ts'
import { UnixfsFile } from '../dag/unixfs-file.ts'
import { DAG_PB, decodeUnixfsNode } from '../dag/unixfs-node.ts'
import { resolveUnixfsPath } from '../dag/unixfs-path.ts'
import { ImageError } from '../errors.ts'
import type { Digest } from '../oci/digest.ts'
import {
  type BlockSink,
  type ImportedNode,
  importBlob,
  writeDirectory,
} from '../publish/import-image.ts'
import {
  decodePrefetchList,
  encodePrefetchList,
  LIST_BYTES_MAX,
  type PrefetchList,
} from './prefetch-list.ts'

/** Beside `manifests` and `blobs` in an image's directory: lists, each under the digest of the manifest that it is for. */
const PREFETCH_DIRECTORY = 'prefetch'

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
 * Writes the image under `root` again with lists beside it, by manifest digest; those of other manifests stay. Nothing but two
 * directories and the lists is written: no manifest, no digest changes. Resolves to the new root. Rejects with ImageError
 * FAILED_PRECONDITION if the directory is one that its block alone does not show, and as BlockSource.get and the sink.
 */
export async function addPublishedLists(
  root: CID,
  lists: ReadonlyMap<Digest, PrefetchList>,
  { blocks, sink, signal }: { blocks: BlockSource; sink: BlockSink; signal: AbortSignal },
): Promise<CID> {
  const request = { priority: 'foreground', signal } as const
  const names = await readDirectory(root, blocks, request)
  const before = names.get(PREFETCH_DIRECTORY)
  const files = new Map(before && (await readDirectory(before.cid, blocks, request)))
  for (const [manifest, list] of lists) {
    const content = (async function* () {
      yield encodePrefetchList(list)
    })()
    files.set(manifest, await importBlob(content, 'kubo', sink, signal))
  }
  names.set(PREFETCH_DIRECTORY, await writeDirectory(files, sink, signal))
  return (await writeDirectory(names, sink, signal)).cid
}

/** Names and links of a directory, with the sizes that only the block itself has. */
async function readDirectory(
  cid: CID,
  blocks: BlockSource,
  request: BlockRequest,
): Promise<Map<string, ImportedNode>> {
  const block = await readBlock(blocks, cid, request)
  if (cid.code !== DAG_PB || decodeUnixfsNode(cid, block).kind !== 'directory') {
    throw new ImageError(
      'FAILED_PRECONDITION',
      `${cid.toString()} is sharded or no directory: publish the image with ipdr push first`,
      { cid: cid.toString() },
    )
  }
  const { Links } = decode(block)
  return new Map(
    Links.map(({ Name, Hash, Tsize }) => [Name ?? '', { cid: Hash, size: Tsize ?? 0 }]),
  )
}
