import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import { AgentClient } from '../snapshotter/layers/agent-client.ts'
import {
  indexedLayer,
  type PublishedImage,
  publishImage,
} from '../snapshotter/layers/published-image.ts'
import { AgentProcess } from '../support/agent.ts'
import { BlockPeer } from '../support/block-peer.ts'
import { makeTar } from '../support/make-tar.ts'
import { MemoryBlocks } from '../support/memory-blocks.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

// What becomes of mounts under running containers when our processes are gone.

const deadlineMs = 90_000
const below = randomContent(seeded(1), 3_000_000)
const above = randomContent(seeded(2), 3_000_000)

type Stage = {
  readonly agent: AgentProcess
  readonly peer: BlockPeer
  readonly client: AgentClient
  readonly image: PublishedImage
  readonly scratch: Scratch
}

/** An agent and a peer with an image of two layers; all is gone when the test is over, whatever became of the agent. */
async function setUp(config: object = {}): Promise<Stage> {
  const opened = new AsyncDisposableStack()
  onTestFinished(() => opened.disposeAsync())
  const scratch = opened.use(Scratch.open('running'))
  const blocks = new MemoryBlocks()
  const layers = [
    await indexedLayer(
      makeTar({ name: 'small', content: 'small' }, { name: 'below', content: below }),
    ),
    await indexedLayer(makeTar({ name: 'above', content: above })),
  ]
  const image = await publishImage(blocks, layers)
  const peer = opened.use(await BlockPeer.serve(blocks.blocks))
  const agent = await AgentProcess.start(scratch, { gateways: [peer.url], ...config })
  opened.defer(() => agent.stop())
  const client = opened.use(new AgentClient(agent))
  return { agent, peer, client, image, scratch }
}

/** Every process of ours that containers could need, all at once. */
async function killAll(agent: AgentProcess): Promise<void> {
  const record = readFileSync(join(agent.runDir, 'fuse-keeper.json'), 'utf8')
  const { pid } = JSON.parse(record) as { pid: number }
  const worker = agent.workerPid
  // The supervisor first, so that nobody starts a worker again.
  await agent.stop('SIGKILL')
  for (const each of [worker, pid]) process.kill(each, 'SIGKILL')
}

/** What a process of its own reads, with nothing in the page cache. */
async function digestAt(path: string): Promise<string> {
  writeFileSync('/proc/sys/vm/drop_caches', '3')
  return `sha256:${(await runCommand('sha256sum', [path])).slice(0, 64)}`
}

async function complete({ agent, image }: Stage): Promise<void> {
  using admin = agent.admin()
  const request = { reference: `ipdr.internal/${image.root.toString()}`, all: true }
  const signal = AbortSignal.timeout(deadlineMs)
  for await (const _ of admin.calls.Pull(request, { signal })) {
    // It ends when everything is here.
  }
}

function said({ agent }: Stage, sentence: string): object[] {
  return agent.lines.filter(({ msg }) => msg?.startsWith(sentence))
}

describe.each([
  ['a mount a layer', {}],
  ['a merged mount', { mergeLayersMin: 2 }],
  ['mounts over loop devices alone, as before Linux 6.12', { mountsFrom: 'loops' }],
])('%s', (_, config) => {
  test(
    'needs no process of ours once all of its layers is here',
    async () => {
      const stage = await setUp(config)
      const { client, image, scratch, agent } = stage
      await client.pull(image)
      await using mounted = await client.mount(image, scratch)
      expect(await digestAt(join(mounted.path, 'small'))).toBe(digestOf(Buffer.from('small')))
      await complete(stage)
      await expect
        .poll(() => said(stage, 'a complete layer needs the agent no more'), { timeout: 20_000 })
        .toHaveLength(2)
      await killAll(agent)
      expect(await digestAt(join(mounted.path, 'below'))).toBe(digestOf(below))
      expect(await digestAt(join(mounted.path, 'above'))).toBe(digestOf(above))
    },
    deadlineMs,
  )

  test(
    'fails closed while every process of ours is gone, and reads on once there is an agent again',
    async () => {
      const stage = await setUp(config)
      const { client, image, scratch, agent } = stage
      await client.pull(image)
      await using mounted = await client.mount(image, scratch)
      expect(await digestAt(join(mounted.path, 'small'))).toBe(digestOf(Buffer.from('small')))
      await killAll(agent)
      await expect(digestAt(join(mounted.path, 'below'))).rejects.toThrow(/Input\/output error/)
      await agent.start()
      expect(said(stage, 'mended a mount')).toHaveLength(2)
      expect(await digestAt(join(mounted.path, 'below'))).toBe(digestOf(below))
      expect(await digestAt(join(mounted.path, 'above'))).toBe(digestOf(above))
    },
    deadlineMs,
  )
})

test(
  'a layer that was completed as the agent died is given up by the next one',
  async () => {
    const stage = await setUp()
    const { client, image, scratch, agent } = stage
    await client.pull(image)
    await using mounted = await client.mount(image, scratch)
    await complete(stage)
    await killAll(agent)
    await agent.start()
    await killAll(agent)
    expect(await digestAt(join(mounted.path, 'below'))).toBe(digestOf(below))
    expect(await digestAt(join(mounted.path, 'above'))).toBe(digestOf(above))
  },
  deadlineMs,
)

test(
  'what a container reads from the plain file is not evicted under it',
  async () => {
    const stage = await setUp()
    const { client, image, scratch, agent } = stage
    await client.pull(image)
    await using mounted = await client.mount(image, scratch)
    await complete(stage)
    await expect
      .poll(() => said(stage, 'a complete layer needs the agent no more'), { timeout: 20_000 })
      .toHaveLength(2)
    using admin = agent.admin()
    await admin.calls.CollectGarbage({ targetBytes: '0' }, { signal: AbortSignal.timeout(20_000) })
    expect(await digestAt(join(mounted.path, 'below'))).toBe(digestOf(below))
    expect(await digestAt(join(mounted.path, 'above'))).toBe(digestOf(above))
  },
  deadlineMs,
)

test(
  'containers whose layers this agent no longer knows are told of',
  async () => {
    const stage = await setUp()
    const { client, image, scratch, agent } = stage
    await client.pull(image)
    await using _mounted = await client.mount(image, scratch)
    await killAll(agent)
    await runCommand('rm', [
      '-rf',
      ...['catalog.db', 'layers'].map((name) => join(agent.root, name)),
    ])
    await agent.start()
    expect(said(stage, 'containers on /dev/loop')).toHaveLength(2)
  },
  deadlineMs,
)
