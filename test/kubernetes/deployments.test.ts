import { hash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { AppsV1Api, CoreV1Api, type V1Pod } from '@kubernetes/client-node'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { busyboxPath } from '../support/debian-programs.ts'
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

/** A pod on a busy machine waits for two starts of its node's containerd client and three probes. */
const patience = { timeout: 120_000, interval: 100 }

const opened = new AsyncDisposableStack()
let cluster: KubeCluster
let node: LazyNode
let apps: AppsV1Api
let core: CoreV1Api
let first = ''

beforeAll(async () => {
  const scratch = opened.use(Scratch.open('kubernetes'))
  cluster = opened.use(await KubeCluster.start(scratch))
  node = opened.use(await LazyNode.start('kubernetes-node', { version: '2', hasPodNetwork: true }))
  const { containerd } = node
  const { api } = cluster
  opened.use(await Kubelet.start({ scratch: node.scratch, api, containerd }))
  first = await publish('first')
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
    await pack(
      { name: 'bin/', typeflag: '5', mode: 0o755 },
      { name: 'bin/busybox', mode: 0o755, content: readFileSync(busyboxPath) },
      ...['cat', 'grep', 'sh', 'sha256sum', 'sleep'].map((name) => ({
        name: `bin/${name}`,
        typeflag: '2',
        linkName: 'busybox',
      })),
    ),
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
echo all
exec sleep infinity
`

/** Makes the Deployment, with probes that read from the image. */
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
                image: `ipdr.internal/${cid}`,
                readinessProbe: probe(['cat', '/version']),
                livenessProbe: probe(['sha256sum', '/parts/0']),
              },
            ],
          },
        },
      },
    },
  })
}

async function pods(): Promise<V1Pod[]> {
  const { items } = await core.listNamespacedPod({ namespace: NAMESPACE })
  return items
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
    .toEqual(
      Array.from({ length: replicas }, () => ({ image: `ipdr.internal/${cid}`, ready: 'True' })),
    )
}

test('a Deployment that names a CID is ready', async () => {
  await deploy(first, 2)
  await whenRolledOut(first, 2)
  expect(node.layerMounts.length).toBeGreaterThan(0)
}, 180_000)
