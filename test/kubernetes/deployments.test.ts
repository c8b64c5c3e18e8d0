import { hash } from 'node:crypto'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import {
  AppsV1Api,
  CoreV1Api,
  PatchStrategy,
  setHeaderOptions,
  type V1Pod,
} from '@kubernetes/client-node'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { listMounts } from '../../snapshotter/kernel/mountinfo.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { KubeCluster } from '../support/kube-cluster.ts'
import { Kubelet } from '../support/kubelet.ts'
import { LazyNode } from '../support/lazy-node.ts'
import { makeTar, type TarPart } from '../support/make-tar.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

// Goal: pods of an ordinary Deployment run from CIDs, whatever becomes of the agent. Method: a whole Kubernetes on this machine, of
// etcd, kube-apiserver, controllers, scheduler and a kubelet, on a containerd with the agent. The tests follow each other.

const NAMESPACE = 'ipdr-test'
const NAME = 'app'
const REPLICAS = 3

/** A pod on a busy machine waits for two starts of its node's containerd client and three probes. */
const patience = { timeout: 120_000, interval: 100 }

const opened = new AsyncDisposableStack()
let cluster: KubeCluster
let node: LazyNode
let kubelet: Kubelet
let apps: AppsV1Api
let core: CoreV1Api
/** What the Deployment is rolled to, one after the other. */
let images: readonly [string, string, string]

beforeAll(async () => {
  const scratch = opened.use(Scratch.open('kubernetes'))
  cluster = opened.use(await KubeCluster.start(scratch))
  node = opened.use(await LazyNode.start('kubernetes-node', { version: '2', hasPodNetwork: true }))
  const { containerd } = node
  const { api } = cluster
  kubelet = opened.use(await Kubelet.start({ scratch: node.scratch, api, containerd }))
  images = [await publish('first'), await publish('second'), await publish('third')]
  apps = api.admin.makeApiClient(AppsV1Api)
  core = api.admin.makeApiClient(CoreV1Api)
  await api.namespace(NAMESPACE)
}, 1_800_000)
afterAll(async () => await opened.disposeAsync(), 120_000)

/** Files that are read one after the other, so that a pod is a while at it; each is blocks of its own. */
const PARTS = 60
const random = seeded(11)

/** An image that says `version`, whose command reads all of it and checks what it reads. */
async function publish(version: string): Promise<string> {
  const { scratch, publisher } = node
  const parts = Array.from({ length: PARTS }, () => randomContent(random, 200_000))
  const sums = parts.map((part, at) => `${hash('sha256', part)}  /parts/${at}\n`).join('')
  const pack = (...files: readonly TarPart[]): ReturnType<typeof packLayer> =>
    packLayer(Readable.from([makeTar(...files)]), 'gzip', join(scratch.dir, 'layers'))
  const layers = [
    await pack(...busyboxFiles('cat', 'grep', 'sh', 'sha256sum', 'sleep')),
    await pack(
      { name: 'version', content: version },
      { name: 'sums', content: sums },
      { name: 'read', mode: 0o755, content: READ },
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

/** Ends, and with it the container, at the first byte that is not as it was published. */
const READ = `#!/bin/sh
set -eu
while read -r line; do
  echo "$line" | sha256sum -c -s
  sleep 0.1
done </sums
echo all >/read-all
exec sleep infinity
`

/** Makes the Deployment. Its pods are ready once they have read all of their image, and are restarted where that takes no more reads. */
async function deploy(cid: string, replicas: number): Promise<void> {
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
        selector: { matchLabels: labels },
        template: {
          metadata: { labels },
          spec: {
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
}

async function change(spec: object): Promise<void> {
  await apps.patchNamespacedDeployment(
    { namespace: NAMESPACE, name: NAME, body: { spec } },
    setHeaderOptions('Content-Type', PatchStrategy.StrategicMergePatch),
  )
}

/** How often containers were started anew, by pod, also of pods that are gone since. */
const restarts = new Map<string, number>()

async function pods(): Promise<V1Pod[]> {
  const { items } = await core.listNamespacedPod({ namespace: NAMESPACE })
  for (const { metadata, status } of items) {
    const counts = (status?.containerStatuses ?? []).map(({ restartCount }) => restartCount)
    restarts.set(metadata?.name ?? '', Math.max(0, ...counts))
  }
  return items
}

/** How many pods of the image run, ready or not. */
async function countRunning(cid: string): Promise<number> {
  const isRunning = ({ spec, status }: V1Pod): boolean =>
    spec?.containers[0]?.image === imageOf(cid) &&
    status?.containerStatuses?.[0]?.state?.running !== undefined
  return (await pods()).filter(isRunning).length
}

function imageOf(cid: string): string {
  return `ipdr.internal/${cid}`
}

/** Waits until exactly this many pods are there and ready, all of this image. */
async function whenRolledOut(cid: string, replicas: number): Promise<void> {
  await expect
    .poll(
      async () =>
        (await pods()).map(({ spec, status }) => ({
          image: spec?.containers[0]?.image,
          ready: status?.conditions?.find(({ type }) => type === 'Ready')?.status,
        })),
      patience,
    )
    .toEqual(Array.from({ length: replicas }, () => ({ image: imageOf(cid), ready: 'True' })))
}

test('a Deployment that names a CID is ready, and is scaled up and down', async () => {
  const [first] = images
  await deploy(first, 1)
  await whenRolledOut(first, 1)
  expect(node.layerMounts.length).toBeGreaterThan(0)
  for (const replicas of [REPLICAS + 2, REPLICAS]) {
    await change({ replicas })
    await whenRolledOut(first, replicas)
  }
  expect([...restarts.values()].filter((count) => count > 0)).toEqual([])
}, 300_000)

const strikes = [
  { victim: 'data worker', kill: () => node.agent.killWorker() },
  {
    victim: 'supervisor',
    kill: async () => {
      await node.agent.stop('SIGKILL')
      await node.agent.start()
    },
  },
]

test.each(strikes)(
  'is rolled to another CID while the $victim is killed again and again, and no container restarts',
  async ({ victim, kill }) => {
    const image = images[victim === 'data worker' ? 1 : 2]
    await change({ template: { spec: { containers: [{ name: NAME, image: imageOf(image) }] } } })
    // Before the image is pulled, and then whenever one more of its containers has begun to read.
    await kill()
    const whenRunning = (pods: number): Promise<void> =>
      expect.poll(() => countRunning(image), patience).toBeGreaterThanOrEqual(pods)
    await whenRunning(1)
    await kill()
    // It was killed while bytes were missing: who took its place has to fetch.
    await expect.poll(() => node.fetchedBytes(), patience).toBeGreaterThan(0)
    for (let pods = 2; pods <= REPLICAS; pods++) {
      await whenRunning(pods)
      await kill()
    }
    await whenRolledOut(image, REPLICAS)
    expect([...restarts].filter(([, count]) => count > 0)).toEqual([])
  },
  300_000,
)

test('is deleted, and nothing is left of it', async () => {
  await apps.deleteNamespacedDeployment({ namespace: NAMESPACE, name: NAME })
  await expect.poll(pods, patience).toEqual([])
  for (const cid of images) await node.cri.removeImage(imageOf(cid))
  const { containerd } = node
  const k8s = ['-n', 'k8s.io']
  // The kubelet removes once a minute what is left of pods that have ended.
  await expect
    .poll(
      async () => ({
        layers: node.layerMounts,
        // The first line is a heading, and the pods' own image stays.
        snapshots: (await containerd.ctr([...k8s, 'snapshots', '--snapshotter', 'ipdr', 'ls']))
          .trim()
          .split('\n').length,
        tasks: await containerd.ctr([...k8s, 'tasks', 'ls', '-q']),
        mounts: listMounts(join(node.scratch.run, 'containerd')).map(({ target }) => target),
        pods: readdirSync(join(kubelet.root, 'pods')),
        volumes: listMounts(kubelet.root)
          .map(({ target }) => target)
          .filter((target) => target !== kubelet.root),
      }),
      patience,
    )
    .toEqual({ layers: [], snapshots: 2, tasks: '', mounts: [], pods: [], volumes: [] })
}, 180_000)
