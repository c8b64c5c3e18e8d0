import type { CID } from 'multiformats/cid'
import type { BlockSource } from '../../snapshotter/block-source.ts'
import { CodedError, ImageError } from '../../snapshotter/errors.ts'
import { imageOutline } from '../../snapshotter/image-outline.ts'
import { inlineBlock } from '../../snapshotter/oci/verify-block.ts'
import { isUnixfsCodec } from './dag-links.ts'
import { readCar } from './read-car.ts'
import type { BlockRepository } from './repository.ts'
import { walkDag } from './walk-dag.ts'

/** What came with a CAR. */
export type ImportedCar = {
  readonly root: CID
  readonly tags: readonly string[]
  /** Blocks of the image. */
  readonly blocks: number
  readonly bytes: number
}

/**
 * Takes the image of a CAR into `repository` and registers its root as `name`, once the image is whole there. Rejects with
 * CodedError as `readCar`, and INVALID_ARGUMENT if blocks are missing or it is no image: no root is registered then, and the blocks that came stay until
 * the repository's garbage is collected.
 */
export async function importCar(
  source: AsyncIterable<Uint8Array>,
  { repository, name, signal }: { repository: BlockRepository; name: string; signal: AbortSignal },
): Promise<ImportedCar> {
  const car = await readCar(source)
  if (!isUnixfsCodec(car.root) || inlineBlock(car.root) !== undefined) {
    throw new CodedError(
      'INVALID_ARGUMENT',
      `the root of the CAR, ${car.root.toString()}, is no UnixFS directory, so it is no image`,
      { root: car.root.toString() },
    )
  }
  for await (const { cid, bytes } of car.blocks) {
    signal.throwIfAborted()
    // A CID that carries its bytes needs no file, and may be longer than a file's name.
    if (inlineBlock(cid) === undefined) await repository.put(cid, bytes)
  }
  const root = car.root.toV1()
  const get = async (cid: CID): Promise<Uint8Array> => {
    const block = inlineBlock(cid) ?? (await repository.get(cid))
    if (block !== undefined) return block
    throw new CodedError(
      'INVALID_ARGUMENT',
      `block ${cid.toString()} is neither in the CAR nor in the repository; export the image whole`,
      { root: root.toString(), cid: cid.toString() },
    )
  }
  let [blocks, bytes] = [0, 0]
  for await (const block of walkDag(root, get, signal)) {
    blocks++
    bytes += block.bytes.length
  }
  const tags = await tagsOf(root, { get }, signal)
  await repository.addRoot(root, name)
  return { root, tags, blocks, bytes }
}

async function tagsOf(root: CID, blocks: BlockSource, signal: AbortSignal): Promise<string[]> {
  try {
    const { tags } = await imageOutline(root, { blocks, signal })
    return tags
  } catch (error) {
    // Not "no such image" but "this is none": it was given, and is not one.
    if (!(error instanceof ImageError) || error.code !== 'NOT_FOUND') throw error
    throw new ImageError('INVALID_ARGUMENT', error.message, error.facts, error)
  }
}
