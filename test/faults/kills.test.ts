import { readFileSync } from 'node:fs'
import { access } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { onceServed } from '../support/lazy-node.ts'
import { seeded } from '../support/seeded.ts'
import { BEHAVIOURS } from './faulty-gateway.ts'
import { removeLeases, viewsOf } from './leftovers.ts'
import { type FaultImage, World } from './world.ts'

/** How many faults. `make test-faults` asks for 500, `make test` for a few of each kind. */
const FAULTS = Number(process.env['FAULTS'] ?? 33)
const SEED = Number(process.env['FAULT_SEED'] ?? 1)
const random = seeded(SEED)

/** At most so long after the round begins a fault strikes, in ms: from the first call of a pull to a running container. */
const STRIKE_WITHIN_MS = 400

/** How long a peer misbehaves, in ms: some of the reads of a start, and less than a read may wait. */
const MISBEHAVES_MS = 1_500

/** 24 h, in seconds. */
const DAY_S = 86_400

/** One fault and its repair take some seconds, and up to 10 more where workers died one after the other; a loaded machine several times as long. */
const ROUND_MS = 120_000

const opened = new AsyncDisposableStack()
let world: World

/** After it what is not in the page cache cannot be read until the next agent is there: a program may end by that, as by a bad disk. */
const FAILS_CLOSED = 'supervisor, worker and keeper are killed'

/** What strikes, and how it is over. */
const faults: Readonly<Record<string, () => Promise<void>>> = {
  'the data worker is killed': () => world.node.agent.killWorker(),
  'the supervisor is killed': async () => {
    await world.node.agent.stop('SIGKILL')
    await world.node.agent.start()
  },
  [FAILS_CLOSED]: async () => {
    const { agent } = world.node
    const record = readFileSync(join(agent.runDir, 'fuse-keeper.json'), 'utf8')
    const { pid } = JSON.parse(record) as { pid: number }
    const worker = agent.workerPid
    await agent.stop('SIGKILL')
    for (const each of [worker, pid]) process.kill(each, 'SIGKILL')
    await agent.start()
  },
  'the agent is stopped and started': async () => {
    await world.node.agent.stop()
    await world.node.agent.start()
  },
  'the agent makes room for itself': async () => {
    const ready = world.node.agent.logged('data worker is ready')
    process.kill(world.node.agent.pid, 'SIGHUP')
    await ready
  },
  'containerd is killed': () => world.node.containerd.restart('SIGKILL'),
  'all that is not in use is evicted': () => world.evict(),
  'the nearest peer misbehaves': async () => {
    const { peer } = world
    peer.behaviour = BEHAVIOURS[1 + random(BEHAVIOURS.length - 1)] ?? 'stalls'
    await setTimeout(MISBEHAVES_MS)
    peer.behaviour = 'is honest'
  },
  "the agent's clock steps": async () => world.clock.step(random(2 * DAY_S) - DAY_S),
  'the disk damages a file of a layer that is not mounted': async () => {
    await world.node.agent.stop()
    world.damageFile(random)
    await world.node.agent.start()
  },
  "the snapshotter's socket is removed": async () => {
    const again = world.node.agent.logged('listens again')
    world.removeSocket()
    await again
  },
}

beforeAll(async () => {
  world = opened.use(await World.make(4))
}, 120_000)

afterAll(() => opened.disposeAsync(), 120_000)

test(
  `after each of ${FAULTS} faults at random points of pull, mount, read, commit, remove and evict (seed ${SEED}) containers read what they should, and all views agree`,
  async () => {
    const { node, images } = world
    const names = Object.keys(faults)
    // One container that lives through all of it.
    const [witnessed] = images
    if (witnessed === undefined) throw new Error('no image')
    await node.cri.pullImage(witnessed.reference)
    let witness = await world.startReader(witnessed)
    let [read, rounds] = [0, 0]
    for (let round = 0; round < FAULTS; round++) {
      const name = names[round < names.length ? round : random(names.length)] ?? ''
      const image = images[random(images.length)] ?? witnessed
      world.forgetPages()
      const strike = async (): Promise<void> => {
        await setTimeout(random(STRIKE_WITHIN_MS))
        await faults[name]?.()
      }
      try {
        await Promise.all([churn(image, name), strike()])
        const told = await judge(witness.id, witnessed, { read, name })
        if (told === undefined) {
          await witness[Symbol.asyncDispose]()
          // containerd's client may still be waiting before it connects again.
          witness = await tried(() => onceServed(() => world.startReader(witnessed)))
        }
        read = told ?? 0
        await agree(name)
      } catch (error) {
        const said = node.agent.lines.slice(-60).map((line) => JSON.stringify(line))
        console.error([`round ${round}: ${name}`, ...said].join('\n'))
        throw error
      }
      rounds++
    }
    await witness[Symbol.asyncDispose]()
    await nothingIsLeft()
    expect(rounds).toBe(FAULTS)
  },
  FAULTS * ROUND_MS,
)

/** A pull, a container that reads, and its end; the image too, at times. Calls that a fault broke are made again, as the kubelet does. */
async function churn(image: FaultImage, name: string): Promise<void> {
  const { node } = world
  const again = <T>(call: () => Promise<T>): Promise<T> => tried(() => onceServed(call))
  await again(() => node.cri.pullImage(image.reference))
  for (let told: number | undefined; told === undefined; ) {
    const container = await again(() => world.startReader(image))
    told = await judge(container.id, image, { read: 0, name })
    await again(async () => container[Symbol.asyncDispose]())
  }
  if (image !== world.images[0]) await again(() => node.cri.removeImage(image.reference))
}

/** containerd answers some calls that were broken off with reasons of all kinds; the kubelet tries all of them again. */
async function tried<T>(call: () => Promise<T>): Promise<T> {
  const deadline = Date.now() + ROUND_MS / 2
  for (;;) {
    try {
      return await call()
    } catch (error) {
      if (Date.now() > deadline) throw error
      await setTimeout(100)
    }
  }
}

/**
 * Every digest that a container tells is the right one, and it goes on to tell some. Returns how many lines it has told; undefined if it
 * has ended, which no fault may bring about but the one that fails closed.
 */
async function judge(
  id: string,
  { sha256 }: FaultImage,
  { read, name }: { readonly read: number; readonly name: string },
): Promise<number | undefined> {
  const { cri } = world.node
  const [lines, state] = await vi.waitFor(async () => {
    const told = (await tried(() => cri.logOf(id))).trim().split('\n')
    const { state } = await tried(() => cri.containerStatus(id))
    const right = told.slice(read).filter((line) => line.startsWith(sha256)).length
    if (state !== 'CONTAINER_EXITED' && right < 2) {
      throw new Error(`${name}: ${id} is ${state} and has told ${right} times what it read`)
    }
    return [told, state] as const
  }, ROUND_MS / 2)
  const wrong = lines.filter((line) => /^[0-9a-f]{64}/.test(line) && !line.startsWith(sha256))
  expect({ name, wrong }).toEqual({ name, wrong: [] })
  if (state !== 'CONTAINER_EXITED') return lines.length
  expect(name).toBe(FAILS_CLOSED)
  return undefined
}

/** Once everything that runs in the background has ended. */
async function agree(name: string): Promise<void> {
  await vi.waitFor(async () => {
    const views = await viewsOf(world.node)
    expect({ name, snapshots: views.ourSnapshots }).toEqual({
      name,
      snapshots: views.containerdSnapshots,
    })
    expect({ name, mounts: views.agentMounts }).toEqual({ name, mounts: views.kernelMounts })
    expect({ name, layers: views.layerFolders }).toEqual({ name, layers: views.agentLayers })
    expect({ name, fuse: views.fuseMounts, dead: views.deadLoops }).toEqual({
      name,
      fuse: 1,
      dead: [],
    })
  }, ROUND_MS / 2)
}

async function nothingIsLeft(): Promise<void> {
  const { node, images } = world
  // Of starts that a fault broke off, as the kubelet finds them.
  for (const id of await node.cri.listPodSandboxes()) {
    await tried(() => node.cri.removePodSandbox({ id }))
  }
  for (const image of images) await tried(() => node.cri.removeImage(image.reference))
  await removeLeases(node)
  await vi.waitFor(async () => {
    const views = await viewsOf(node)
    // The pods' own image, of one layer.
    expect(views.ourSnapshots).toHaveLength(1)
    expect(views.directories).toBe(1)
    expect(views.kernelMounts).toEqual([])
    expect(views.loops).toBe(0)
  }, ROUND_MS)
  await world.evict()
  await vi.waitFor(async () => {
    // A thread that serves the kernel lets go of a file with its next request.
    await Promise.all(
      Array.from({ length: 20 }, (_, name) =>
        access(join(node.agent.runDir, `files/none-${name}`)).catch(() => {}),
      ),
    )
    const { layerFolders, descriptors } = await viewsOf(node)
    expect(layerFolders).toBe(0)
    expect([...descriptors.keys()].filter((path) => path.includes('/layers/'))).toEqual([])
  }, ROUND_MS)
}
