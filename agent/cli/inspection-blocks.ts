import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { BlockSource } from '../../snapshotter/block-source.ts'
import { BlockError } from '../../snapshotter/errors.ts'
import type { BlockProvider } from '../ipfs/block-provider.ts'
import type { BlockRepository } from '../ipfs/repository.ts'
import { errorLog } from './error-log.ts'
import { asUsageFailure } from './failure.ts'
import type { Places } from './places-options.ts'
import { isRepository, openExistingRepository, repositoryDirectory } from './repository-option.ts'

/** Blocks from the user's own repository, else from the gateways and peers that were named. No agent is asked. */
export async function openInspectionBlocks(
  { repository: given, gateway: gateways, peer: peers }: Places,
  opened: AsyncDisposableStack,
): Promise<BlockSource> {
  const isRemote = gateways.length + peers.length > 0
  const isThere = await isRepository(repositoryDirectory(given))
  // One that was named must be there; that of the user may be missing if there are other places.
  const mustBeThere = given !== undefined || !isRemote
  const repository =
    isThere || mustBeThere ? opened.use(await openExistingRepository(given)) : undefined
  return blocksOf(repository, { gateway: gateways, peer: peers }, opened)
}

/** Blocks from this repository, if there is one, else from the gateways and peers. */
export async function blocksOf(
  repository: BlockRepository | undefined,
  { gateway: gateways, peer: peers }: Omit<Places, 'repository'>,
  opened: AsyncDisposableStack,
): Promise<BlockSource> {
  const isRemote = gateways.length + peers.length > 0
  const remote = isRemote ? await openRemote(gateways, peers, opened) : undefined
  return localFirst(repository, remote)
}

function localFirst(
  repository: BlockRepository | undefined,
  remote: BlockSource | undefined,
): BlockSource {
  return {
    async get(cid, request) {
      const block = await repository?.get(cid)
      if (block !== undefined) return block
      if (remote !== undefined) return remote.get(cid, request)
      throw new BlockError(
        'NOT_FOUND',
        `block ${cid.toString()} is not in the repository; name a place that has it with --gateway or --peer`,
        { cid: cid.toString() },
      )
    },
  }
}

async function openRemote(
  gateways: readonly string[],
  peers: readonly string[],
  opened: AsyncDisposableStack,
): Promise<BlockSource> {
  const log = errorLog(process.stderr)
  const providers: BlockProvider[] = []
  try {
    if (gateways.length > 0) {
      const { GatewayClient } = await import('../ipfs/gateway-client.ts')
      for (const url of gateways) providers.push(opened.use(new GatewayClient(url)))
    }
    if (peers.length > 0) {
      const { HeliaNode } = await import('../ipfs/helia-node.ts')
      // A key for this once: two nodes with one key could not both be reached.
      const directory = await mkdtemp(join(tmpdir(), 'ipdr-inspect-'))
      opened.defer(() => rm(directory, { recursive: true, force: true }))
      const config = { keyPath: join(directory, 'key'), listen: [], peers }
      const node = opened.use(await HeliaNode.start(config, { log }))
      providers.push(...node.providers)
    }
  } catch (error) {
    throw asUsageFailure(error)
  }
  const { BlockSources } = await import('../ipfs/block-sources.ts')
  return new BlockSources(providers, { log })
}
