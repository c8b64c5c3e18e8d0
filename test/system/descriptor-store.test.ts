import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { mountFileSystem } from '../../snapshotter/kernel/mount-file-system.ts'
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
import { ControlGroup } from '../support/control-group.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { LazyNode } from '../support/lazy-node.ts'
import { makeTar } from '../support/make-tar.ts'
import { MemoryBlocks } from '../support/memory-blocks.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'
import { ServiceManager } from '../support/service-manager/service-manager.ts'

// An agent whose service manager stores descriptors, as systemd does by `FileDescriptorStoreMax`. test/node has the real one.

const deadlineMs = 180_000
const pollMs = { timeout: 30_000, interval: 20 }
const late = randomContent(seeded(1), 900_000)
const later = randomContent(seeded(2), 900_000)

type Place = {
  readonly scratch: Scratch
  readonly manager: ServiceManager
  readonly peer: BlockPeer
  readonly image: PublishedImage
}

/** A service manager, and a peer with an image. All is gone when the test is over. */
async function setUp(): Promise<Place> {
  const opened = new AsyncDisposableStack()
  onTestFinished(() => opened.disposeAsync())
  const scratch = opened.use(Scratch.open('store'))
  const blocks = new MemoryBlocks()
  const programs = makeTar(...busyboxFiles('sleep', 'sha256sum'))
  const files = makeTar({ name: 'late', content: late }, { name: 'later', content: later })
  const image = await publishImage(blocks, [
    await indexedLayer(programs),
    await indexedLayer(files),
  ])
  const peer = opened.use(await BlockPeer.serve(blocks.blocks))
  return { scratch, manager: await ServiceManager.start(scratch), peer, image }
}

/** The same with an agent of its own in that scratch. */
async function setUpAgent(): Promise<Place & { agent: AgentProcess; client: AgentClient }> {
  const place = await setUp()
  const agent = await AgentProcess.start(place.scratch, {
    gateways: [place.peer.url],
    ...place.manager.service,
  })
  const client = new AgentClient(agent)
  onTestFinished(() => client[Symbol.dispose]())
  return { ...place, agent, client }
}

function keeperPid(agent: AgentProcess): number {
  const text = readFileSync(join(agent.runDir, 'fuse-keeper.json'), 'utf8')
  return (JSON.parse(text) as { pid: number }).pid
}

/** Every process of ours in one call, so that none sees another one go. */
async function killAll(agent: AgentProcess): Promise<void> {
  const pids = [agent.pid, agent.workerPid, keeperPid(agent)].map(String)
  const { status } = spawnSync('kill', ['-KILL', ...pids])
  expect(status).toBe(0)
  await agent.stop('SIGKILL')
}

/** 'D' of a process that waits for us: field 3 of proc_pid_stat(5). */
function stateOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    return stat.charAt(stat.lastIndexOf(')') + 2)
  } catch {
    return undefined
  }
}

async function digestAt(path: string): Promise<string> {
  writeFileSync('/proc/sys/vm/drop_caches', '3')
  return `sha256:${(await runCommand('sha256sum', [path])).slice(0, 64)}`
}

/** What the mount of layers is called in the store. */
function storedName(agent: AgentProcess): string {
  const [mount] = listMounts(join(agent.runDir, 'files'))
  return `ipdr-fuse-${mount?.device.replace(':', '-')}`
}

test(
  'kill -9 of supervisor, worker and keeper in one go loses nothing: what a container reads waits, and is right',
  async () => {
    const { manager, peer, image } = await setUp()
    await using node = await LazyNode.start('store', { gateways: [peer.url], ...manager.service })
    const name = `ipdr.internal/${image.root.toString()}`
    await node.cri.pullImage(name)
    await using container = await node.startContainer(name, ['/bin/sleep', '1000'])
    const readers = new ControlGroup(node.containerd.cgroup)
    const waiting = (): number => readers.pids().filter((pid) => stateOf(pid) === 'D').length
    const read = async (path: string): Promise<string> => {
      const { stdout, stderr } = await node.cri.execSync(container.id, ['/bin/sha256sum', path])
      return `${stdout}${stderr}`
    }
    // All of the program is in memory then.
    await read('/bin/busybox')
    let held = 0
    peer.misbehaviour = (request, response) => {
      held++
      request.on('close', () => response.destroy())
    }
    const before = read('/late')
    await expect.poll(() => held, pollMs).toBeGreaterThan(0)
    await expect.poll(waiting, pollMs).toBe(1)
    peer.misbehaviour = undefined
    const keeper = keeperPid(node.agent)
    await killAll(node.agent)
    const meanwhile = read('/later')
    await expect.poll(waiting, pollMs).toBe(2)
    await node.agent.start()
    expect(await before).toBe(`${digestOf(late).slice(7)}  /late\n`)
    expect(await meanwhile).toBe(`${digestOf(later).slice(7)}  /later\n`)
    expect(keeperPid(node.agent)).not.toBe(keeper)
    expect(manager.stored).toEqual([storedName(node.agent)])
    expect(node.agent.lines.filter(({ msg }) => msg?.startsWith('mended a mount'))).toEqual([])
  },
  deadlineMs,
)

test(
  'one descriptor is stored whatever restarts, and none once a stop has unmounted everything',
  async () => {
    const { manager, agent } = await setUpAgent()
    const name = storedName(agent)
    const kept = { message: `FDSTORE=1\nFDNAME=${name}\nFDPOLL=0`, descriptors: 1, stored: [name] }
    const ready = { message: 'READY=1', descriptors: 0, stored: [name] }
    await expect.poll(() => manager.untimedMessages, pollMs).toEqual([kept, ready])
    await agent.stop('SIGKILL')
    await agent.start()
    await expect.poll(() => manager.untimedMessages, pollMs).toEqual([kept, ready, kept, ready])
    await killAll(agent)
    await agent.start()
    await expect.poll(() => manager.untimedMessages.slice(4), pollMs).toEqual([kept, ready])
    expect(storedName(agent)).toBe(name)
    await agent.stop()
    await expect
      .poll(() => manager.untimedMessages.slice(6), pollMs)
      .toEqual([
        { message: 'STOPPING=1', descriptors: 0, stored: [name] },
        { message: `FDSTOREREMOVE=1\nFDNAME=${name}`, descriptors: 0, stored: [] },
      ])
  },
  deadlineMs,
)

test(
  'a new keeper holds what came out of the store: the next kill of the agent needs no store',
  async () => {
    const { agent, client, image, scratch } = await setUpAgent()
    await client.pull(image)
    await using mounted = await client.mount(image, scratch)
    await killAll(agent)
    await agent.start()
    const keeper = keeperPid(agent)
    const tookOver = agent.logged('took over the FUSE connection')
    await agent.stop('SIGKILL')
    await agent.start()
    expect(await tookOver).toMatchObject({ keeperPid: keeper })
    expect(await digestAt(join(mounted.path, 'late'))).toBe(digestOf(late))
  },
  deadlineMs,
)

test(
  'a connection that was aborted is not taken back, neither from the keeper nor from the store, which forgets it',
  async () => {
    const { agent, manager, client, image, scratch } = await setUpAgent()
    await client.pull(image)
    await using mounted = await client.mount(image, scratch)
    const [files] = listMounts(join(agent.runDir, 'files'))
    await agent.stop('SIGKILL')
    const control = join(scratch.run, 'control')
    mkdirSync(control)
    await mountFileSystem({ type: 'fusectl', target: control, options: [], readOnly: false })
    writeFileSync(join(control, files?.device.split(':')[1] ?? '', 'abort'), '1')
    const stale = manager.stored
    const keeper = keeperPid(agent)
    const from = manager.untimedMessages.length
    await agent.start()
    expect(keeperPid(agent)).not.toBe(keeper)
    const since = (): unknown[] => manager.untimedMessages.slice(from).map(({ message }) => message)
    await expect.poll(() => since().at(-1), pollMs).toBe('READY=1')
    expect(since()).toContain(`FDSTOREREMOVE=1\nFDNAME=${stale[0]}`)
    expect(manager.stored).toEqual([storedName(agent)])
    expect(await digestAt(join(mounted.path, 'late'))).toBe(digestOf(late))
  },
  deadlineMs,
)

test(
  'what is stored of a mount that somebody has taken away is forgotten, so that nobody waits for it for ever',
  async () => {
    const { agent, manager, client, image, scratch } = await setUpAgent()
    await client.pull(image)
    await using mounted = await client.mount(image, scratch)
    const stale = storedName(agent)
    await killAll(agent)
    await runCommand('umount', ['--lazy', join(agent.runDir, 'files')])
    await agent.start()
    await expect.poll(() => manager.untimedMessages.at(-1)?.message, pollMs).toBe('READY=1')
    expect(manager.stored).toEqual([storedName(agent)])
    expect(manager.stored).not.toEqual([stale])
    expect(await digestAt(join(mounted.path, 'late'))).toBe(digestOf(late))
  },
  deadlineMs,
)

test(
  'what the supervisor was given is not passed on: its children get one descriptor and no word of it, and upgrades go on',
  async () => {
    const { agent, client, image, scratch } = await setUpAgent()
    await client.pull(image)
    await using mounted = await client.mount(image, scratch)
    await killAll(agent)
    await agent.start()
    for (const pid of [agent.workerPid, keeperPid(agent)]) {
      expect(readFileSync(`/proc/${pid}/environ`, 'utf8')).not.toContain('LISTEN_')
      const held = readdirSync(`/proc/${pid}/fd`).filter(
        (fd) => readlinkSync(`/proc/${pid}/fd/${fd}`) === '/dev/fuse',
      )
      expect(held).toEqual(['3'])
    }
    const ready = agent.logged('data worker is ready')
    process.kill(agent.pid, 'SIGHUP')
    expect(await ready).toMatchObject({ adopted: true })
    expect(await digestAt(join(mounted.path, 'late'))).toBe(digestOf(late))
  },
  deadlineMs,
)

test(
  'a keeper that was killed is there again before the agent makes room for its next version',
  async () => {
    const { agent, client, image, scratch } = await setUpAgent()
    await client.pull(image)
    await using mounted = await client.mount(image, scratch)
    const keeper = keeperPid(agent)
    process.kill(keeper, 'SIGKILL')
    const ready = agent.logged('data worker is ready')
    process.kill(agent.pid, 'SIGHUP')
    expect(await ready).toMatchObject({ adopted: true })
    expect(keeperPid(agent)).not.toBe(keeper)
    expect(await digestAt(join(mounted.path, 'late'))).toBe(digestOf(late))
  },
  deadlineMs,
)
