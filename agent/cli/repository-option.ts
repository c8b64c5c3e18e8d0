import { stat } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join, resolve } from 'node:path'
import type { BlockRepository } from '../ipfs/repository.ts'
import { EXIT_CODES } from './exit-codes.ts'
import { CommandFailure } from './failure.ts'

/** `--repository`, of the commands that publish. */
export const REPOSITORY_OPTION = {
  type: 'string',
  requiresArg: true,
  describe:
    'Directory of published blocks; $XDG_DATA_HOME/ipdr or ~/.local/share/ipdr unless given',
  valueName: 'DIR',
  env: 'IPDR_REPOSITORY',
} as const

/** The repository's directory, absolute. */
export function repositoryDirectory(given: string | undefined): string {
  if (given !== undefined) return resolve(given)
  const data = process.env['XDG_DATA_HOME'] || join(homedir(), '.local/share')
  return join(data, 'ipdr')
}

/** Opens a repository that must be there already: to look at it is no reason to make one. */
export async function openExistingRepository(given: string | undefined): Promise<BlockRepository> {
  const directory = repositoryDirectory(given)
  if (!(await isRepository(directory))) {
    throw new CommandFailure(
      EXIT_CODES.notFound,
      `there is no repository in ${directory}`,
      'ipdr push makes one; --repository names another.',
    )
  }
  const { BlockRepository } = await import('../ipfs/repository.ts')
  return BlockRepository.open(directory)
}

/** Whether something was published into `directory` before. */
export async function isRepository(directory: string): Promise<boolean> {
  const roots = await stat(join(directory, 'roots')).catch(() => undefined)
  return roots?.isDirectory() === true
}
