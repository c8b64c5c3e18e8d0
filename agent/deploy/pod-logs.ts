import { setTimeout } from 'node:timers/promises'
import { create } from '@bufbuild/protobuf'
import type { V1Pod } from '@kubernetes/client-node'
import { type LogLine, LogLineSchema } from '../../proto/messages/ipdr/deploy_pb.js'
import { type Cluster, POD } from './cluster.ts'
import { PodError } from './parse-pod.ts'

/** Longer lines are cut, in characters: a line without an end must not fill our memory. */
const LINE_CHARS_MAX = 64 * 1024

/** How often replicas that have come since are looked for, in ms. */
const LOOK_MS = 2_000

/** Lines of all replicas that wait for the reader. */
const LINES_WAITING_MAX = 100

export type LogsWanted = {
  /** Undefined: the one that there is. */
  readonly container?: string | undefined
  readonly follow: boolean
  readonly previous: boolean
  readonly tailLines?: number | undefined
  readonly sinceSeconds?: number | undefined
}

/**
 * Lines of a pod's container, of all its replicas, each in its order. Followed, it ends with `signal` only, and takes in replicas that come
 * later. Rejects with PodError NOT_FOUND, INVALID_ARGUMENT that names the containers there are, and ClusterError.
 */
export async function* podLogs(
  cluster: Cluster,
  namespace: string,
  wanted: LogsWanted,
  signal: AbortSignal,
): AsyncGenerator<LogLine> {
  const stop = new AbortController()
  const ends = AbortSignal.any([signal, stop.signal])
  const lines = new LineQueue()
  const read = new Set<string>()
  const running = new Set<Promise<void>>()
  const takeIn = (pods: readonly V1Pod[]): void => {
    for (const pod of pods) {
      const name = pod.metadata?.name ?? ''
      if (read.has(name) || !hasStarted(pod)) continue
      read.add(name)
      const container = containerOf(pod, wanted.container)
      const one = readReplica(cluster, { namespace, name, container }, { wanted, lines, ends })
      const ended = one
        .catch((error: unknown) => lines.fail(error))
        .finally(() => running.delete(ended))
      running.add(ended)
    }
  }
  const list = (): Promise<V1Pod[]> => cluster.list<V1Pod>(POD, { namespace })
  const pods = await list()
  if (pods.length === 0 && !wanted.follow) {
    throw new PodError(
      'NOT_FOUND',
      'no replica of the pod is there: it is asleep, or was never deployed',
    )
  }
  if (pods[0] !== undefined) containerOf(pods[0], wanted.container)
  takeIn(pods)
  const work = wanted.follow
    ? (async () => {
        while (!ends.aborted) {
          await setTimeout(LOOK_MS, undefined, { signal: ends }).catch(() => undefined)
          if (!ends.aborted) takeIn(await list())
        }
      })()
    : Promise.all(running)
  work.then(
    () => lines.end(),
    (error: unknown) => lines.fail(error),
  )
  try {
    yield* lines
  } finally {
    stop.abort()
    lines.end()
    await Promise.allSettled(running)
  }
}

async function readReplica(
  cluster: Cluster,
  {
    namespace,
    name,
    container,
  }: { readonly namespace: string; readonly name: string; readonly container: string },
  {
    wanted,
    lines,
    ends,
  }: { readonly wanted: LogsWanted; readonly lines: LineQueue; readonly ends: AbortSignal },
): Promise<void> {
  const { follow, previous, tailLines, sinceSeconds } = wanted
  const options = { container, follow, previous, tailLines, sinceSeconds }
  for await (const text of cluster.logs({ namespace, name }, options, ends)) {
    if (ends.aborted) return
    await lines.put(lineOf(text, name, container))
  }
}

/** `2026-01-01T00:00:00.123456789Z text`, as the kubelet writes it. */
function lineOf(text: string, replica: string, container: string): LogLine {
  const space = text.indexOf(' ')
  const time = nanosecondsOf(space === -1 ? text : text.slice(0, space))
  const line = time === undefined ? text : text.slice(space + 1)
  return create(LogLineSchema, {
    replica,
    container,
    time: time ?? 0n,
    line: line.length > LINE_CHARS_MAX ? `${line.slice(0, LINE_CHARS_MAX)}…` : line,
  })
}

function nanosecondsOf(text: string): bigint | undefined {
  const match = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)$/.exec(text)
  if (match === null) return undefined
  const ms = Date.parse(`${match[1]}${match[3]}`)
  return BigInt(ms) * 1_000_000n + BigInt((match[2] ?? '').padEnd(9, '0'))
}

function hasStarted({ status }: V1Pod): boolean {
  return (status?.containerStatuses ?? []).some(({ state }) => state?.waiting === undefined)
}

function containerOf({ spec }: V1Pod, wanted: string | undefined): string {
  const names = (spec?.containers ?? []).map(({ name }) => name)
  const [first = ''] = names
  if (wanted === undefined && names.length === 1) return first
  if (wanted !== undefined && names.includes(wanted)) return wanted
  const what = wanted === undefined ? 'name one' : `there is no '${wanted.slice(0, 60)}'`
  throw new PodError('INVALID_ARGUMENT', `container: ${what}; the pod has ${names.join(', ')}`)
}

/** Lines of several replicas, for one reader whose pace they keep. */
class LineQueue implements AsyncIterable<LogLine> {
  readonly #lines: LogLine[] = []
  #hasEnded = false
  #error: { readonly cause: unknown } | undefined
  #changed = Promise.withResolvers<void>()

  async put(line: LogLine): Promise<void> {
    while (this.#lines.length >= LINES_WAITING_MAX && !this.#hasEnded) await this.#changed.promise
    this.#lines.push(line)
    this.#tell()
  }

  end(): void {
    this.#hasEnded = true
    this.#tell()
  }

  fail(cause: unknown): void {
    this.#error ??= { cause }
    this.end()
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<LogLine> {
    for (;;) {
      const line = this.#lines.shift()
      if (line !== undefined) {
        this.#tell()
        yield line
      } else if (this.#error !== undefined) {
        throw this.#error.cause
      } else if (this.#hasEnded) {
        return
      } else {
        await this.#changed.promise
      }
    }
  }

  #tell(): void {
    this.#changed.resolve()
    this.#changed = Promise.withResolvers<void>()
  }
}
