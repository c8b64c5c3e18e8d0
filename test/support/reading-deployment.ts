import { hash } from 'node:crypto'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { setTimeout } from 'node:timers/promises'
import {
  AppsV1Api,
  CoreV1Api,
  type KubeConfig,
  PatchStrategy,
  setHeaderOptions,
  type V1Pod,
  type V1PodSpec,
} from '@kubernetes/client-node'
import { busyboxFiles } from './images/busybox-files.ts'
import { packLayer, writeOciLayout } from './images/oci-layout.ts'
import type { Publisher } from './lazy-node.ts'
import { makeTar, type TarPart } from './make-tar.ts'
import { randomContent } from './random-tree-tar.ts'
import type { Scratch } from './scratch.ts'
import type { seeded } from './seeded.ts'

/** A pod on a busy machine waits for two starts of its node's containerd client and three probes. */
export const patience = { timeout: 120_000, interval: 100 }

const NAMESPACE = 'ipdr-test'
const NAME = 'app'

/** Files that are read one after the other, so that a pod is a while at it; each is blocks of its own. */
const PARTS = 60

/** Ends, and with it the container, at the first byte or owner that is not as it was published. */
const readScript = (pauseS: number): string => `#!/bin/sh
set -eu
[ "$(stat -c %u:%g /sums)" = 0:0 ]
while read -r line; do
  echo "$line" | sha256sum -c -s
  sleep ${pauseS}
done </sums
echo all >/read-all
exec sleep infinity
`

/** Publishes an image whose command reads all of it and checks what it reads; `version` tells it from others. Gives back its CID. */
export async function publishReader(
  version: string,
  { scratch, publisher, random, pauseS = 0.1 }: ReaderParts,
): Promise<string> {
  const parts = Array.from({ length: PARTS }, () => randomContent(random, 200_000))
  const sums = parts.map((part, at) => `${hash('sha256', part)}  /parts/${at}\n`).join('')
  const pack = (...files: readonly TarPart[]): ReturnType<typeof packLayer> =>
    packLayer(Readable.from([makeTar(...files)]), 'gzip', join(scratch.dir, 'layers'))
  const layers = [
    await pack(...busyboxFiles('cat', 'grep', 'sh', 'sha256sum', 'sleep', 'stat')),
    await pack(
      { name: 'version', content: version },
      { name: 'sums', content: sums },
      { name: 'read', mode: 0o755, content: readScript(pauseS) },
      { name: 'parts/', typeflag: '5', mode: 0o755 },
      ...parts.map((content, at) => ({ name: `parts/${at}`, content })),
    ),
  ]
  const layout = writeOciLayout(join(scratch.dir, `layout-${version}`), {
    layers,
    process: { Entrypoint: ['/read'], Env: ['PATH=/bin'] },
  })
  return publisher.push(layout)
}

type ReaderParts = {
  readonly scratch: Scratch
  readonly publisher: Publisher
  readonly random: ReturnType<typeof seeded>
  /** Between one read and the next, in s; there are PARTS of them. */
  readonly pauseS?: number
}

type ReadingDeploymentOptions = {
  readonly cid: string
  readonly replicas: number
  /** How many pods more than it should have there may be while it is rolled. 1 unless given. */
  readonly maxSurge?: number
  /** Of its pods; by default none. */
  readonly runtimeClass?: string
}

/** By which containerd pulls a pod's images for its runtime class, too. */
function pulledFor<Class extends string | null>(runtimeClass: Class): Record<string, Class> {
  return { 'io.containerd.cri.runtime-handler': runtimeClass }
}

/** What containerd calls the containers of these pods, those that keep pods left out. */
export function containerIdsOf(pods: readonly V1Pod[]): string[] {
  return pods.flatMap(({ status }) =>
    (status?.containerStatuses ?? []).map(({ containerID = '' }) =>
      containerID.replace('containerd://', ''),
    ),
  )
}

/** By which a pod names an image on IPFS. */
export function imageOf(cid: string): string {
  return `ipdr.internal/${cid}`
}

/**
 * A Deployment, in a namespace of its own, of images that `publishReader` has made. Its pods are ready once they have read all of their
 * image, and are restarted where that takes no more reads.
 */
export class ReadingDeployment {
  readonly #apps: AppsV1Api
  readonly #core: CoreV1Api
  /** How often containers were started anew, by pod, also of pods that are gone since. */
  readonly #restarts = new Map<string, number>()

  private constructor(apps: AppsV1Api, core: CoreV1Api) {
    this.#apps = apps
    this.#core = core
  }

  /** Makes it. The namespace has to be there. */
  static async create(
    admin: KubeConfig,
    { cid, replicas, maxSurge = 1, runtimeClass }: ReadingDeploymentOptions,
  ): Promise<ReadingDeployment> {
    const [apps, core] = [admin.makeApiClient(AppsV1Api), admin.makeApiClient(CoreV1Api)]
    const labels = { app: NAME }
    const probe = (command: string[]): object => ({
      exec: { command },
      periodSeconds: 1,
      timeoutSeconds: 20,
      failureThreshold: 3,
    })
    await apps.createNamespacedDeployment({
      namespace: NAMESPACE,
      body: {
        metadata: { name: NAME },
        spec: {
          replicas,
          strategy: { rollingUpdate: { maxSurge, maxUnavailable: 0 } },
          selector: { matchLabels: labels },
          template: {
            metadata: { labels, ...(runtimeClass && { annotations: pulledFor(runtimeClass) }) },
            spec: {
              ...(runtimeClass && { runtimeClassName: runtimeClass }),
              // The shell that is the pod's first process takes no SIGTERM.
              terminationGracePeriodSeconds: 1,
              containers: [
                {
                  name: NAME,
                  image: imageOf(cid),
                  readinessProbe: probe(['cat', '/read-all']),
                  livenessProbe: probe(['sha256sum', '/parts/0']),
                },
              ],
            },
          },
        },
      },
    })
    return new ReadingDeployment(apps, core)
  }

  /** Where it is. */
  static get namespace(): string {
    return NAMESPACE
  }

  async scale(replicas: number): Promise<void> {
    await this.#change({ replicas })
  }

  /** Has its pods replaced by those of another image; of another runtime class too if one is given, null being none. */
  async roll(cid: string, runtimeClass?: string | null): Promise<void> {
    await this.#change({
      template: {
        ...(runtimeClass !== undefined && { metadata: { annotations: pulledFor(runtimeClass) } }),
        spec: {
          ...(runtimeClass !== undefined && { runtimeClassName: runtimeClass }),
          containers: [{ name: NAME, image: imageOf(cid) }],
        },
      },
    })
  }

  /** Has its pods replaced by others whose specification has this too. */
  async change(spec: Partial<V1PodSpec>): Promise<void> {
    await this.#change({ template: { spec } })
  }

  /** Deletes it, and waits until its pods are gone. */
  async delete(): Promise<void> {
    await this.#apps.deleteNamespacedDeployment({ namespace: NAMESPACE, name: NAME })
    await this.#whenPods((pods) => pods.length === 0)
  }

  async pods(): Promise<V1Pod[]> {
    const { items } = await this.#core.listNamespacedPod({ namespace: NAMESPACE })
    for (const { metadata, status } of items) {
      const counts = (status?.containerStatuses ?? []).map(({ restartCount }) => restartCount)
      this.#restarts.set(metadata?.name ?? '', Math.max(0, ...counts))
    }
    return items
  }

  /** Pods whose containers were started anew, and how often, as far as `pods` has seen them. */
  get restarted(): [pod: string, times: number][] {
    return [...this.#restarts].filter(([, times]) => times > 0)
  }

  /** Waits until so many pods of the image run, ready or not. */
  async whenRunning(cid: string, wanted: number): Promise<void> {
    await this.#whenPods(
      (pods) =>
        pods.filter(({ image, isRunning }) => image === imageOf(cid) && isRunning).length >= wanted,
    )
  }

  /** Waits until exactly this many pods are there and ready, all of this image. */
  async whenRolledOut(cid: string, replicas: number): Promise<void> {
    await this.#whenPods(
      (pods) =>
        pods.length === replicas &&
        pods.every(({ image, isReady }) => image === imageOf(cid) && isReady),
    )
  }

  /** Rejects with what the pods were at last if they do not come to be so. */
  async #whenPods(areSo: (pods: readonly PodState[]) => boolean): Promise<void> {
    const deadline = Date.now() + patience.timeout
    for (;;) {
      const pods = (await this.pods()).map(stateOf)
      if (areSo(pods)) return
      if (Date.now() > deadline) throw new Error(`pods at last: ${JSON.stringify(pods, null, 2)}`)
      await setTimeout(patience.interval)
    }
  }

  async #change(spec: object): Promise<void> {
    await this.#apps.patchNamespacedDeployment(
      { namespace: NAMESPACE, name: NAME, body: { spec } },
      setHeaderOptions('Content-Type', PatchStrategy.StrategicMergePatch),
    )
  }
}

type PodState = {
  readonly image: string | undefined
  readonly isRunning: boolean
  readonly isReady: boolean
  /** Why it does not run, as far as the kubelet says. */
  readonly waiting: string | undefined
}

function stateOf({ spec, status }: V1Pod): PodState {
  const [container] = status?.containerStatuses ?? []
  return {
    image: spec?.containers[0]?.image,
    isRunning: container?.state?.running !== undefined,
    isReady: status?.conditions?.find(({ type }) => type === 'Ready')?.status === 'True',
    waiting: container?.state?.waiting?.message,
  }
}
