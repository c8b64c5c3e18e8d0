import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client'
import type { Priority } from '../snapshotter/block-source.ts'
import { ERROR_CODES } from '../snapshotter/errors.ts'

/**
 * Cold reads last from a loopback peer's 0.5 ms to the 30 s deadline: a bucket every factor of about 2.5 between.
 * Seconds, as Prometheus wants them.
 */
const WAIT_BUCKETS_SECONDS = [
  0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30,
]

/** Waits that `ipdr status` sums up: a cold start of a large image has some hundreds. */
const RECENT_WAITS = 1_000

/** What may turn out not to be what was promised. */
const PROMISES = ['block', 'layer', 'toc'] as const

/** What is read when somebody scrapes, instead of being counted on the hot path. */
export type Gauges = {
  /** FUSE requests by opcode name, since this worker started. */
  fuseRequests(): Iterable<readonly [opcode: string, count: number]>
  /** Bytes that page faults were answered with from this node's store, since this worker started. */
  servedBytes(): number
  /** Bytes of layers fetched before they were read, and of those the ones read since, since this worker started. */
  prefetched(): { readonly fetchedBytes: number; readonly usedBytes: number }
  queueDepths(): Readonly<Record<Priority, number>>
  lazyMounts(): number
  storeBytes(): Promise<number>
  /** Blocks on the disk for other nodes of the cluster. */
  keptForClusterBytes(): number
  /** Other nodes of the cluster that may be asked. */
  clusterPeers(): number
  /** As configured. */
  readonly storeBytesMax: number
}

/** Every number that the agent publishes, with its unit in its name. One instance a process. */
export class Metrics {
  readonly registry: Registry = new Registry()
  readonly #missSeconds: Histogram
  readonly #missFailures: Counter<'code'>
  readonly #fetchedBytes: Counter<'source'>
  readonly #reusedBytes: Counter
  readonly #registrySentBytes: Counter<'kind'>
  readonly #contentReadBytes: Counter<'from'>
  readonly #registryReceivedBytes: Counter
  readonly #registryLoginsRefused: Counter
  readonly #verificationFailures: Counter<'what'>
  readonly #imagesRefused: Counter<'policy'>
  readonly #peerAnswers: Counter<'what' | 'found'>
  readonly #peerServedBytes: Counter
  readonly #peersRefused: Counter<'why'>
  readonly #callSeconds: Histogram<'method' | 'code'>
  readonly #fetchedBySource = new Map<string, number>()
  readonly #recentWaitsMs: number[] = []
  #verificationFailureCount = 0
  #peerServedByteCount = 0

  constructor() {
    const registers = [this.registry]
    collectDefaultMetrics({ register: this.registry, prefix: 'ipdr_' })
    this.#missSeconds = new Histogram({
      name: 'ipdr_read_wait_seconds',
      help: 'Time that a read of a lazy file waited for bytes which were not on this node.',
      buckets: WAIT_BUCKETS_SECONDS,
      registers,
    })
    this.#missFailures = new Counter({
      name: 'ipdr_read_errors_total',
      help: 'Reads of lazy files that ended in EIO, by reason.',
      labelNames: ['code'],
      registers,
    })
    this.#fetchedBytes = new Counter({
      name: 'ipdr_fetched_bytes_total',
      help: 'Verified block bytes fetched, by kind of source.',
      labelNames: ['source'],
      registers,
    })
    this.#reusedBytes = new Counter({
      name: 'ipdr_reused_bytes_total',
      help: 'Bytes of layers that another layer of this node had, so that they were not fetched.',
      registers,
    })
    this.#registrySentBytes = new Counter({
      name: 'ipdr_registry_sent_bytes_total',
      help: 'Bytes that the registry sent; while layers are mounted lazily, its blobs are only configs.',
      labelNames: ['kind'],
      registers,
    })
    this.#contentReadBytes = new Counter({
      name: 'ipdr_content_read_bytes_total',
      help: 'Bytes of blobs that containerd read from the content proxy, and whether they were on the disk.',
      labelNames: ['from'],
      registers,
    })
    this.#registryReceivedBytes = new Counter({
      name: 'ipdr_registry_received_bytes_total',
      help: 'Bytes of manifests, configs and layers read from other registries, checked or not.',
      registers,
    })
    this.#registryLoginsRefused = new Counter({
      name: 'ipdr_registry_logins_refused_total',
      help: 'Credentials that were shown to a registry and that it did not take.',
      registers,
    })
    this.#peerAnswers = new Counter({
      name: 'ipdr_cluster_answers_total',
      help: 'Questions of other nodes that were answered, and whether what they asked for was found.',
      labelNames: ['what', 'found'],
      registers,
    })
    this.#peerServedBytes = new Counter({
      name: 'ipdr_cluster_served_bytes_total',
      help: 'Bytes of blocks that were sent to other nodes of the cluster.',
      registers,
    })
    this.#peersRefused = new Counter({
      name: 'ipdr_cluster_refused_total',
      help: 'Blocks that other nodes were refused, because there were too many answers or bytes before them.',
      labelNames: ['why'],
      registers,
    })
    this.#imagesRefused = new Counter({
      name: 'ipdr_images_refused_total',
      help: 'Images that a trust policy kept from running, by policy.',
      labelNames: ['policy'],
      registers,
    })
    this.#verificationFailures = new Counter({
      name: 'ipdr_verification_failures_total',
      help: 'Bytes that were not what their CID, digest, diff ID or table of contents promised.',
      labelNames: ['what'],
      registers,
    })
    this.#callSeconds = new Histogram({
      name: 'ipdr_grpc_call_seconds',
      help: 'Duration of gRPC calls from containerd and from the ipdr command.',
      labelNames: ['method', 'code'],
      buckets: WAIT_BUCKETS_SECONDS,
      registers,
    })
    // Failures are counted from zero on: Prometheus sees no increase in a series that begins with its first one.
    for (const code of ERROR_CODES) this.#missFailures.inc({ code }, 0)
    for (const what of PROMISES) this.#verificationFailures.inc({ what }, 0)
  }

  readWaited(waitedMs: number): void {
    this.#missSeconds.observe(waitedMs / 1000)
    this.#recentWaitsMs.push(waitedMs)
    if (this.#recentWaitsMs.length > RECENT_WAITS) this.#recentWaitsMs.shift()
  }

  readFailed(code: string): void {
    this.#missFailures.inc({ code })
  }

  fetched(source: string, bytes: number): void {
    this.#fetchedBytes.inc({ source }, bytes)
    this.#countSource(source, bytes)
  }

  reused(bytes: number): void {
    this.#reusedBytes.inc(bytes)
  }

  registrySent(kind: 'manifest' | 'blob', bytes: number): void {
    this.#registrySentBytes.inc({ kind }, bytes)
  }

  contentRead(from: 'disk' | 'published', bytes: number): void {
    this.#contentReadBytes.inc({ from }, bytes)
  }

  registryReceived(bytes: number): void {
    this.#registryReceivedBytes.inc(bytes)
    this.#countSource('registry', bytes)
  }

  registryLoginRefused(): void {
    this.#registryLoginsRefused.inc()
  }

  verificationFailed(what: (typeof PROMISES)[number]): void {
    this.#verificationFailures.inc({ what })
    this.#verificationFailureCount += 1
  }

  peerAnswered(what: 'index' | 'prefetch', found: boolean): void {
    this.#peerAnswers.inc({ what, found: String(found) })
  }

  peerServed(bytes: number): void {
    this.#peerServedBytes.inc(bytes)
    this.#peerServedByteCount += bytes
  }

  peerRefused(why: 'answers' | 'upload'): void {
    this.#peersRefused.inc({ why })
  }

  /** Trust policies that this node has: what each of them refuses is counted from zero on. */
  hasPolicies(names: readonly string[]): void {
    for (const policy of names) this.#imagesRefused.inc({ policy }, 0)
  }

  imageRefused(policy: string): void {
    this.#imagesRefused.inc({ policy })
  }

  /** Bytes of verified blocks, and what registries sent, since this worker started. */
  get fetchedBytes(): number {
    return [...this.#fetchedBySource.values()].reduce((sum, bytes) => sum + bytes, 0)
  }

  /** Bytes of blocks that other nodes got from this one, since this worker started. */
  get peerServedBytes(): number {
    return this.#peerServedByteCount
  }

  /** What was fetched, by kind of source. */
  get fetchedBySource(): ReadonlyMap<string, number> {
    return this.#fetchedBySource
  }

  get verificationFailureCount(): number {
    return this.#verificationFailureCount
  }

  /** Median and 99th percentile of the last waits, in ms; 0 if there was none. */
  recentWaitsMs(): { p50: number; p99: number } {
    const sorted = this.#recentWaitsMs.toSorted((a, b) => a - b)
    const at = (share: number): number => sorted[Math.floor(share * (sorted.length - 1))] ?? 0
    return { p50: at(0.5), p99: at(0.99) }
  }

  call(method: string, code: string, durationMs: number): void {
    this.#callSeconds.observe({ method, code }, durationMs / 1000)
  }

  /** Publishes numbers that are kept elsewhere; they are read at each scrape. */
  observe(gauges: Gauges): void {
    const registers = [this.registry]
    const gauge = (
      name: string,
      help: string,
      labelNames: string[],
      read: (gauge: Gauge) => void | Promise<void>,
    ): Gauge =>
      new Gauge({
        name,
        help,
        labelNames,
        registers,
        async collect() {
          this.reset()
          await read(this)
        },
      })
    gauge(
      'ipdr_fuse_requests_total',
      'FUSE requests of the kernel, by opcode.',
      ['opcode'],
      (set) => {
        for (const [opcode, count] of gauges.fuseRequests()) set.set({ opcode }, count)
      },
    )
    gauge(
      'ipdr_cache_served_bytes_total',
      'Bytes of lazy files answered from this node without waiting.',
      [],
      (set) => set.set(gauges.servedBytes()),
    )
    gauge(
      'ipdr_prefetched_bytes_total',
      'Bytes of lazy layers, unpacked, that a prefetch list brought before they were read.',
      [],
      (set) => set.set(gauges.prefetched().fetchedBytes),
    )
    gauge(
      'ipdr_prefetched_used_bytes_total',
      'Of the prefetched bytes, those of units that were read since: what the lists are worth.',
      [],
      (set) => set.set(gauges.prefetched().usedBytes),
    )
    gauge(
      'ipdr_fetch_queue_depth',
      'Fetches that wait for a place, by priority.',
      ['priority'],
      (set) => {
        for (const [priority, depth] of Object.entries(gauges.queueDepths())) {
          set.set({ priority }, depth)
        }
      },
    )
    gauge('ipdr_lazy_mounts', 'EROFS mounts of lazy layers.', [], (set) =>
      set.set(gauges.lazyMounts()),
    )
    gauge(
      'ipdr_cluster_kept_bytes',
      'Disk that blocks take which are kept for other nodes of the cluster.',
      [],
      (set) => set.set(gauges.keptForClusterBytes()),
    )
    gauge(
      'ipdr_cluster_peers',
      'Other nodes of the cluster that this one may ask: those in its list, and those that Kubernetes says are ready.',
      [],
      (set) => set.set(gauges.clusterPeers()),
    )
    gauge('ipdr_store_bytes', 'Disk that layer bytes take on this node.', [], async (set) =>
      set.set(await gauges.storeBytes()),
    )
    gauge(
      'ipdr_store_max_bytes',
      'Disk that layer bytes may take before the least recently used go.',
      [],
      (set) => set.set(gauges.storeBytesMax),
    )
  }

  #countSource(source: string, bytes: number): void {
    this.#fetchedBySource.set(source, (this.#fetchedBySource.get(source) ?? 0) + bytes)
  }
}
