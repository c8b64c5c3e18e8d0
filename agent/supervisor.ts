import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import type { Config } from './config.ts'
import { type DescriptorStore, noDescriptorStore } from './descriptor-store.ts'
import {
  closeFuseConnection,
  ensureKeeper,
  type FuseConnection,
  openFuseConnection,
} from './fuse-keeper.ts'
import type { Logger } from './logger.ts'
import { tellLostPods } from './lost-pods.ts'
import { placesOf } from './places.ts'
import { lockRoot } from './root-lock.ts'
import { type Notifier, noNotifier } from './service-notify.ts'
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
/** How often the service manager hears that we live: a third of the unit's WatchdogSec. */
const SIGN_OF_LIFE_MS = 20_000
/** A stopping worker may take this long for calls in flight and for flushing: containerd's own deadline is 10 s. */
const STOP_LONGEST_MS = 20_000

/**
 * What keeps the worker small; measured, see test/bench/README.md. Young objects get 3 × 4 MiB instead of 3 × 32; two malloc
 * arenas, not one a thread; compiled sources are kept on disk, so that a restart needs no TypeScript parser (30 MB) either.
 * Without the second flag V8 collects for every few network buffers: 27 % more CPU on fetches. Without the third the main thread waits for
 * V8's helpers when young objects are collected, 36 ms of a busy machine for 1 ms of work.
 */
export const MEMORY_FLAGS: readonly string[] = [
  '--max-semi-space-size=4',
  '--external-memory-accounted-in-global-limit',
  '--no-parallel-scavenge',
]

/** A version that was put in another one's place must bring a worker up in so many attempts, and in the time below, or the other one comes back. */
const TRIAL_DEATHS_MAX = 3
/** 3 min: a start takes a second when quiet, and took one minute on a machine at ten times its load. */
const TRIAL_MS = 180_000

type Shared = {
  readonly log: Logger
  readonly notifier?: Notifier
  /** Where the FUSE connection outlives all of our processes. */
  readonly store?: DescriptorStore
  /** Aborts when another version, or configuration, is to take this one's place: everything stays mounted then. */
  readonly handOver?: AbortSignal
  /** Whether this one took another version's place, which can come back. */
  readonly isTrial?: boolean
}

/** Why a supervisor ended. */
export type SuperviseEnd =
  /** It was told to stop. */
  | 'stopped'
  /** It was told to make room for its successor. */
  | 'handed over'
  /** Its worker does not come up, and there is a version that did. */
  | 'failed trial'

/**
 * Keeps the node's FUSE connection and a data worker running until `stop` aborts. The worker may crash, hang or be
 * killed: it is started again and the kernel sends it the reads it had not answered. Rejects if another agent has the root or
 * the FUSE connection cannot be made; a worker that cannot start is tried again, with growing pauses, for ever.
 */
export async function supervise(
  config: Config,
  configPath: string | undefined,
  stop: AbortSignal,
  {
    log,
    notifier = noNotifier,
    store = noDescriptorStore,
    handOver = new AbortController().signal,
    isTrial = false,
  }: Shared,
): Promise<SuperviseEnd> {
  const places = placesOf(config)
  using _lock = lockRoot(config.root)
  const fuse = openFuseConnection(places, {
    log,
    store,
    onLost: (containers) => {
      const { socketPath } = config.containerd
      void tellLostPods(containers, { socketPath, log, stop })
    },
  })
  // The worker's life is our business, ours is the service manager's.
  const first = new FirstStart(notifier)
  const signs = setInterval(() => {
    notifier.alive()
    first.goesOn()
  }, SIGN_OF_LIFE_MS)
  first.goesOn()
  using _signs = { [Symbol.dispose]: () => clearInterval(signs) }
  let backoffMs = BACKOFF_FIRST_MS
  let inUse = true
  const trial = new Trial(isTrial)
  const ending = AbortSignal.any([stop, handOver, trial.failed])
  while (!ending.aborted) {
    const startedAt = performance.now()
    const end = await runWorker({
      configPath,
      compileCacheDir: `${config.root}/compile-cache`,
      fuse,
      stop: ending,
      log,
      notifier,
      onReady: () => {
        trial.passed()
        first.isOver()
      },
    })
    if (end.stopped !== undefined) inUse = end.stopped.lazyMountsInUse > 0
    if (ending.aborted) break
    trial.died()
    first.isOver()
    const ranMs = performance.now() - startedAt
    backoffMs =
      ranMs > STEADY_AFTER_MS ? BACKOFF_FIRST_MS : Math.min(backoffMs * 2, BACKOFF_LONGEST_MS)
    log.error(
      { ...end.reason, ranMs: Math.round(ranMs), retryMs: backoffMs },
      `data worker ended; containers wait for uncached bytes until it is back in ${backoffMs} ms`,
    )
    await pause(backoffMs, ending)
  }
  if (!stop.aborted) {
    // Our descriptor closes as the other program takes our place.
    ensureKeeper(fuse, places, log)
    return handOver.aborted ? 'handed over' : 'failed trial'
  }
  notifier.stopping()
  if (inUse || !closeFuseConnection(places, store)) {
    log.info(
      { keeperPid: fuse.keeperPid },
      'lazy mounts are in use: they stay, held by the FUSE keeper',
    )
  }
  return 'stopped'
}

/**
 * Has the service manager, and with it containerd, wait for a start that takes long, but not for workers that die of their start: those
 * are not worth a node that does not come up.
 */
class FirstStart {
  readonly #notifier: Notifier
  #isOver = false

  constructor(notifier: Notifier) {
    this.#notifier = notifier
  }

  /** Call it every SIGN_OF_LIFE_MS. */
  goesOn(): void {
    if (!this.#isOver) this.#notifier.starting(SIGN_OF_LIFE_MS * 3)
  }

  isOver(): void {
    this.#isOver = true
  }
}

/** The time in which a new version has to show that its worker comes up. */
class Trial {
  readonly #failed = new AbortController()
  readonly #timer: NodeJS.Timeout | undefined
  #isOver: boolean
  #deaths = 0

  constructor(isTrial: boolean) {
    this.#isOver = !isTrial
    if (isTrial) this.#timer = setTimeout(() => this.#failed.abort(), TRIAL_MS)
  }

  get failed(): AbortSignal {
    return this.#failed.signal
  }

  passed(): void {
    this.#isOver = true
    clearTimeout(this.#timer)
  }

  died(): void {
    this.#deaths++
    if (!this.#isOver && this.#deaths >= TRIAL_DEATHS_MAX) this.#failed.abort()
  }
}

type WorkerEnd = {
  readonly reason: { code: number | null; signal: string | null }
  readonly stopped: Extract<WorkerMessage, { kind: 'stopped' }> | undefined
}

type WorkerStart = {
  readonly configPath: string | undefined
  readonly compileCacheDir: string
  readonly fuse: FuseConnection
  readonly stop: AbortSignal
  readonly log: Logger
  readonly notifier: Notifier
  readonly onReady: () => void
}

async function runWorker(start: WorkerStart): Promise<WorkerEnd> {
  const { fuse, log, notifier, stop } = start
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
        log.info(
          { workerPid: worker.pid, rung: message.rung, adopted: fuse.adopted },
          'data worker is ready',
        )
        notifier.ready()
        start.onReady()
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
      `data worker was silent for ${silenceLongestMs} ms: killing it`,
    )
    worker.kill('SIGKILL')
  }, 1000)
  let giveUp: NodeJS.Timeout | undefined
  const askToStop = (): void => {
    worker.kill('SIGTERM')
    giveUp = setTimeout(() => {
      log.error(
        { workerPid: worker.pid },
        `data worker did not stop within ${STOP_LONGEST_MS} ms: killing it`,
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

function spawnWorker({ configPath, compileCacheDir, fuse }: WorkerStart): ChildProcess {
  return spawn(
    process.execPath,
    [
      ...MEMORY_FLAGS,
      '--disable-warning=ExperimentalWarning',
      fileURLToPath(new URL('main.ts', import.meta.url)),
      'data-worker',
      ...(configPath === undefined ? [] : ['--config', configPath]),
      '--fuse-fd=3',
    ],
    {
      env: { ...process.env, MALLOC_ARENA_MAX: '2', NODE_COMPILE_CACHE: compileCacheDir },
      stdio: ['ignore', 'inherit', 'inherit', fuse.fd, 'ipc'],
    },
  )
}

function pause(ms: number, stop: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(resolve, ms)
  stop.addEventListener('abort', () => resolve(), { once: true })
  return promise.finally(() => clearTimeout(timer))
}
