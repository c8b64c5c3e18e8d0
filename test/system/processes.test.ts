import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { globSync, readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { expect, onTestFinished, test } from 'vitest'
import { listMounts } from '../../snapshotter/kernel/mountinfo.ts'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import { AgentClient } from '../snapshotter/layers/agent-client.ts'
import {
  indexedLayer,
  type PublishedImage,
  publishImage,
} from '../snapshotter/layers/published-image.ts'
import { AgentProcess } from '../support/agent.ts'
import { BlockPeer } from '../support/block-peer.ts'
import { childrenOf } from '../support/children-of.ts'
import { makeTar } from '../support/make-tar.ts'
import { MemoryBlocks } from '../support/memory-blocks.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'
import { ServiceManager } from '../support/service-manager/service-manager.ts'

const deadlineMs = 90_000
const pollMs = { timeout: 20_000, interval: 20 }
const content = randomContent(seeded(1), 900_000)

type Stage = {
  readonly scratch: Scratch
  readonly agent: AgentProcess
  readonly peer: BlockPeer
  readonly blocks: MemoryBlocks
  readonly client: AgentClient
  readonly image: PublishedImage
}

/** An agent and a peer with an image; all is gone when the test is over, whatever became of the agent. */
async function setUp(config: Parameters<typeof AgentProcess.start>[1] = {}): Promise<Stage> {
  const opened = new AsyncDisposableStack()
  onTestFinished(() => opened.disposeAsync())
  const scratch = opened.use(Scratch.open('processes'))
  const blocks = new MemoryBlocks()
  const tar = makeTar({ name: 'early', content: 'early' }, { name: 'late', content })
  const image = await publishImage(blocks, [await indexedLayer(tar)])
  const peer = opened.use(await BlockPeer.serve(blocks.blocks))
  const agent = await AgentProcess.start(scratch, { gateways: [peer.url], ...config })
  const client = opened.use(new AgentClient(agent))
  return { scratch, agent, peer, blocks, client, image }
}

function keeperPid(agent: AgentProcess): number {
  const text = readFileSync(join(agent.runDir, 'fuse-keeper.json'), 'utf8')
  return (JSON.parse(text) as { pid: number }).pid
}

/** 'D' of a process that waits for the disk or for us, 'Z' of one that ended: field 3 of proc_pid_stat(5). */
function stateOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    return stat.charAt(stat.lastIndexOf(')') + 2)
  } catch {
    return undefined
  }
}

/** Whether a process is a data worker, and no longer the supervisor that is about to become one. */
function isWorker(pid: number): boolean {
  return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('data-worker')
}

function hasEnded(pid: number): boolean {
  return [undefined, 'Z'].includes(stateOf(pid))
}

/** Reads a file in a process of its own, which is blocked, and hears nothing else, while its bytes are not there. */
function readElsewhere(path: string): { pid: number; digest: Promise<string> } {
  const child = spawn('sha256sum', [path], { stdio: ['ignore', 'pipe', 'inherit'] })
  if (child.pid === undefined) throw new Error('sha256sum could not be started')
  return {
    pid: child.pid,
    digest: text(child.stdout).then((line) => `sha256:${line.slice(0, 64)}`),
  }
}

test(
  'a data worker that is killed is started again, after a pause that grows',
  async () => {
    const { agent } = await setUp()
    const pauses: unknown[] = []
    for (let death = 0; death < 3; death++) {
      const ended = agent.logged('data worker ended')
      const before = agent.workerPid
      await agent.killWorker()
      const { retryMs, signal } = await ended
      expect(signal).toBe('SIGKILL')
      pauses.push(retryMs)
      expect(agent.workerPid).not.toBe(before)
    }
    expect(pauses).toEqual([200, 400, 800])
  },
  deadlineMs,
)

test(
  'a reader that waits for bytes while the worker is killed gets them from the next worker',
  async () => {
    const { agent, client, image, peer, scratch } = await setUp()
    await client.pull(image)
    await using mounted = await client.mount(image, scratch)
    const held: (() => void)[] = []
    peer.misbehaviour = (request, response) => {
      held.push(() => response.writeHead(503).end())
      request.on('close', () => response.destroy())
    }
    const { digest } = readElsewhere(join(mounted.path, 'late'))
    await expect.poll(() => held.length, pollMs).toBeGreaterThan(0)
    peer.misbehaviour = undefined
    await agent.killWorker()
    expect(await digest).toBe(digestOf(content))
  },
  deadlineMs,
)

test(
  'it is alive and ready, with metrics, as long as it can be called',
  async () => {
    const { agent, client, image } = await setUp()
    const get = async (path: string): Promise<string> => {
      const response = await fetch(`${agent.monitoringUrl}${path}`)
      return `${response.status} ${await response.text()}`
    }
    expect(await get('/livez')).toBe('200 ok\n')
    expect(await get('/readyz')).toBe('200 ok\n')
    await client.pull(image)
    await client.view(image)
    const metrics = await agent.metrics()
    expect(metrics.get('ipdr_lazy_mounts')).toBe(1)
    expect(metrics.get('ipdr_fetched_bytes_total{source="gateway"}')).toBeGreaterThan(0)
    const call =
      'ipdr_grpc_call_seconds_count{method="containerd.services.snapshots.v1.Snapshots/View",code="OK"}'
    expect(metrics.get(call)).toBe(1)
    await agent.stop()
    await expect(get('/readyz')).rejects.toThrow('fetch failed')
  },
  deadlineMs,
)

test(
  'a stop with nothing in use unmounts everything and ends the keeper',
  async () => {
    const { agent, client, image, scratch } = await setUp()
    await client.pull(image)
    const { key } = await client.view(image)
    await client.snapshots.remove(key)
    const keeper = keeperPid(agent)
    expect(hasEnded(keeper)).toBe(false)
    expect(listMounts(scratch.dir).map(({ type }) => type)).toEqual(['erofs'])
    await agent.stop()
    expect([scratch.dir, scratch.run].flatMap((path) => listMounts(path))).toEqual([])
    await expect.poll(() => hasEnded(keeper), pollMs).toBe(true)
    expect(globSync(`${agent.runDir}/**`).filter((path) => path.endsWith('.sock'))).toEqual([])
    await agent.start()
    await client.pull(image).catch(() => undefined) // Its snapshots are there.
    await using mounted = await client.mount(image, scratch)
    expect(await readElsewhere(join(mounted.path, 'late')).digest).toBe(digestOf(content))
  },
  deadlineMs,
)

test.each(['SIGTERM', 'SIGKILL'] as const)(
  'after %s with a mount in use it stays, its readers wait, and the next agent answers them',
  async (signal) => {
    const { agent, client, image, scratch } = await setUp()
    await client.pull(image)
    await using mounted = await client.mount(image, scratch)
    const before = [scratch.dir, scratch.run].flatMap((path) => listMounts(path))
    const [keeper, worker] = [keeperPid(agent), agent.workerPid]
    await agent.stop(signal)
    // A worker whose supervisor was killed ends by itself, and answers reads until then.
    await expect.poll(() => hasEnded(worker), pollMs).toBe(true)
    expect([scratch.dir, scratch.run].flatMap((path) => listMounts(path))).toEqual(before)
    expect(hasEnded(keeper)).toBe(false)
    const { pid, digest } = readElsewhere(join(mounted.path, 'late'))
    await expect.poll(() => stateOf(pid), pollMs).toBe('D')
    const ready = agent.logged('data worker is ready')
    await agent.start()
    expect(await ready).toMatchObject({ adopted: true })
    expect(await digest).toBe(digestOf(content))
    expect(keeperPid(agent)).toBe(keeper)
    expect(await client.snapshots.stat(image.chainIds[0] ?? '')).toMatchObject({
      kind: 'COMMITTED',
    })
  },
  deadlineMs,
)

test(
  'a mount whose snapshot is gone is still in use: a stop keeps it, and the next agent answers its readers',
  async () => {
    const { agent, client, image, scratch } = await setUp()
    await client.pull(image)
    await using mounted = await client.mount(image, scratch)
    // As containerd does with a view that nothing refers to, whoever has mounted it.
    await client.snapshots.remove(mounted.key)
    const keeper = keeperPid(agent)
    await agent.stop()
    expect(hasEnded(keeper)).toBe(false)
    const { digest } = readElsewhere(join(mounted.path, 'late'))
    const ready = agent.logged('data worker is ready')
    await agent.start()
    expect(await ready).toMatchObject({ adopted: true })
    expect(await digest).toBe(digestOf(content))
    await mounted[Symbol.asyncDispose]()
    await agent.stop()
    expect([scratch.dir, scratch.run].flatMap((path) => listMounts(path))).toEqual([])
    await expect.poll(() => hasEnded(keeper), pollMs).toBe(true)
  },
  deadlineMs,
)

test(
  'mounts from files whose keeper was killed are stale: they are taken away and made anew',
  async () => {
    const { agent, client, image, scratch } = await setUp({ mountsFrom: 'files' })
    await client.pull(image)
    const { key } = await client.view(image)
    await agent.stop()
    process.kill(keeperPid(agent), 'SIGKILL')
    await agent.start()
    const detached = agent.lines.filter(({ msg }) => msg?.startsWith('detached a mount'))
    const targets = detached.map(({ target }) => String(target))
    expect(new Set(targets)).toEqual(
      new Set([join(agent.runDir, 'files'), join(agent.root, 'm/1')]),
    )
    await client.snapshots.remove(key)
    await using mounted = await client.mount(image, scratch)
    expect(await readElsewhere(join(mounted.path, 'late')).digest).toBe(digestOf(content))
  },
  deadlineMs,
)

test(
  'a worker whose port is taken is tried again, with growing pauses, and says why',
  async () => {
    const { agent } = await setUp()
    await agent.stop()
    const { hostname, port } = new URL(agent.registryUrl)
    const squatter = createServer().listen(Number(port), hostname)
    await once(squatter, 'listening')
    const first = agent.logged('data worker ended')
    const reason = agent.logged('cannot go on')
    const starting = agent.start()
    expect(await reason).toMatchObject({ msg: expect.stringContaining('EADDRINUSE') })
    const second = first.then(() => agent.logged('data worker ended'))
    expect([(await first)['retryMs'], (await second)['retryMs']]).toEqual([200, 400])
    squatter.close()
    await starting
  },
  deadlineMs,
)

test(
  'a clean stop waits for the call in flight, and then ends with success',
  async () => {
    const { agent, client, image, peer, blocks } = await setUp()
    await client.resolve(image)
    const asked = Promise.withResolvers<void>()
    const release = Promise.withResolvers<void>()
    peer.misbehaviour = ({ url = '' }, response) => {
      asked.resolve()
      const cid = url.replace('/ipfs/', '').replace('?format=raw', '')
      void release.promise.then(() => response.writeHead(200).end(blocks.blocks.get(cid)))
    }
    const claiming = client.claim(image.chainIds[0] ?? '')
    await asked.promise
    const stopping = agent.logged('stopping: waiting for what is in flight')
    const stopped = agent.stop()
    await stopping
    release.resolve()
    await claiming
    await stopped
    expect(agent.lines.filter((line) => line['level'] === 50)).toEqual([])
  },
  deadlineMs,
)

/** A service manager; it ends with the test. */
async function startManager(): Promise<{ scratch: Scratch; manager: ServiceManager }> {
  const scratch = Scratch.open('processes')
  onTestFinished(() => scratch[Symbol.asyncDispose]())
  return { scratch, manager: await ServiceManager.start(scratch) }
}

test(
  'the service manager hears that it is ready, and that it stops',
  async () => {
    const { scratch, manager } = await startManager()
    const heard = (): string[] =>
      manager.untimedMessages
        .map(({ message }) => message)
        .filter((message) => !message.includes('FD'))
    const agent = await AgentProcess.start(scratch, manager.service)
    await expect.poll(heard, pollMs).toEqual(['READY=1'])
    await agent.stop()
    await expect.poll(heard, pollMs).toEqual(['READY=1', 'STOPPING=1'])
  },
  deadlineMs,
)

function heard(manager: ServiceManager, message: string): number {
  return manager.messages.filter((heard) => heard.message === message).length
}

const STILL_STARTING = 'EXTEND_TIMEOUT_USEC=60000000'

test(
  'a start that takes long is waited for, by the supervisor and by the service manager',
  async () => {
    const { manager } = await startManager()
    const { agent } = await setUp(manager.service)
    await agent.stop()
    const signs = (): number => heard(manager, 'WATCHDOG=1')
    const [signsBefore, startsBefore] = [signs(), heard(manager, STILL_STARTING)]
    const starting = agent.start()
    const worker = (): number => childrenOf(agent.pid).find(isWorker) ?? 0
    await expect.poll(worker, pollMs).toBeGreaterThan(0)
    const pid = worker()
    process.kill(pid, 'SIGSTOP')
    // Two signs of life: forty seconds, and a worker that is ready may be silent for thirty.
    await expect.poll(signs, { timeout: 60_000 }).toBe(signsBefore + 2)
    expect(heard(manager, STILL_STARTING)).toBe(startsBefore + 3)
    process.kill(pid, 'SIGCONT')
    await starting
    expect(agent.workerPid).toBe(pid)
  },
  deadlineMs,
)

test(
  'a worker that dies of its start is tried again, and the service manager is not asked to wait for it',
  async () => {
    const { manager } = await startManager()
    const { agent } = await setUp(manager.service)
    await agent.stop()
    const { hostname, port } = new URL(agent.registryUrl)
    const squatter = createServer().listen(Number(port), hostname)
    await once(squatter, 'listening')
    const before = heard(manager, STILL_STARTING)
    const signsBefore = heard(manager, 'WATCHDOG=1')
    const starting = agent.start()
    await agent.logged('data worker ended')
    await expect.poll(() => heard(manager, 'WATCHDOG=1'), { timeout: 60_000 }).toBe(signsBefore + 1)
    expect(heard(manager, STILL_STARTING)).toBe(before + 1)
    squatter.close()
    await starting
  },
  deadlineMs,
)
