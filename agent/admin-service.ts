import { randomUUID } from 'node:crypto'
import { setTimeout } from 'node:timers/promises'
import type { Methods, Service } from '../proto/contract.ts'
import { implement } from '../proto/contract.ts'
import { agentContract } from '../proto/load.ts'
import type { Timestamp } from '../proto/types/google/protobuf/Timestamp.ts'
import type { AgentHandlers } from '../proto/types/ipdr/v1/Agent.ts'
import type { Layer as WireLayer } from '../proto/types/ipdr/v1/Layer.ts'
import type { LayerMount as WireMount } from '../proto/types/ipdr/v1/LayerMount.ts'
import type { PullProgress } from '../proto/types/ipdr/v1/PullProgress.ts'
import type { WaitedRead as WireWaitedRead } from '../proto/types/ipdr/v1/WaitedRead.ts'
import { CodedError } from '../snapshotter/errors.ts'
import { encodePrefetchList } from '../snapshotter/optimize.ts'
import type {
  ImageRecording,
  LayerStatus,
  LazyMount,
  Snapshotter,
  WaitedRead,
} from '../snapshotter/snapshotter.ts'
import type { Metrics } from './metrics.ts'
import { version } from './version.ts'

/** Bytes of a layer's index in one message. 1 MiB: gRPC takes messages of 4 MiB unless told otherwise. */
const INDEX_PART_BYTES = 1024 ** 2
/** Time between two answers on how far a recording is, in ms: twice a second is smooth enough for a number that grows. */
const RECORDING_INTERVAL_MS = 500

/** What the node is to its peers. */
export type NodeIdentity = { readonly peerId: string; readonly addresses: readonly string[] }

type Collaborators = {
  readonly snapshotter: Snapshotter
  readonly metrics: Metrics
  readonly identity: () => NodeIdentity
}

/** `ipdr.v1.Agent`: what the ipdr command asks, on the agent's own socket. */
export function adminService(
  { storeBytesMax }: { readonly storeBytesMax: number },
  { snapshotter, metrics, identity }: Collaborators,
): Service {
  const startedAt = timestamp(Date.now())
  const recordings = new Map<string, RunningRecording>()
  const methods: Methods<AgentHandlers> = {
    async Status() {
      const { peerId, addresses } = identity()
      const reads = snapshotter.reads()
      const waits = metrics.recentWaitsMs()
      const prefetched = snapshotter.prefetched()
      return {
        version,
        pid: process.pid,
        supervisorPid: process.ppid,
        startedAt,
        rung: snapshotter.kernel.rung,
        rungReason: snapshotter.kernel.reason,
        peerId,
        addresses: [...addresses],
        mounts: snapshotter.mounts().map((mount) => wireMount(mount, snapshotter.layers())),
        missesTotal: reads.misses,
        missP50Ms: waits.p50,
        missP99Ms: waits.p99,
        bytesBySource: [...metrics.fetchedBySource].map(([source, bytes]) => ({
          source,
          bytes,
        })),
        servedFromCacheBytes: reads.servedBytes,
        queueDepths: Object.entries(snapshotter.queueDepths()).map(([priority, waiting]) => ({
          priority,
          waiting,
        })),
        verificationFailures: metrics.verificationFailureCount,
        storeBytes: await snapshotter.storeBytes(),
        storeLimitBytes: storeBytesMax,
        prefetchedBytes: prefetched.fetchedBytes,
        prefetchedUsedBytes: prefetched.usedBytes,
        sentToClusterBytes: metrics.peerServedBytes,
      }
    },

    async *Pull(request, { signal }) {
      const steps = new Steps<PullProgress>()
      const pulling = snapshotter
        .pull(request.reference, {
          all: request.all,
          signal,
          onProgress: ({ digest, presentBytes, layerBytes }) =>
            steps.push({
              layerDigest: digest,
              presentBytes,
              totalBytes: layerBytes,
              done: presentBytes === layerBytes || !request.all,
            }),
        })
        .finally(() => steps.end())
      yield* steps
      await pulling
    },

    async ListLayers() {
      // Of one that is lost nothing is here; its record is what it is built again by.
      const here = snapshotter.layers().filter(({ state }) => state !== 'lost')
      return { layers: here.map(wireLayer) }
    },

    async ListImages() {
      return {
        images: snapshotter.images().map(({ rootCid, manifestDigest, layers, reference }) => ({
          reference: reference ?? `ipdr.internal/${rootCid}`,
          rootCid,
          manifestDigest,
          layers: layers.map(({ blobDigest }) => blobDigest),
          size: layers.reduce((sum, { blobSize }) => sum + blobSize, 0),
        })),
      }
    },

    async CollectGarbage(request) {
      const { freedBytes, layers } = await snapshotter.collectGarbage(Number(request.targetBytes))
      return { freedBytes: Math.max(0, freedBytes), removedLayers: layers }
    },

    async RemoveLayer(request) {
      const { freedBytes } = await snapshotter.removeLayer(request.digest)
      return { freedBytes: Math.max(0, freedBytes) }
    },

    async CheckLayer(request, { signal }) {
      const { isWhole, healedUnits, healedTables } = await snapshotter.checkLayer(
        request.digest,
        signal,
      )
      return { whole: isWhole, healedUnits, healedTables }
    },

    async *LayerIndex(request) {
      const index = await snapshotter.sideIndex(request.blobCid)
      for (let start = 0; start < index.length; start += INDEX_PART_BYTES) {
        yield { bytes: index.subarray(start, start + INDEX_PART_BYTES) }
      }
    },

    async WaitedFor(request) {
      const reads = await snapshotter.waitedFor(
        request.subject === '' ? undefined : request.subject,
      )
      const digests = new Map(snapshotter.layers().map(({ id, blobDigest }) => [id, blobDigest]))
      return { reads: reads.map((read) => wireWaitedRead(read, digests.get(read.layer) ?? '')) }
    },

    async *Record({ reference }, { signal }) {
      using recording = await snapshotter.record(reference)
      const id = randomUUID()
      const finished = new AbortController()
      recordings.set(id, { recording, finished })
      const over = AbortSignal.any([signal, finished.signal])
      try {
        for (let isOver = false; !isOver; isOver = over.aborted) {
          const { warnings } = recording
          yield { recordingId: id, warnings: [...warnings], ...recording.progress() }
          await setTimeout(RECORDING_INTERVAL_MS, undefined, { signal: over }).catch(
            () => undefined,
          )
        }
      } finally {
        recordings.delete(id)
      }
    },

    async FinishRecording({ recordingId }) {
      const running = recordings.get(recordingId)
      if (running === undefined) {
        throw new CodedError(
          'NOT_FOUND',
          `there is no recording ${recordingId}: whoever began it has left`,
        )
      }
      const { recording, finished } = running
      finished.abort()
      const { rootCid, manifestDigest } = recording.image
      const { list, ...totals } = await recording.finish()
      return {
        list: Buffer.from(encodePrefetchList(list)),
        rootCid,
        manifestDigest,
        ranges: list.ranges.length,
        ...totals,
      }
    },
  }
  return implement(agentContract(), methods)
}

type RunningRecording = { readonly recording: ImageRecording; readonly finished: AbortController }

/** Steps that somebody reports while somebody else waits for them; only the last one of each layer counts when it is slow. */
class Steps<T extends { layerDigest?: string }> implements AsyncIterable<T> {
  readonly #waiting = new Map<string, T>()
  #ended = false
  #wake = Promise.withResolvers<void>()

  push(step: T): void {
    this.#waiting.set(step.layerDigest ?? '', step)
    this.#wake.resolve()
  }

  end(): void {
    this.#ended = true
    this.#wake.resolve()
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T, void> {
    for (;;) {
      await this.#wake.promise
      this.#wake = Promise.withResolvers<void>()
      const steps = [...this.#waiting.values()]
      this.#waiting.clear()
      yield* steps
      if (this.#ended && this.#waiting.size === 0) return
      if (this.#ended) this.#wake.resolve()
    }
  }
}

function wireMount({ target, kind, layers }: LazyMount, known: readonly LayerStatus[]): WireMount {
  const top = known.find(({ id }) => id === layers.at(-1))
  return {
    target,
    kind:
      layers.length > 1
        ? 'MOUNT_KIND_MERGED'
        : kind === 'fuse'
          ? 'MOUNT_KIND_FUSE'
          : 'MOUNT_KIND_PLAIN',
    layerDigest: top?.blobDigest ?? '',
    layers: layers.length,
  }
}

function wireLayer(layer: LayerStatus): WireLayer {
  return {
    digest: layer.blobDigest,
    cid: layer.blobCid,
    diffId: layer.diffId,
    mediaType: layer.mediaType,
    format: layer.format,
    layerSize: layer.layerSize,
    blobSize: layer.blobSize,
    presentBytes: layer.presentBytes,
    complete: layer.isComplete,
    mounted: layer.isMounted,
    pinned: layer.isPinned,
    lazilyReadable: layer.notLazyBecause === undefined,
    whyNot: layer.notLazyBecause ?? '',
    lastUsedAt: timestamp(layer.lastUsedMs),
  }
}

function wireWaitedRead(read: WaitedRead, layerDigest: string): WireWaitedRead {
  return {
    path: read.path ?? '',
    layerDigest,
    offset: read.offset,
    length: read.length,
    waitedMs: read.waitedMs,
    at: timestamp(read.startedMs),
    error: read.error ?? '',
  }
}

function timestamp(ms: number): Timestamp {
  return { seconds: String(Math.floor(ms / 1000)), nanos: Math.floor(ms % 1000) * 1_000_000 }
}
