import { setTimeout } from 'node:timers/promises'
import { State, type StatusResponse } from '../../proto/messages/ipdr/deploy_pb.js'
import { plain } from './failure.ts'
import type { Output } from './output.ts'
import { addressDocument, addressText } from './pod-address.ts'
import { openPod, type PublisherValues } from './publisher-options.ts'
import { fields, table } from './table.ts'

/** In words. */
const STATES: Readonly<Record<State, string>> = {
  [State.UNSPECIFIED]: 'unknown',
  [State.APPLYING]: 'being put into the cluster',
  [State.STARTING]: 'starting',
  [State.READY]: 'ready',
  [State.ASLEEP]: 'asleep until the next request',
  [State.FAILING]: 'failing',
  [State.DELETING]: 'being deleted',
}

type Wanted = PublisherValues & { readonly watch: boolean; readonly intervalMs: number }

/** Says how the pod of a deployment file is, once or until `signal` aborts. */
export async function showPod(
  file: string,
  { watch, intervalMs, ...values }: Wanted,
  { output, signal }: { readonly output: Output; readonly signal: AbortSignal },
): Promise<void> {
  await using opened = new AsyncDisposableStack()
  const { client, podId } = await openPod(file, values, opened)
  if (!watch) {
    const status = await client.status(podId, signal)
    output.answer(documentOf(podId, status), () => textOf(podId, status, output))
    return
  }
  try {
    for (;;) {
      const status = await client.status(podId, signal)
      output.refresh(documentOf(podId, status), () => textOf(podId, status, output))
      await setTimeout(intervalMs, undefined, { signal })
    }
  } catch (error) {
    // Being interrupted is how watching ends.
    if (!signal.aborted) throw error
  }
}

function documentOf(
  podId: string,
  { summary, containers, addresses, reason }: StatusResponse,
): object {
  return {
    podId,
    name: summary?.name,
    namespace: summary?.namespace,
    state: State[summary?.state ?? State.UNSPECIFIED].toLowerCase(),
    reason,
    replicasReady: summary?.replicasReady,
    replicasWanted: summary?.replicasWanted,
    addresses: addresses.map(addressDocument),
    containers: containers.map(({ name, replica, image, ready, restarts, reason, message }) => ({
      name,
      replica,
      image,
      ready,
      restarts,
      reason,
      message,
    })),
  }
}

function textOf(
  podId: string,
  { summary, containers, addresses, reason }: StatusResponse,
  output: Output,
): string {
  const state = summary?.state ?? State.UNSPECIFIED
  const text = [
    output.style('bold', `${summary?.name || podId} is ${STATES[state]}`),
    fields([
      ['Pod ID', podId],
      ['Namespace', summary?.namespace ?? ''],
      ['Replicas', `${summary?.replicasReady} of ${summary?.replicasWanted} ready`],
      ...(reason === '' ? [] : ([['Because', plain(reason)]] as [string, string][])),
      ...addresses.map((address): [string, string] => [
        `${address.container}:${address.containerPort}`,
        addressText(address),
      ]),
    ]),
  ]
  if (containers.length > 0) {
    const rows = containers.map(({ name, replica, ready, restarts, reason }) => [
      name,
      replica,
      ready ? 'yes' : 'no',
      String(restarts),
      reason,
    ])
    const columns = [
      { heading: 'CONTAINER' },
      { heading: 'REPLICA' },
      { heading: 'READY' },
      { heading: 'RESTARTS', align: 'right' },
      { heading: 'STATE' },
    ] as const
    text.push(table(columns, rows, output))
  }
  return text.join('\n')
}
