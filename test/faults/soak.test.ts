import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { onceServed } from '../support/lazy-node.ts'
import { seeded } from '../support/seeded.ts'
import { agree, judge, nothingIsLeft, ROUND_MS, tried } from './checks.ts'
import { FAILS_CLOSED, faultsOn, strike } from './faults.ts'
import { viewsOf } from './leftovers.ts'
import { type FaultImage, World } from './world.ts'

/** How long. `make soak` asks for an hour, `make test` for a minute. */
const MINUTES = Number(process.env['SOAK_MINUTES'] ?? 1)
const SEED = Number(process.env['FAULT_SEED'] ?? 1)
const random = seeded(SEED)

const IMAGES = 5
/** Containers that run at once. */
const RUNNING_MAX = 3
/** One start of so many, or none of those around it, meets a fault. */
const STARTS_A_FAULT = 8

/** These end the data worker, and with it what it may have leaked: none of them strikes in the last third, which memory is judged by. */
const ENDS_WORKER: ReadonlySet<string> = new Set([
  FAILS_CLOSED,
  'the data worker is killed',
  'the supervisor is killed',
  'the agent is stopped and started',
  'the agent makes room for itself',
  'the disk damages a file of a layer that is not mounted',
  'the disk damages bytes of layers that are still arriving',
])

/** What a worker's memory at rest differs by from one look to the next, in MiB: pages of malloc, a heap before its collection. */
const MEMORY_SLACK_MIB = 48

/** Of calls that are just ending. */
const FILES_SLACK = 4

/** Connections to two gateways, one for each of 32 fetches, are kept; 20 more to containerd and from whoever calls. */
const SOCKETS_MAX = 84

const opened = new AsyncDisposableStack()
let world: World

beforeAll(async () => {
  world = opened.use(await World.make(IMAGES))
}, 120_000)

afterAll(() => opened.disposeAsync(), 120_000)

type Reader = {
  readonly id: string
  readonly image: FaultImage
  /** Lines that it had told when it was last looked at. */
  read: number
  end(): Promise<void>
}

test(
  `${MINUTES} min of ${IMAGES} images that start and stop in random order, with faults now and then (seed ${SEED}): no wrong byte, nothing left behind, memory as it was`,
  async () => {
    const faults = faultsOn(world, random)
    const [kinds, mild] = [
      Object.keys(faults),
      Object.keys(faults).filter((name) => !ENDS_WORKER.has(name)),
    ]
    const running: Reader[] = []
    const started = performance.now()
    const isOver = (share: number): boolean =>
      performance.now() - started > share * MINUTES * 60_000
    let before: Held | undefined
    let starts = 0
    for (; !isOver(1); starts++) {
      if (before === undefined && isOver(2 / 3)) {
        await Promise.all(running.splice(0).map((reader) => reader.end()))
        before = await heldAtRest()
      }
      const choice = before === undefined ? kinds : mild
      const name = random(STARTS_A_FAULT) === 0 ? (choice[random(choice.length)] ?? '') : 'no fault'
      const image = world.images[random(IMAGES)]
      if (image === undefined) throw new Error('no image')
      const [reader] = await Promise.all([start(image), strike(faults, name, random)])
      running.push(reader)
      for (const each of running.slice()) {
        const told = await judge(world, each.id, each.image, { read: each.read, name })
        each.read = told ?? 0
        if (told !== undefined && running.length <= RUNNING_MAX && random(3) > 0) continue
        running.splice(running.indexOf(each), 1)
        await each.end()
      }
      if (name !== 'no fault') await agree(world, name)
    }
    await Promise.all(running.map((reader) => reader.end()))
    const after = await heldAtRest()
    if (before === undefined) throw new Error(`${MINUTES} min are too few`)
    console.log(
      `${starts} starts; at rest in the last third: ${shown(before)}, then ${shown(after)}`,
    )
    expect(after.pid).toBe(before.pid)
    expect(after.files).toBeLessThanOrEqual(before.files + FILES_SLACK)
    expect(after.sockets).toBeLessThanOrEqual(SOCKETS_MAX)
    expect(after.memoryMiB).toBeLessThanOrEqual(before.memoryMiB + MEMORY_SLACK_MIB)
    await nothingIsLeft(world)
  },
  MINUTES * 60_000 + 5 * ROUND_MS,
)

async function start(image: FaultImage): Promise<Reader> {
  const again = <T>(call: () => Promise<T>): Promise<T> => tried(() => onceServed(call))
  await again(() => world.node.cri.pullImage(image.reference))
  const container = await again(() => world.startReader(image))
  return {
    id: container.id,
    image,
    read: 0,
    end: () => again(async () => container[Symbol.asyncDispose]()),
  }
}

/** What the data worker holds. */
type Held = {
  readonly pid: number
  readonly memoryMiB: number
  readonly files: number
  readonly sockets: number
}

/** Once no container runs and all that may be evicted is, when the worker has given back what it does by itself. */
async function heldAtRest(): Promise<Held> {
  await world.evict()
  let least = Number.POSITIVE_INFINITY
  const pid = world.node.agent.workerPid
  await vi.waitFor(
    () => {
      const now = memoryMiB(pid)
      const isFalling = now < least - 1
      least = Math.min(least, now)
      if (isFalling) throw new Error(`the memory of ${pid} still falls: ${now} MiB`)
    },
    { timeout: ROUND_MS, interval: 3_000 },
  )
  const { descriptors } = await viewsOf(world.node)
  const sockets = descriptors.get('socket') ?? 0
  const others = [...descriptors].filter(
    // Layers of images that are here have theirs; at the end nothing may be left of them.
    ([kind]) => kind !== 'socket' && !kind.includes('/layers/'),
  )
  const files = others.reduce((sum, [, count]) => sum + count, 0)
  return { pid, memoryMiB: least, files, sockets }
}

function memoryMiB(pid: number): number {
  const [, kilobytes] =
    /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? []
  return Number(kilobytes) / 1024
}

function shown({ memoryMiB, files, sockets }: Held): string {
  return `${memoryMiB.toFixed(0)} MiB, ${files} files, ${sockets} sockets`
}
