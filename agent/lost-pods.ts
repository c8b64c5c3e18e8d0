import { setTimeout } from 'node:timers/promises'
import { connect } from '../proto/client.ts'
import { criRuntimeContract } from '../proto/load.ts'
import type { ContainerName } from '../snapshotter/containers-on-mounts.ts'
import type { Log } from '../snapshotter/log.ts'

/** How long containerd may be away, in ms. 2 min: it starts after us, and takes seconds. */
const PATIENCE_MS = 120_000
/** Between two attempts, in ms. */
const PAUSE_MS = 1_000
/** How long it may take to list its containers, in ms. */
const ANSWER_MS = 10_000

/** The namespace that CRI's containers are in. */
const KUBERNETES = 'k8s.io'

/**
 * Says which pods have to be restarted, since containers of theirs run on layers whose bytes nobody can give them any more. Asks
 * containerd for their names, and tells the containers' own where it does not answer in two minutes. Never rejects.
 */
export async function tellLostPods(
  containers: readonly ContainerName[],
  {
    socketPath,
    log,
    stop,
  }: {
    readonly socketPath: string
    readonly log: Pick<Log, 'error'>
    readonly stop: AbortSignal
  },
): Promise<void> {
  if (containers.length === 0) return
  const names = await namesOf(containers, socketPath, stop)
  log.error(
    { containers: containers.map(({ namespace, id }) => `${namespace}/${id}`).join(' ') },
    `these read layers that the agent cannot serve any more, and get EIO for what is not in memory: restart ${names.join(', ')}`,
  )
}

async function namesOf(
  containers: readonly ContainerName[],
  socketPath: string,
  stop: AbortSignal,
): Promise<string[]> {
  const until = performance.now() + PATIENCE_MS
  while (!stop.aborted && performance.now() < until) {
    try {
      const pods = await podsByContainer(socketPath, stop)
      return [...new Set(containers.map((each) => nameOf(each, pods)))]
    } catch {
      await setTimeout(PAUSE_MS, undefined, { signal: stop }).catch(() => undefined)
    }
  }
  return containers.map((each) => nameOf(each, new Map()))
}

function nameOf({ namespace, id }: ContainerName, pods: ReadonlyMap<string, string>): string {
  const pod = namespace === KUBERNETES ? pods.get(id) : undefined
  return pod === undefined ? `container ${id} of ${namespace}` : `pod ${pod}`
}

/** `namespace/name` of its pod for each container that CRI knows, pods' own containers among them. */
async function podsByContainer(
  socketPath: string,
  stop: AbortSignal,
): Promise<Map<string, string>> {
  const signal = AbortSignal.any([stop, AbortSignal.timeout(ANSWER_MS)])
  using runtime = connect(criRuntimeContract(), socketPath)
  const [{ items }, { containers }] = await Promise.all([
    runtime.calls.ListPodSandbox({}, { signal }),
    runtime.calls.ListContainers({}, { signal }),
  ])
  const pods = new Map(
    items.map(({ id, metadata }) => [id, `${metadata?.namespace}/${metadata?.name}`]),
  )
  for (const { id, podSandboxId } of containers) {
    const pod = pods.get(podSandboxId)
    if (pod !== undefined) pods.set(id, pod)
  }
  return pods
}
