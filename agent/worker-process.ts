import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import type { Logger } from './logger.ts'
import { type WorkerMessage, workerMessage } from './worker-message.ts'

/** First wait before a worker is started again; doubles with every early death. */
const BACKOFF_FIRST_MS = 100
/** 10 s: a page fault blocked meanwhile still meets its 30 s deadline after the next start. */
const BACKOFF_LONGEST_MS = 10_000
/** A worker that ran this long was not dying of its start: the next wait is the first one again. */
const STEADY_AFTER_MS = 30_000
/** A worker says it is alive every second once it is ready; 30 missed ones mean that its event loop hangs. */
const SILENCE_LONGEST_MS = 30_000
/** Until then it says nothing. 10 min: it checks all databases in one piece, 60 GB at 100 MB/s; a second when there is nothing to check. */
const START_LONGEST_MS = 600_000
/** A stopping worker may take this long for calls in flight and for flushing: containerd's own deadline is 10 s. */
const STOP_LONGEST_MS = 20_000

export type WorkerStart = {
  /** For people. */
  readonly name: string
  /** What main.ts is told to be. */
  readonly command: string
  readonly configPath: string | undefined
  readonly compileCacheDir: string
  /** Of Node and V8. */
  readonly flags?: readonly string[]
  readonly environment?: Readonly<Record<string, string>>
  /** The descriptor that it finds as its fourth. */
  readonly fuseFd?: number
  readonly stop: AbortSignal
  readonly log: Logger
  readonly onReady?: (
    message: Extract<WorkerMessage, { kind: 'ready' }>,
    pid: number | undefined,
  ) => void
}

export type WorkerEnd = {
  readonly reason: { code: number | null; signal: string | null }
  readonly stopped: Extract<WorkerMessage, { kind: 'stopped' }> | undefined
}

/**
 * Keeps a worker running until `stop` aborts: one that ends, or is silent for too long and killed, is started again, with growing pauses if it
 * dies of its start. `meanwhile` is what its absence means, for people.
 */
export async function keepWorker(
  start: WorkerStart,
  { meanwhile, onEnd }: { readonly meanwhile: string; readonly onEnd: (end: WorkerEnd) => void },
): Promise<void> {
  const { name, log, stop } = start
  let backoffMs = BACKOFF_FIRST_MS
  while (!stop.aborted) {
    const startedAt = performance.now()
    const end = await runWorker(start)
    onEnd(end)
    if (stop.aborted) return
    const ranMs = performance.now() - startedAt
    backoffMs =
      ranMs > STEADY_AFTER_MS ? BACKOFF_FIRST_MS : Math.min(backoffMs * 2, BACKOFF_LONGEST_MS)
    log.error(
      { ...end.reason, ranMs: Math.round(ranMs), retryMs: backoffMs },
      `${name} ended; ${meanwhile} until it is back in ${backoffMs} ms`,
    )
    await pause(backoffMs, stop)
  }
}

async function runWorker(start: WorkerStart): Promise<WorkerEnd> {
  const { name, log, stop } = start
  const worker = spawnWorker(start)
  let stopped: WorkerEnd['stopped']
  let lastSign = performance.now()
  let silenceLongestMs = START_LONGEST_MS
  worker.on('message', (value) => {
    const message = workerMessage.parse(value)
    lastSign = performance.now()
    switch (message.kind) {
      case 'ready':
        silenceLongestMs = SILENCE_LONGEST_MS
        start.onReady?.(message, worker.pid)
        break
      case 'alive':
        break
      case 'stopped':
        stopped = message
        break
    }
  })
  const watch = setInterval(() => {
    if (performance.now() - lastSign < silenceLongestMs) return
    log.error(
      { workerPid: worker.pid },
      `${name} was silent for ${silenceLongestMs} ms: killing it`,
    )
    worker.kill('SIGKILL')
  }, 1000)
  let giveUp: NodeJS.Timeout | undefined
  const askToStop = (): void => {
    worker.kill('SIGTERM')
    giveUp = setTimeout(() => {
      log.error(
        { workerPid: worker.pid },
        `${name} did not stop within ${STOP_LONGEST_MS} ms: killing it`,
      )
      worker.kill('SIGKILL')
    }, STOP_LONGEST_MS)
  }
  if (stop.aborted) askToStop()
  else stop.addEventListener('abort', askToStop, { once: true })
  try {
    const [code, signal] = (await once(worker, 'exit')) as [number | null, string | null]
    return { reason: { code, signal }, stopped }
  } finally {
    stop.removeEventListener('abort', askToStop)
    clearInterval(watch)
    clearTimeout(giveUp)
  }
}

function spawnWorker({
  command,
  configPath,
  compileCacheDir,
  flags = [],
  environment = {},
  fuseFd,
}: WorkerStart): ChildProcess {
  return spawn(
    process.execPath,
    [
      ...flags,
      '--disable-warning=ExperimentalWarning',
      fileURLToPath(new URL('main.ts', import.meta.url)),
      command,
      ...(configPath === undefined ? [] : ['--config', configPath]),
      ...(fuseFd === undefined ? [] : ['--fuse-fd=3']),
    ],
    {
      env: { ...process.env, ...environment, NODE_COMPILE_CACHE: compileCacheDir },
      stdio: ['ignore', 'inherit', 'inherit', fuseFd ?? 'ignore', 'ipc'],
    },
  )
}

function pause(ms: number, stop: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(resolve, ms)
  stop.addEventListener('abort', () => resolve(), { once: true })
  return promise.finally(() => clearTimeout(timer))
}
