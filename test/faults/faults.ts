import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { BEHAVIOURS } from './faulty-gateway.ts'
import type { World } from './world.ts'

/** What strikes a node, by name: each resolves when it is over. */
export type Faults = Readonly<Record<string, () => Promise<void>>>

/** At most so long after a round begins a fault strikes, in ms: from the first call of a pull to a running container. */
const STRIKE_WITHIN_MS = 400

/** How long a peer misbehaves, in ms: some of the reads of a start, and less than a read may wait. */
const MISBEHAVES_MS = 1_500

/** 24 h, in seconds. */
const DAY_S = 86_400

/** After it what is not in the page cache cannot be read until the next agent is there: a program may end by that, as by a bad disk. */
export const FAILS_CLOSED: string = 'supervisor, worker and keeper are killed'

/** What strikes, and how it is over. */
export function faultsOn(world: World, random: (max: number) => number): Faults {
  return {
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
    'the disk damages bytes of layers that are still arriving': async () => {
      await world.node.agent.stop()
      await world.damageArriving(random)
      await world.node.agent.start()
    },
    "the snapshotter's socket is removed": async () => {
      const again = world.node.agent.logged('listens again')
      world.removeSocket()
      await again
    },
  }
}

/** Has the fault of this name strike at a random moment; none strikes if there is none. */
export async function strike(
  faults: Faults,
  name: string,
  random: (max: number) => number,
): Promise<void> {
  await setTimeout(random(STRIKE_WITHIN_MS))
  await faults[name]?.()
}
