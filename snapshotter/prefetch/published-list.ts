import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { UnixfsFile } from '../dag/unixfs-file.ts'
import { resolveUnixfsPath } from '../dag/unixfs-path.ts'
import { ImageError } from '../errors.ts'
import type { Digest } from '../oci/digest.ts'
import { addFilesBeside } from '../publish/add-files-beside.ts'
import type { BlockSink } from '../publish/import-image.ts'
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
 * directories and the lists is written: no manifest, no digest changes. Resolves to the new root. Rejects as `addFilesBeside`.
 */
export async function addPublishedLists(
  root: CID,
  lists: ReadonlyMap<Digest, PrefetchList>,
  { blocks, sink, signal }: { blocks: BlockSource; sink: BlockSink; signal: AbortSignal },
): Promise<CID> {
  const files = new Map([...lists].map(([manifest, list]) => [manifest, encodePrefetchList(list)]))
  const beside = [{ directory: PREFETCH_DIRECTORY, files }]
  return addFilesBeside(root, beside, { blocks, sink }, { priority: 'foreground', signal })
}
