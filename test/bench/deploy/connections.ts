import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { buildProgram } from '../../../node-image/build-program.ts'
import { freePort } from '../../support/agent.ts'
import { Daemon } from '../../support/daemon.ts'
import { cpuSeconds, residentMemory } from '../start/process-cost.ts'
import {
  type DeployContext,
  type DeployFigure,
  type DeployMeasurement,
  LISTEN,
  UNPAID,
} from './deploy-figure.ts'
import type { PeersCount, PeersQuestion, PeersTask } from './idle-peers.ts'
import { OwnProcess } from './own-process.ts'

/** As many as the endpoint takes by default. */
const CONNECTIONS = 1_000

/** Processes of peers; more hosts than that in one of them answer the endpoint late. */
const PROCESSES = 4

/** New connections of all peers a second: below the 64 that the endpoint takes from one address. */
const CONNECTIONS_PER_SECOND = 48

/** Of each connection. 10,000 in all: more than twice of what the endpoint has open at once. */
const STREAMS_OF_EACH = 10

/** How long nothing happens before memory is looked at, in ms: garbage of the start goes, and peers are asked who they are. */
const REST_MS = 15_000

/** How often the endpoint is asked what is open, in ms. */
const LOOK_MS = 250

/** Streams that say nothing are open for ten seconds, and opening them takes some; a minute is too long. */
const CLOSED_MS_MAX = 60_000

/** Memory of the control worker with connections that say nothing, and what becomes of streams that do not either. */
export const connections: DeployMeasurement = {
  name: 'connections',
  async measure(context) {
    const { say } = context
    await using opened = new AsyncDisposableStack()
    const worker = opened.use(await Worker.start(context))
    const peers = opened.use(await Peers.start(context, worker.address))
    await setTimeout(REST_MS)
    const empty = await worker.look()
    say(`connecting ${CONNECTIONS} peers`)
    const { connections } = await peers.ask({
      kind: 'connect',
      perSecond: CONNECTIONS_PER_SECOND / PROCESSES,
    })
    await setTimeout(REST_MS)
    const connected = await worker.look()
    await setTimeout(REST_MS)
    const rested = await worker.look()
    say(`opening ${connections * STREAMS_OF_EACH} streams`)
    const openedAt = performance.now()
    const opening = { isOver: false }
    const trying = peers
      .ask({ kind: 'open', streamsOfEach: STREAMS_OF_EACH })
      .finally(() => (opening.isOver = true))
    let full = await worker.look()
    let now = full
    while (!opening.isOver || now.streams > 0) {
      if (performance.now() - openedAt > CLOSED_MS_MAX) break
      now = await worker.look()
      if (now.streams > full.streams) full = now
      await setTimeout(LOOK_MS)
    }
    const closedMs = performance.now() - openedAt
    const tried = await trying
    const left = await peers.ask({ kind: 'count' })
    const after = await worker.look()
    await peers[Symbol.asyncDispose]()
    await setTimeout(REST_MS)
    const alone = await worker.look()
    const figures: DeployFigure[] = [
      {
        name: 'memory-empty',
        value: empty.residentMiB,
        unit: 'MiB',
        detail: `the control worker without a connection; V8's heap ${empty.heapMiB.toFixed(0)}`,
      },
      {
        name: 'memory-connected',
        value: rested.residentMiB,
        unit: 'MiB',
        detail: `with ${rested.connections} connections; ${connected.residentMiB.toFixed(0)} ${REST_MS / 1_000} s before; heap ${rested.heapMiB.toFixed(0)}`,
      },
      {
        name: 'memory-connection',
        value: ((rested.residentMiB - empty.residentMiB) * 1024) / rested.connections,
        unit: 'KiB',
        detail: `each; of that V8's heap ${(((rested.heapMiB - empty.heapMiB) * 1024) / rested.connections).toFixed(0)}`,
      },
      {
        name: 'cpu-connected',
        value:
          (rested.cpuSeconds - connected.cpuSeconds) / ((rested.atMs - connected.atMs) / 1_000),
        unit: 'cores',
        detail:
          'busy with these connections while nobody says anything: each is asked every ten seconds whether it is there',
      },
      {
        name: 'streams-most',
        value: full.streams,
        unit: '',
        detail: `open at once of ${connections * STREAMS_OF_EACH}; ${tried.agreed} were agreed on; ${after.connections} connections stay`,
      },
      {
        name: 'streams-closed',
        value: closedMs / 1_000,
        unit: 's',
        detail: `until the endpoint had none; ${left.open} are left at the peers`,
      },
      {
        name: 'memory-streams',
        value: full.residentMiB,
        unit: 'MiB',
        detail: `with ${full.streams} streams; most at any time ${after.peakMiB.toFixed(0)}; ${after.residentMiB.toFixed(0)} when they were closed, ${alone.residentMiB.toFixed(0)} with ${alone.connections} connections, heap ${alone.heapMiB.toFixed(0)}`,
      },
    ]
    return { figures }
  },
}

/** What the worker tells at one moment. */
type Look = {
  readonly atMs: number
  readonly residentMiB: number
  readonly peakMiB: number
  readonly heapMiB: number
  readonly cpuSeconds: number
  readonly connections: number
  readonly streams: number
}

const MiB = 1024 ** 2

/** `ipdr-agent control-worker`, as it is installed; there is no cluster, and nobody asks for it. */
class Worker implements AsyncDisposable {
  readonly address: string
  readonly #daemon: Daemon
  readonly #url: string

  private constructor(address: string, daemon: Daemon, url: string) {
    this.address = address
    this.#daemon = daemon
    this.#url = url
  }

  static async start({ scratch }: DeployContext): Promise<Worker> {
    const [config, kubeconfig] = ['worker.json', 'nobody.kubeconfig'].map((name) =>
      join(scratch.dir, name),
    ) as [string, string]
    const listen = `127.0.0.1:${await freePort()}`
    writeFileSync(kubeconfig, KUBECONFIG)
    const deploy = { ...LISTEN, ...UNPAID, kubeconfig, monitoring: { listen } }
    const [root, runDir] = [join(scratch.dir, 'worker'), join(scratch.run, 'worker')]
    writeFileSync(config, JSON.stringify({ root, runDir, deploy }))
    const program = join(await buildProgram(), 'ipdr-agent.js')
    const words = [process.execPath, program, 'control-worker', '--config', config]
    const daemon = await Daemon.start(scratch, 'control-worker', words, {
      NODE_COMPILE_CACHE: root,
    })
    let address: string | undefined
    await daemon.whenReady(async () => {
      address = /\/ip4\/127\.0\.0\.1\/tcp\/\d+\/p2p\/\w+/.exec(
        readFileSync(daemon.logPath, 'utf8'),
      )?.[0]
      return address !== undefined
    })
    return new Worker(address ?? '', daemon, `http://${listen}/metrics`)
  }

  async look(): Promise<Look> {
    const text = await (await fetch(this.#url)).text()
    const metric = (name: string): number =>
      Number(new RegExp(`^${name} (\\S+)$`, 'm').exec(text)?.[1])
    const { totalMiB, peakMiB } = residentMemory(this.#daemon.pid)
    return {
      atMs: performance.now(),
      residentMiB: totalMiB,
      peakMiB,
      heapMiB: metric('nodejs_heap_size_used_bytes') / MiB,
      cpuSeconds: cpuSeconds([this.#daemon.pid]),
      connections: metric('ipdr_deploy_connections'),
      streams: metric('ipdr_deploy_streams'),
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#daemon.kill()
  }
}

const KUBECONFIG = JSON.stringify({
  apiVersion: 'v1',
  kind: 'Config',
  clusters: [{ name: 'c', cluster: { server: 'https://127.0.0.1:1' } }],
  users: [{ name: 'u', user: { token: 'none' } }],
  contexts: [{ name: 'x', context: { cluster: 'c', user: 'u' } }],
  'current-context': 'x',
})

/** All peers, of all processes. */
class Peers implements AsyncDisposable {
  readonly #processes: readonly OwnProcess[]

  private constructor(processes: readonly OwnProcess[]) {
    this.#processes = processes
  }

  static async start({ scratch }: DeployContext, address: string): Promise<Peers> {
    const task: PeersTask = { peers: CONNECTIONS / PROCESSES, address }
    const started = await Promise.all(
      Array.from({ length: PROCESSES }, () => OwnProcess.start(scratch, 'idle-peers.ts', task)),
    )
    return new Peers(started.map(({ process }) => process))
  }

  async ask(question: PeersQuestion): Promise<PeersCount> {
    const counts = await Promise.all(
      this.#processes.map((process) => process.ask<PeersCount>(question)),
    )
    const sum = (field: keyof PeersCount): number =>
      counts.reduce((sum, count) => sum + count[field], 0)
    return { connections: sum('connections'), agreed: sum('agreed'), open: sum('open') }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#processes.map((process) => process[Symbol.asyncDispose]()))
  }
}
