import { setTimeout as wait } from 'node:timers/promises'
import type { StatusResponse__Output } from '../../../proto/types/ipdr/v1/StatusResponse.ts'
import { type Command, defineCommand } from '../command.ts'
import { EXIT_CODES } from '../exit-codes.ts'
import { CommandFailure } from '../failure.ts'
import type { Output } from '../output.ts'
import { PUBLISHER_OPTIONS } from '../publisher-options.ts'
import { count, formatBytes, formatMs } from '../quantity.ts'
import { shortDigest } from '../short-digest.ts'
import { fields, table } from '../table.ts'
import { timestampMs, timestampText } from '../timestamp.ts'

/** Bounds of `--interval`, in seconds: faster than ten times a second nobody reads, and a day is long enough. */
const INTERVAL_SECONDS = { min: 0.1, max: 86_400 } as const

/** How mounts of each kind get their bytes, in the words of the answer. */
const MOUNT_KINDS: Readonly<Record<string, string>> = {
  MOUNT_KIND_FUSE: 'lazy',
  MOUNT_KIND_PLAIN: 'complete',
  MOUNT_KIND_MERGED: 'merged',
}

/** `ipdr status` */
export const status: Command = defineCommand({
  name: 'status',
  usage: '[file]',
  summary: 'Say how a pod is doing, or the agent of this node',
  description: [
    'With a deployment file: how its pod is in its cluster, why it is not ready, what its containers do, and where it is reached; --provider and the other options of ipdr deploy say where and whose. Without: the agent of this node.',
    'Of the agent it says which rung of the kernel ladder the node stands on and why not on a higher one, what is mounted, how many reads found their bytes missing and how long these waited, where bytes came from, what is queued, and how full the store is.',
    'Mounts are lazy (bytes come through the agent), complete (the layer is all here, and is mounted from its plain file) or merged (several layers in one mount). With --watch it says so again and again until interrupted: on a terminal in place, with --output json one document a line.',
  ],
  args: {
    file: {
      type: 'string',
      describe: 'The deployment file of a pod; none: the agent of this node',
    },
  },
  options: {
    ...PUBLISHER_OPTIONS,
    mounts: { type: 'boolean', default: false, describe: 'List every mount' },
    watch: { alias: 'w', type: 'boolean', default: false, describe: 'Repeat until interrupted' },
    interval: {
      type: 'number',
      default: 2,
      requiresArg: true,
      describe: 'Seconds between two repetitions',
      valueName: 'SECONDS',
    },
  },
  examples: [
    ['ipdr status ipdr.yaml', 'the pod that is described there'],
    ['ipdr status', 'one look at the agent'],
    ['ipdr status --watch --interval 1', 'follow a pod as it starts'],
    ["ipdr status -o json | jq '.misses.p99Ms'", 'how long the slowest reads waited'],
  ],
  seeAlso: ['ipdr waited', 'ipdr cache ls', 'ipdr-agent(8)'],
  async run({ file, mounts, watch, interval, ...values }, { output, agentSocket, signal }) {
    if (!(interval >= INTERVAL_SECONDS.min && interval <= INTERVAL_SECONDS.max)) {
      throw new CommandFailure(
        EXIT_CODES.usage,
        `--interval must be a number of seconds from ${INTERVAL_SECONDS.min} to ${INTERVAL_SECONDS.max}`,
      )
    }
    if (file !== undefined) {
      const { showPod } = await import('../pod-status.ts')
      return await showPod(
        file,
        { ...values, watch, intervalMs: interval * 1_000 },
        { output, signal },
      )
    }
    const { ask, connectAgent } = await import('../agent-connection.ts')
    using agent = await connectAgent(agentSocket)
    const answer = () => ask((call) => agent.calls.Status({}, call), signal)
    if (!watch) {
      const response = await answer()
      output.answer(document(response), () => describe(response, mounts, output))
      return
    }
    // Being interrupted is how watching ends, so it is no failure.
    try {
      for (;;) {
        const response = await answer()
        output.refresh(document(response), () => describe(response, mounts, output))
        await wait(interval * 1000, undefined, { signal })
      }
    } catch (error) {
      if (!signal.aborted) throw error
    }
  },
})

function document(status: StatusResponse__Output): object {
  return {
    version: status.version,
    pid: status.pid,
    startedAt: timestampText(status.startedAt),
    rung: status.rung,
    rungReason: status.rungReason,
    peerId: status.peerId,
    addresses: status.addresses,
    mounts: status.mounts.map(({ target, kind, layerDigest, layers }) => ({
      target,
      kind: MOUNT_KINDS[kind] ?? 'unknown',
      layerDigest,
      layers,
    })),
    misses: {
      total: Number(status.missesTotal),
      p50Ms: status.missP50Ms,
      p99Ms: status.missP99Ms,
    },
    fetchedBytes: Object.fromEntries(
      status.bytesBySource.map(({ source, bytes }) => [source, Number(bytes)]),
    ),
    servedFromCacheBytes: Number(status.servedFromCacheBytes),
    sentToClusterBytes: Number(status.sentToClusterBytes),
    prefetched: {
      bytes: Number(status.prefetchedBytes),
      usedBytes: Number(status.prefetchedUsedBytes),
    },
    queued: Object.fromEntries(
      status.queueDepths.map(({ priority, waiting }) => [priority, waiting]),
    ),
    verificationFailures: Number(status.verificationFailures),
    storeBytes: Number(status.storeBytes),
    storeLimitBytes: Number(status.storeLimitBytes),
  }
}

function describePrefetched(status: StatusResponse__Output): string {
  const [all, used] = [Number(status.prefetchedBytes), Number(status.prefetchedUsedBytes)]
  return all === 0 ? 'nothing' : `${formatBytes(all)}, ${formatBytes(used)} of them read since`
}

function describe(status: StatusResponse__Output, withMounts: boolean, output: Output): string {
  const startedMs = timestampMs(status.startedAt)
  const up = startedMs === undefined ? '' : `, up ${formatMs(Math.max(0, Date.now() - startedMs))}`
  const limit = Number(status.storeLimitBytes)
  const failures = Number(status.verificationFailures)
  const listed = (pairs: string[]): string => pairs.join(', ') || 'nothing'
  const text = [
    output.style('bold', `ipdr-agent ${status.version}, pid ${status.pid}${up}`),
    fields([
      ['Kernel', status.rungReason === '' ? status.rung : `${status.rung} (${status.rungReason})`],
      ['Peer', status.peerId || 'none'],
      ['Listens on', status.addresses.join(' ') || 'nothing: it only dials'],
      [
        'Store',
        `${formatBytes(Number(status.storeBytes))}${limit === 0 ? '' : ` of ${formatBytes(limit)}`}`,
      ],
      ['Mounts', describeMounts(status)],
      [
        'Misses',
        `${Number(status.missesTotal).toLocaleString('en')}; they waited ${formatMs(status.missP50Ms)} (p50), ${formatMs(status.missP99Ms)} (p99)`,
      ],
      [
        'Fetched',
        listed(
          status.bytesBySource.map(
            ({ source, bytes }) => `${formatBytes(Number(bytes))} by ${source}`,
          ),
        ),
      ],
      ['From cache', formatBytes(Number(status.servedFromCacheBytes))],
      ['Sent', `${formatBytes(Number(status.sentToClusterBytes))} to other nodes of the cluster`],
      ['Prefetched', describePrefetched(status)],
      [
        'Queued',
        listed(status.queueDepths.map(({ priority, waiting }) => `${waiting} ${priority}`)),
      ],
      ['Bad blocks', failures === 0 ? 'none' : `${failures} failed verification and were refused`],
    ]),
  ]
  if (withMounts && status.mounts.length > 0) {
    const rows = status.mounts.map(({ kind, layers, layerDigest, target }) => [
      MOUNT_KINDS[kind] ?? 'unknown',
      String(layers),
      shortDigest(layerDigest),
      target,
    ])
    const columns = [
      { heading: 'KIND' },
      { heading: 'LAYERS', align: 'right' },
      { heading: 'TOP LAYER' },
      { heading: 'TARGET' },
    ] as const
    text.push(table(columns, rows, output))
  }
  return text.join('\n')
}

function describeMounts({ mounts }: StatusResponse__Output): string {
  const kinds = Object.entries(MOUNT_KINDS).map(
    ([kind, word]) => [word, mounts.filter((mount) => mount.kind === kind).length] as const,
  )
  const parts = kinds
    .filter(([, amount]) => amount > 0)
    .map(([word, amount]) => `${amount} ${word}`)
  return parts.length === 0 ? 'none' : `${count(mounts.length, 'mount')}: ${parts.join(', ')}`
}
