import { mkdir } from 'node:fs/promises'
import type { BlockRepository } from '../ipfs/repository.ts'
import type { Places } from './places-options.ts'
import { openExistingRepository, repositoryDirectory } from './repository-option.ts'

/** The repository for new blocks: made where the image comes from elsewhere, else it must hold the image already. */
export async function openPublishingSink({
  repository: given,
  gateway,
  peer,
}: Places): Promise<BlockRepository> {
  if (gateway.length + peer.length === 0) return openExistingRepository(given)
  return openOrMakeRepository(given)
}

/** The repository in this directory, or the user's; made if it is not there. */
export async function openOrMakeRepository(given: string | undefined): Promise<BlockRepository> {
  const { BlockRepository } = await import('../ipfs/repository.ts')
  const directory = repositoryDirectory(given)
  await mkdir(directory, { recursive: true, mode: 0o755 })
  return BlockRepository.open(directory)
}
