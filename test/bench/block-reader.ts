import { CID } from 'multiformats/cid'
import { BlockSources } from '../../agent/ipfs/block-sources.ts'
import { readDagLinks } from '../../agent/ipfs/dag-links.ts'
import { GatewayClient } from '../../agent/ipfs/gateway-client.ts'
import { ReusedMemory } from '../../snapshotter/reused-memory.ts'
import type { BlocksRead, BlocksToRead } from './network-path.ts'

// What network-path.ts runs, with the flags of the data worker: fetches every block of a DAG as the agent does, and keeps none.

const RAW = 0x55
const log = { debug: ignore, info: ignore, warn: console.error, error: console.error }

const { gateway, root, atOnce } = JSON.parse(process.argv[2] ?? '') as BlocksToRead
const client = new GatewayClient(gateway)
let fetchedBytes = 0
const blocks = new BlockSources([client], {
  log,
  onBytes: (from, bytes) => {
    if (from === 'gateway') fetchedBytes += bytes
  },
})
const memory = new ReusedMemory()
const request = { priority: 'prefetch', signal: AbortSignal.timeout(600_000) } as const

const leaves = await leavesOf(CID.parse(root))
// Connections are made, and the code is compiled: an agent runs for weeks.
await readAll(leaves)
const [bytesBefore, before, started] = [fetchedBytes, process.cpuUsage(), performance.now()]
await readAll(leaves)
const ms = performance.now() - started
const { user, system } = process.cpuUsage(before)
const read: BlocksRead = {
  blocks: leaves.length,
  bytes: fetchedBytes - bytesBefore,
  allBytes: fetchedBytes,
  ms,
  cpuSeconds: (user + system) / 1e6,
}
console.log(JSON.stringify(read))
await client[Symbol.asyncDispose]()

async function leavesOf(cid: CID): Promise<CID[]> {
  if (cid.code === RAW) return [cid]
  const { links } = readDagLinks(cid, await blocks.get(cid, request))
  const below = await Promise.all(links.map((link) => leavesOf(link.cid)))
  return below.flat()
}

async function readAll(cids: readonly CID[]): Promise<void> {
  let next = 0
  const readOn = async (): Promise<void> => {
    for (let cid = cids[next++]; cid !== undefined; cid = cids[next++]) {
      memory.giveBack(await blocks.get(cid, { ...request, memory }))
    }
  }
  await Promise.all(Array.from({ length: atOnce }, readOn))
}

function ignore(): void {}
