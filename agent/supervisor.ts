import type { Config } from './config.ts'
import { type DescriptorStore, noDescriptorStore } from './descriptor-store.ts'
import { closeFuseConnection, ensureKeeper, openFuseConnection } from './fuse-keeper.ts'
import type { Logger } from './logger.ts'
import { tellLostPods } from './lost-pods.ts'
import { placesOf } from './places.ts'
import { lockRoot } from './root-lock.ts'
import { type Notifier, noNotifier } from './service-notify.ts'
import { keepWorker } from './worker-process.ts'

/** How often the service manager hears that we live: a third of the unit's WatchdogSec. */
const SIGN_OF_LIFE_MS = 20_000

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
  let inUse = true
  const trial = new Trial(isTrial)
  const ending = AbortSignal.any([stop, handOver, trial.failed])
  const program = { configPath, compileCacheDir: `${config.root}/compile-cache`, log }
  // Beside each other: neither waits for the other, nor ends with it.
  const control =
    config.deploy === undefined
      ? undefined
      : keepWorker(
          { ...program, name: 'control worker', command: 'control-worker', stop: ending },
          { meanwhile: 'pods run on, and publishers are not answered', onEnd: () => undefined },
        )
  await keepWorker(
    {
      ...program,
      name: 'data worker',
      command: 'data-worker',
      flags: MEMORY_FLAGS,
      environment: { MALLOC_ARENA_MAX: '2' },
      fuseFd: fuse.fd,
      stop: ending,
      onReady: ({ rung }, workerPid) => {
        log.info({ workerPid, rung, adopted: fuse.adopted }, 'data worker is ready')
        notifier.ready()
        trial.passed()
        first.isOver()
      },
    },
    {
      meanwhile: 'containers wait for uncached bytes',
      onEnd: ({ stopped }) => {
        if (stopped !== undefined) inUse = stopped.lazyMountsInUse > 0
        if (ending.aborted) return
        trial.died()
        first.isOver()
      },
    },
  )
  await control
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
