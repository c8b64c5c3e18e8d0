import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { connect, type ServiceClient } from '../../proto/client.ts'
import { agentContract } from '../../proto/load.ts'
import type { AgentDefinition, AgentHandlers } from '../../proto/types/ipdr/v1/Agent.ts'
import { childrenOf } from './children-of.ts'
import type { Scratch } from './scratch.ts'

const ROOT = join(import.meta.dirname, '../..')

/** How long an agent may take until it is ready, in ms. 60 s: 1 s when quiet, 30 at a load of 100. */
const START_DEADLINE_MS = 60_000

type AgentConfig = {
  readonly gateways?: readonly string[]
  readonly peers?: readonly string[]
  readonly bitswap?: boolean
  readonly storeBytesMax?: number
  readonly foregroundDeadlineMs?: number
  readonly mergeLayersMin?: number
  readonly mountsFrom?: 'files' | 'loops'
  /** As in the configuration. */
  readonly registries?: object
  readonly keysDir?: string
  readonly containerdSocket?: string
  readonly prefetch?: object
  readonly policies?: readonly object[]
  readonly cluster?: object
  /** With it there is a control worker, too. */
  readonly deploy?: object
  readonly keyProviders?: string
  readonly keyProvider?: { readonly wrapKeys?: Readonly<Record<string, string>> }
  /** Folder of blobs; with it the agent is containerd's content store. */
  readonly contentRoot?: string
  readonly logLevel?: 'trace' | 'debug'
  /** Beside our own environment. */
  readonly env?: Readonly<Record<string, string>>
  /** By which it is started; by default the one of this tree. */
  readonly program?: string
}

type LogLine = { readonly msg?: string; readonly [fact: string]: unknown }

/** The agent as a user runs it: a supervisor and its data worker, in folders and on ports of a test's own. */
export class AgentProcess implements AsyncDisposable {
  readonly snapshotterSocket: string
  readonly adminSocket: string
  /** CRI's image service, if the configuration asks for it. */
  readonly imageServiceSocket: string
  /** Where containerd's content store is, if the configuration asks for it. */
  readonly contentSocket: string
  readonly registryUrl: string
  readonly monitoringUrl: string
  readonly logPath: string
  readonly root: string
  readonly runDir: string
  /** What it was started with. */
  readonly configPath: string
  readonly #scratch: Scratch
  readonly #program: string
  readonly #env: Readonly<Record<string, string>>
  readonly #lines: LogLine[] = []
  readonly #watchers = new Set<(line: LogLine) => void>()
  #process: ChildProcess | undefined

  private constructor(
    scratch: Scratch,
    ports: { registry: number; monitoring: number },
    config: AgentConfig,
  ) {
    this.#scratch = scratch
    this.root = join(scratch.dir, 'agent')
    this.runDir = join(scratch.run, 'agent')
    this.snapshotterSocket = join(this.runDir, 'snapshotter.sock')
    this.adminSocket = join(this.runDir, 'admin.sock')
    this.imageServiceSocket = join(this.runDir, 'cri-image.sock')
    this.contentSocket = join(this.runDir, 'content.sock')
    this.registryUrl = `http://127.0.0.1:${ports.registry}`
    this.monitoringUrl = `http://127.0.0.1:${ports.monitoring}`
    this.logPath = join(scratch.dir, 'agent.log')
    this.configPath = join(scratch.dir, 'agent.json')
    this.#env = config.env ?? {}
    this.#program = config.program ?? join(ROOT, 'agent/cli/bin/ipdr-agent')
    const { gateways = [], peers = [], bitswap = peers.length > 0 } = config
    writeFileSync(
      this.configPath,
      JSON.stringify({
        root: this.root,
        runDir: this.runDir,
        log: { level: config.logLevel ?? 'debug' },
        registry: { listen: `127.0.0.1:${ports.registry}` },
        monitoring: { listen: `127.0.0.1:${ports.monitoring}` },
        ipfs: { gateways, peers, bitswap },
        ...(config.storeBytesMax && { store: { bytesMax: config.storeBytesMax } }),
        ...(config.foregroundDeadlineMs && {
          fetch: { foregroundDeadlineMs: config.foregroundDeadlineMs },
        }),
        ...(config.registries && { registries: config.registries }),
        ...(config.keyProvider && { keyProvider: config.keyProvider }),
        ...(config.contentRoot && { content: { root: config.contentRoot } }),
        mounts: { mergeLayersMin: config.mergeLayersMin, from: config.mountsFrom },
        ...(config.prefetch && { prefetch: config.prefetch }),
        ...(config.policies && { trust: { policies: config.policies } }),
        ...(config.cluster && { cluster: config.cluster }),
        ...(config.deploy && { deploy: config.deploy }),
        decryption: { keysDir: config.keysDir, keyProviders: config.keyProviders },
        // Never the machine's own.
        containerd: { socketPath: config.containerdSocket ?? join(scratch.run, 'none.sock') },
      }),
    )
  }

  /** Starts an agent and waits until it is ready. Rejects with its last log lines if it is not. */
  static async start(scratch: Scratch, config: AgentConfig = {}): Promise<AgentProcess> {
    const [registry, monitoring] = [await freePort(), await freePort()]
    const agent = new AgentProcess(scratch, { registry, monitoring }, config)
    await agent.start()
    return agent
  }

  /** Starts it again, after `stop` or a kill, on what it had. */
  async start(): Promise<void> {
    const ready = this.logged('data worker is ready')
    const child = spawn(this.#program, ['--config', this.configPath], {
      stdio: ['ignore', 'ignore', 'pipe'],
      env: { ...process.env, ...this.#env },
    })
    if (child.pid !== undefined) this.#scratch.own(child.pid)
    this.#process = child
    const log = createWriteStream(this.logPath, { flags: 'a' })
    const lines = createInterface({ input: child.stderr })
    lines.on('line', (text) => {
      log.write(`${text}\n`)
      this.#take(text)
    })
    lines.on('close', () => log.end())
    const ended = once(child, 'exit').then(() => {
      throw new Error(`the agent ended before it was ready:\n${this.lastLines()}`)
    })
    const late = AbortSignal.timeout(START_DEADLINE_MS)
    const expired = once(late, 'abort').then(() => {
      throw new Error(`the agent was not ready in ${START_DEADLINE_MS} ms:\n${this.lastLines()}`)
    })
    ended.catch(() => undefined)
    expired.catch(() => undefined)
    await Promise.race([ready, ended, expired])
  }

  /** Process number of the supervisor. */
  get pid(): number {
    const pid = this.#process?.pid
    if (pid === undefined) throw new Error('the agent does not run')
    return pid
  }

  /** Process number of the data worker that runs now. */
  get workerPid(): number {
    const worker = childrenOf(this.pid).find((pid) =>
      readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('data-worker'),
    )
    if (worker === undefined) throw new Error('no data worker runs')
    return worker
  }

  /** The next line of the log that starts with this sentence, from now on. */
  logged(sentence: string): Promise<LogLine> {
    const { promise, resolve } = Promise.withResolvers<LogLine>()
    const watch = (line: LogLine): void => {
      if (line.msg?.startsWith(sentence) !== true) return
      this.#watchers.delete(watch)
      resolve(line)
    }
    this.#watchers.add(watch)
    return promise
  }

  /** What it said so far. */
  get lines(): readonly LogLine[] {
    return this.#lines
  }

  lastLines(): string {
    return this.#lines
      .slice(-20)
      .map((line) => JSON.stringify(line))
      .join('\n')
  }

  /** Kills the data worker and waits until the supervisor has started another one. */
  async killWorker(): Promise<void> {
    const ready = this.logged('data worker is ready')
    process.kill(this.workerPid, 'SIGKILL')
    await ready
  }

  /** Stops it as a service manager would, and waits for its end. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    const child = this.#process
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
    const ended = once(child, 'exit')
    child.kill(signal)
    await ended
    this.#process = undefined
  }

  /** The calls of its admin service. */
  admin(): ServiceClient<AgentDefinition, AgentHandlers> {
    return connect(agentContract(), this.adminSocket)
  }

  /** Its metrics, as Prometheus gets them: the value of each sample by name and labels. */
  async metrics(): Promise<ReadonlyMap<string, number>> {
    const text = await (await fetch(`${this.monitoringUrl}/metrics`)).text()
    return new Map(
      text
        .split('\n')
        .filter((line) => line !== '' && !line.startsWith('#'))
        .map((line) => {
          const space = line.lastIndexOf(' ')
          return [line.slice(0, space), Number(line.slice(space + 1))] as const
        }),
    )
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }

  #take(text: string): void {
    let line: LogLine
    try {
      line = JSON.parse(text) as LogLine
    } catch {
      line = { msg: text }
    }
    this.#lines.push(line)
    for (const watch of this.#watchers) watch(line)
  }
}

/** A port of 127.0.0.1 that nobody uses at the moment. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  server.close()
  await once(server, 'close')
  if (address === null || typeof address === 'string') throw new Error('no port')
  return address.port
}
