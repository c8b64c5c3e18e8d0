import { cpSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
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

const ROOT = join(import.meta.dirname, '../..')
const PROGRAM = 'agent/cli/bin/ipdr-agent'

const deadlineMs = 180_000
const content = randomContent(seeded(1), 2_000_000)

type Stage = {
  readonly agent: AgentProcess
  readonly scratch: Scratch
  readonly client: AgentClient
  readonly image: PublishedImage
  /** The name by which the agent was started. */
  readonly program: string
  /** Has it lead to another version. */
  readonly install: (version: string) => void
}

/** An agent that was started by a name which leads to the version of this tree. */
async function setUp(): Promise<Stage> {
  const opened = new AsyncDisposableStack()
  onTestFinished(() => opened.disposeAsync())
  const scratch = opened.use(Scratch.open('upgrade'))
  const blocks = new MemoryBlocks()
  const tar = makeTar({ name: 'early', content: 'early' }, { name: 'late', content })
  const image = await publishImage(blocks, [await indexedLayer(tar)])
  const peer = opened.use(await BlockPeer.serve(blocks.blocks))
  const program = join(scratch.dir, 'ipdr-agent')
  const install = (version: string): void => {
    rmSync(program, { force: true })
    symlinkSync(join(version, PROGRAM), program)
  }
  install(ROOT)
  const agent = await AgentProcess.start(scratch, { gateways: [peer.url], program })
  opened.defer(() => agent.stop())
  const client = opened.use(new AgentClient(agent))
  return { agent, scratch, client, image, program, install }
}

/** A copy of this tree that says another version of itself, with `change` made to one of its files. */
function makeVersion(
  scratch: Scratch,
  version: string,
  change?: { readonly file: string; readonly from: string; readonly to: string },
): string {
  const dir = join(scratch.dir, version)
  for (const name of ['agent', 'snapshotter', 'proto', 'package.json']) {
    cpSync(join(ROOT, name), join(dir, name), { recursive: true })
  }
  symlinkSync(join(ROOT, 'node_modules'), join(dir, 'node_modules'))
  const packagePath = join(dir, 'package.json')
  const packageFile = JSON.parse(readFileSync(packagePath, 'utf8')) as object
  writeFileSync(packagePath, JSON.stringify({ ...packageFile, version }))
  if (change !== undefined) {
    const path = join(dir, change.file)
    const text = readFileSync(path, 'utf8')
    if (!text.includes(change.from)) throw new Error(`${change.file} has no ${change.from}`)
    writeFileSync(path, text.replace(change.from, change.to))
  }
  return dir
}

async function versionOf(agent: AgentProcess): Promise<string> {
  using admin = agent.admin()
  return (await admin.calls.Status({}, { signal: AbortSignal.timeout(20_000) })).version
}

const upgrade = ({ program, agent }: Stage): Promise<string> =>
  runCommand(program, ['upgrade', '--config', agent.configPath])

test(
  'a new version takes the place of the one that runs, in the same process, and a container that reads meanwhile sees nothing of it',
  async () => {
    const stage = await setUp()
    const { agent, client, image, scratch, install } = stage
    await client.pull(image)
    await using mounted = await client.mount(image, scratch)
    const { pid, workerPid } = agent
    install(makeVersion(scratch, '9.8.7'))
    // Pages that are read the first time, one after the other, while the agent is replaced.
    const script = `for i in $(seq 0 488); do dd if="$1" bs=4096 skip=$i count=1 status=none; sleep 0.01; done`
    const read = runCommand('sh', [
      '-c',
      `(${script}) | sha256sum`,
      'sh',
      join(mounted.path, 'late'),
    ])
    expect(await upgrade(stage)).toMatch(
      new RegExp(`^ipdr-agent 9.8.7, pid ${pid}, took the place of \\S+ in \\d+\\.\\d s\\n$`),
    )
    expect(await versionOf(agent)).toBe('9.8.7')
    expect(agent.pid).toBe(pid)
    expect(agent.workerPid).not.toBe(workerPid)
    expect(`sha256:${(await read).slice(0, 64)}`).toBe(digestOf(content))
    expect(agent.lines.filter((line) => line['level'] === 50)).toEqual([])
    // And on to the next one, as often as one likes.
    install(makeVersion(scratch, '9.8.8'))
    expect(await upgrade(stage)).toContain('took the place of 9.8.7')
  },
  deadlineMs,
)

test(
  'a version whose worker does not come up makes room again for the one before',
  async () => {
    const stage = await setUp()
    const { agent, client, image, scratch, install } = stage
    await client.pull(image)
    await using mounted = await client.mount(image, scratch)
    const before = await versionOf(agent)
    const file = 'agent/data-worker.ts'
    const from = 'let lazyMountsInUse = 0'
    install(makeVersion(scratch, '9.8.7', { file, from, to: `throw new Error('it is broken')` }))
    const back = agent.logged('the worker of this version does not come up')
    await expect(upgrade(stage)).rejects.toThrow(`ipdr-agent ${before} is there instead of 9.8.7`)
    await back
    const read = await runCommand('sha256sum', [join(mounted.path, 'late')])
    expect(`sha256:${read.slice(0, 64)}`).toBe(digestOf(content))
    // The name still leads to the new version, for when it is mended.
    install(makeVersion(scratch, '9.8.8'))
    expect(await upgrade(stage)).toContain('9.8.8')
  },
  deadlineMs,
)

test(
  'a version that does not take the configuration is not started, and the log says why',
  async () => {
    const { agent, scratch, install } = await setUp()
    const { workerPid } = agent
    const file = 'agent/config.ts'
    const from = 'const configSchema = z.strictObject({'
    const to = `${from}\n  needed: z.string(),`
    install(makeVersion(scratch, '9.8.7', { file, from, to }))
    const refused = agent.logged('this version goes on')
    process.kill(agent.pid, 'SIGHUP')
    expect((await refused).msg).toContain('needed')
    expect(agent.workerPid).toBe(workerPid)
  },
  deadlineMs,
)

test(
  'SIGHUP has the agent read its configuration anew',
  async () => {
    const { agent } = await setUp()
    const config = JSON.parse(readFileSync(agent.configPath, 'utf8')) as object
    writeFileSync(agent.configPath, JSON.stringify({ ...config, store: { bytesMax: 123_000_000 } }))
    const ready = agent.logged('data worker is ready')
    process.kill(agent.pid, 'SIGHUP')
    await ready
    using admin = agent.admin()
    const { storeLimitBytes } = await admin.calls.Status(
      {},
      { signal: AbortSignal.timeout(20_000) },
    )
    expect(storeLimitBytes).toBe('123000000')
  },
  deadlineMs,
)

test(
  'an upgrade of an agent that does not run says so',
  async () => {
    const stage = await setUp()
    await stage.agent.stop()
    await expect(upgrade(stage)).rejects.toThrow('there is nothing to upgrade: start it')
  },
  deadlineMs,
)
