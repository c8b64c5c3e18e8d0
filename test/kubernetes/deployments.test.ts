import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { listMounts } from '../../snapshotter/kernel/mountinfo.ts'
import { KubeCluster } from '../support/kube-cluster.ts'
import { Kubelet } from '../support/kubelet.ts'
import { LazyNode } from '../support/lazy-node.ts'
import {
  containerIdsOf,
  imageOf,
  patience,
  publishReader,
  ReadingDeployment,
} from '../support/reading-deployment.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

// Goal: pods of an ordinary Deployment run from CIDs, whatever becomes of the agent. Method: a whole Kubernetes on this machine, of
// etcd, kube-apiserver, controllers, scheduler and a kubelet, on a containerd with the agent. The tests follow each other.

const REPLICAS = 3
const K8S = ['-n', 'k8s.io']

const opened = new AsyncDisposableStack()
let cluster: KubeCluster
let node: LazyNode
let kubelet: Kubelet
let deployment: ReadingDeployment
/** What the Deployment is rolled to, one after the other. */
let images: readonly [string, string, string]

beforeAll(async () => {
  const scratch = opened.use(Scratch.open('kubernetes'))
  cluster = opened.use(await KubeCluster.start(scratch))
  // So that bytes are missing until a container reads them.
  const prefetch = { replay: false, learn: false }
  const options = { version: '2', hasPodNetwork: true, prefetch } as const
  node = opened.use(await LazyNode.start('kubernetes-node', options))
  const { containerd } = node
  const { api } = cluster
  kubelet = opened.use(await Kubelet.start({ scratch: node.scratch, api, containerd }))
  const parts = { scratch: node.scratch, publisher: node.publisher, random: seeded(11) }
  const publish = (version: string): Promise<string> => publishReader(version, parts)
  images = [await publish('first'), await publish('second'), await publish('third')]
  await api.namespace(ReadingDeployment.namespace)
}, 1_800_000)
afterAll(async () => await opened.disposeAsync(), 120_000)

test('a Deployment that names a CID is ready, and is scaled up and down', async () => {
  const [first] = images
  deployment = await ReadingDeployment.create(cluster.api.admin, { cid: first, replicas: 1 })
  await deployment.whenRolledOut(first, 1)
  expect(node.layerMounts.length).toBeGreaterThan(0)
  for (const replicas of [REPLICAS + 2, REPLICAS]) {
    await deployment.scale(replicas)
    await deployment.whenRolledOut(first, replicas)
  }
  expect(deployment.restarted).toEqual([])
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
    await deployment.roll(image)
    // Before the image is pulled, and then whenever one more of its containers has begun to read.
    await kill()
    await deployment.whenRunning(image, 1)
    await kill()
    // It was killed while bytes were missing: who took its place has to fetch.
    await expect.poll(() => node.fetchedBytes(), patience).toBeGreaterThan(0)
    for (let pods = 2; pods <= REPLICAS; pods++) {
      await deployment.whenRunning(image, pods)
      await kill()
    }
    await deployment.whenRolledOut(image, REPLICAS)
    expect(deployment.restarted).toEqual([])
  },
  300_000,
)

test('its pods are replaced by some in user namespaces, and the image is neither fetched nor copied again for them', async () => {
  const image = images[2]
  const before = await node.fetchedBytes()
  await deployment.change({ hostUsers: false })
  await expect.poll(rootsOfPods, patience).toSatisfy(areApart)
  await deployment.whenRolledOut(image, REPLICAS)
  expect(deployment.restarted).toEqual([])
  // The image is of 12 MB. What no pod before has read may still come.
  expect((await node.fetchedBytes()) - before).toBeLessThan(1_000_000)
  const words = ['snapshots', '--snapshotter', 'ipdr', 'usage', '-b']
  const usage = await node.containerd.ctr([...K8S, ...words])
  // Those of containers are called like them.
  const written = [...usage.matchAll(/^[0-9a-f]{64} +(\d+)/gm)].map(([, bytes]) => Number(bytes))
  expect(written.length).toBeGreaterThanOrEqual(REPLICAS)
  expect(Math.max(...written)).toBeLessThan(100_000)
}, 300_000)

/** What each container of the Deployment has as root: a user of the node. */
async function rootsOfPods(): Promise<number[]> {
  const ids = containerIdsOf(await deployment.pods())
  const tasks = await node.containerd.ctr([...K8S, 'tasks', 'ls'])
  return [...tasks.matchAll(/^(\w+) +(\d+) +RUNNING/gm)]
    .filter(([, id = '']) => ids.includes(id))
    .map(([, , pid]) => Number(readFileSync(`/proc/${pid}/uid_map`, 'utf8').trim().split(/ +/)[1]))
}

/** Whether all pods are there, and none has the root of another or of the node. */
function areApart(roots: readonly number[]): boolean {
  return roots.length === REPLICAS && new Set([0, ...roots]).size === REPLICAS + 1
}

test('is deleted, and nothing is left of it', async () => {
  await deployment.delete()
  for (const cid of images) await node.cri.removeImage(imageOf(cid))
  const { containerd } = node
  // The kubelet removes once a minute what is left of pods that have ended.
  await expect
    .poll(
      async () => ({
        layers: node.layerMounts,
        // The first line is a heading, and the pods' own image stays.
        snapshots: (await containerd.ctr([...K8S, 'snapshots', '--snapshotter', 'ipdr', 'ls']))
          .trim()
          .split('\n').length,
        tasks: await containerd.ctr([...K8S, 'tasks', 'ls', '-q']),
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
