import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { connect } from '../../proto/client.ts'
import { criImageContract } from '../../proto/load.ts'
import { EXIT_CODES } from './exit-codes.ts'
import { CommandFailure, plain } from './failure.ts'
import type { ReadySign } from './ready-sign.ts'

/** The kubelet's namespace: CRI alone pulls lazily with every containerd; ctr of 1.6 and 1.7 downloads and unpacks. */
const NAMESPACE = 'k8s.io'

/** Between SIGTERM and SIGKILL to the container, in ms: 5 s, so that a stop costs less than the start did. */
const STOP_GRACE_MS = 5_000

/** Which containerd, and what of it. */
export type ContainerdNode = {
  readonly socketPath: string
  /** By which containerd knows the agent. */
  readonly snapshotter: string
}

/** How a container came to its end. */
export type RunEnd =
  | { readonly kind: 'exit'; readonly exitCode: number }
  /** It wrote the line that was waited for, or ran for as long as it may. It still runs. */
  | { readonly kind: 'ready' | 'timeout' }

/** Between two questions whether a server answers, in ms: so that little of what follows the first answer is recorded. */
const ASK_MS = 50

const run = promisify(execFile)

/**
 * Has containerd pull an image as a kubelet does. Dispose of it to remove the image again, if it was not there before. Rejects
 * with CommandFailure or grpc-js's ServiceError.
 */
export async function pullByCri(
  reference: string,
  { socketPath }: ContainerdNode,
  signal: AbortSignal,
): Promise<AsyncDisposable> {
  const client = connect(criImageContract(), socketPath)
  const image = { image: reference }
  try {
    const { image: before } = await client.calls.ImageStatus({ image }, { signal })
    await client.calls.PullImage({ image }, { signal })
    return {
      async [Symbol.asyncDispose]() {
        // Not the command's signal: it may be why we are here.
        const call = { signal: AbortSignal.timeout(STOP_GRACE_MS) }
        using _client = client
        if (!before) await client.calls.RemoveImage({ image }, call).catch(() => undefined)
      },
    }
  } catch (error) {
    client[Symbol.dispose]()
    const details = plain((error as { details?: string }).details ?? String(error))
    throw new CommandFailure(
      EXIT_CODES.unavailable,
      `containerd at ${socketPath} did not pull ${reference}: ${details}`,
      'Is it running, with the agent as its snapshotter? See node-image/containerd; --address names its socket.',
      error,
    )
  }
}

/** A container that ctr runs, whose output goes to our standard error. Dispose of it to stop and remove it. */
export class ContainerRun implements AsyncDisposable {
  readonly #node: ContainerdNode
  readonly #id: string
  readonly #process: ChildProcess
  readonly #ready = Promise.withResolvers<RunEnd>()
  readonly #exited: Promise<RunEnd>

  private constructor(node: ContainerdNode, id: string, process: ChildProcess) {
    this.#node = node
    this.#id = id
    this.#process = process
    const { promise, resolve, reject } = Promise.withResolvers<RunEnd>()
    process.once('close', (code) => resolve({ kind: 'exit', exitCode: code ?? EXIT_CODES.failure }))
    process.once('error', (cause) => reject(noCtr(cause)))
    promise.catch(() => undefined)
    this.#exited = promise
  }

  /** Starts `command`, or what the image runs by itself, in a container of an image that was pulled. */
  static start(
    { reference, command, flags, ready, quiet }: RunRequest,
    node: ContainerdNode,
  ): ContainerRun {
    const id = `ipdr-optimize-${randomUUID()}`
    const words = ['run', '--rm', '--snapshotter', node.snapshotter, ...flags, reference, id]
    const process = spawn('ctr', [...ctrWords(node), ...words, ...command], {
      stdio: ['ignore', 'pipe', 'pipe'],
      // A terminal sends Ctrl-C to us both; the container is ours to stop.
      detached: true,
    })
    const started = new ContainerRun(node, id, process)
    for (const stream of [process.stdout, process.stderr]) {
      createInterface({ input: stream }).on('line', (line) =>
        started.#heard(line, ready?.kind === 'line' ? ready.text : undefined, quiet),
      )
    }
    if (ready?.kind === 'answer') void started.#ask(ready.url)
    return started
  }

  /** Waits for its end, until it is ready, or until `timeoutMs` have passed. Rejects when `signal` aborts, or if there is no ctr. */
  async end(timeoutMs: number, signal: AbortSignal): Promise<RunEnd> {
    signal.throwIfAborted()
    const { promise: timeout, resolve } = Promise.withResolvers<RunEnd>()
    const { promise: aborted, reject } = Promise.withResolvers<never>()
    const timer = setTimeout(() => resolve({ kind: 'timeout' }), timeoutMs)
    const abort = (): void => reject(signal.reason)
    signal.addEventListener('abort', abort, { once: true })
    try {
      return await Promise.race([this.#ready.promise, this.#exited, timeout, aborted])
    } finally {
      clearTimeout(timer)
      signal.removeEventListener('abort', abort)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { pid, exitCode, signalCode } = this.#process
    if (pid === undefined || exitCode !== null || signalCode !== null) return
    await this.#kill('SIGTERM')
    const timer = setTimeout(() => void this.#kill('SIGKILL'), STOP_GRACE_MS)
    await this.#exited
    clearTimeout(timer)
  }

  #heard(line: string, readyText: string | undefined, quiet: boolean): void {
    if (!quiet) process.stderr.write(`${line}\n`)
    if (readyText !== undefined && line.includes(readyText)) this.#ready.resolve({ kind: 'ready' })
  }

  /** Asks until it answers, or until the container has ended. */
  async #ask(url: URL): Promise<void> {
    const ended = new AbortController()
    const end = (): void => ended.abort()
    this.#exited.then(end, end)
    while (!ended.signal.aborted) {
      // Before it listens nobody answers, and no first answer is waited for longer than the command says.
      const answer = await fetch(url, { signal: ended.signal }).catch(() => undefined)
      await answer?.body?.cancel().catch(() => undefined)
      if (answer?.ok === true) {
        this.#ready.resolve({ kind: 'ready' })
        return
      }
      await sleep(ASK_MS, undefined, { signal: ended.signal }).catch(() => undefined)
    }
  }

  /** The container may have ended by itself, or not have begun: ctr then ends too. */
  async #kill(signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    const words = ['task', 'kill', '--signal', signal, this.#id]
    await run('ctr', [...ctrWords(this.#node), ...words]).catch(() => this.#process.kill(signal))
  }
}

export type RunRequest = {
  readonly reference: string
  /** Empty: what the image runs by itself. */
  readonly command: readonly string[]
  /** More flags of `ctr run`. */
  readonly flags: readonly string[]
  readonly ready: ReadySign | undefined
  readonly quiet: boolean
}

function ctrWords({ socketPath }: ContainerdNode): string[] {
  return ['--address', socketPath, '--namespace', NAMESPACE]
}

function noCtr(cause: unknown): CommandFailure {
  return new CommandFailure(
    EXIT_CODES.notFound,
    `ctr, which runs the container, cannot be started: ${(cause as Error).message}`,
    'It comes with containerd; put it into the PATH.',
    cause,
  )
}
