import type { BlockSource } from '../../snapshotter/block-source.ts'
import { BlockError } from '../../snapshotter/errors.ts'
import type { BlockRepository } from '../ipfs/repository.ts'

/** Blocks of the repository alone. */
export function repositoryBlocks(repository: BlockRepository): BlockSource {
  return {
    async get(cid) {
      const block = await repository.get(cid)
      if (block !== undefined) return block
      throw new BlockError('NOT_FOUND', `block ${cid.toString()} is not in the repository`, {
        cid: cid.toString(),
      })
    },
  }
}
