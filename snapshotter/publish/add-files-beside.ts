import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { readPlainDirectory } from '../dag/plain-directory.ts'
import { ImageError } from '../errors.ts'
import { type BlockSink, type ImportedNode, importBlob, writeDirectory } from './import-image.ts'

/** Files to write beside what an image has: in one of its directories, or there where these are, and under which names. */
export type FilesBeside = {
  readonly directory: string | undefined
  readonly files: ReadonlyMap<string, Uint8Array>
}

/**
 * Writes an image directory like the one at `root`, with these files in directories of it, which are made if they are not there:
 * its other names, and other files in there, lead to the same CIDs, and none of their blocks is read or written. Resolves to the
 * new root. Rejects with ImageError UNIMPLEMENTED for a directory in shards or a file, and as BlockSource.get and the sink.
 */
export async function addFilesBeside(
  root: CID,
  beside: readonly FilesBeside[],
  { blocks, sink }: { readonly blocks: BlockSource; readonly sink: BlockSink },
  request: BlockRequest,
): Promise<CID> {
  const image = await readDirectory(root, blocks, request)
  const namesIn = async (before: ImportedNode | undefined): Promise<Map<string, ImportedNode>> =>
    before === undefined ? new Map() : readDirectory(before.cid, blocks, request)
  for (const { directory, files } of beside) {
    const names = directory === undefined ? image : await namesIn(image.get(directory))
    for (const [name, bytes] of files) {
      names.set(name, await importBlob(once(bytes), 'kubo', sink, request.signal))
    }
    if (directory !== undefined) {
      image.set(directory, await writeDirectory(names, sink, request.signal))
    }
  }
  return (await writeDirectory(image, sink, request.signal)).cid
}

/** The names of a directory, with the sizes that its links say. */
async function readDirectory(
  cid: CID,
  blocks: BlockSource,
  request: BlockRequest,
): Promise<Map<string, ImportedNode>> {
  const names = await readPlainDirectory(cid, blocks, request)
  if (names !== undefined) return names
  throw new ImageError(
    'UNIMPLEMENTED',
    `${cid.toString()} is not a directory of one block: push the image again with ipdr push`,
    { cid: cid.toString() },
  )
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array, void> {
  yield bytes
}
