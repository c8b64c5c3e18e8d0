import { afterAll, beforeAll, expect, test } from 'vitest'
import { DaemonSetCluster } from '../support/daemonset-cluster.ts'
import {
  containerIdsOf,
  imageOf,
  patience,
  publishReader,
  ReadingDeployment,
} from '../support/reading-deployment.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

// Goal: on a node that knows nothing of us, the DaemonSet sets containerd up, and the pods that ask for it run from CIDs, while all others
// stay on overlayfs. Method: as in daemonset.test.ts. The tests follow each other.

const REPLICAS = 2

const opened = new AsyncDisposableStack()
let node: DaemonSetCluster
let deployment: ReadingDeployment
let images: readonly [string, string, string]

beforeAll(async () => {
  const scratch = opened.use(Scratch.open('kubernetes-class'))
  node = opened.use(await DaemonSetCluster.start({ scratch, overlay: 'runtime-class' }))
  const parts = { scratch, publisher: node.publisher, random: seeded(13), pauseS: 0.4 }
  const publish = (version: string): Promise<string> => publishReader(version, parts)
  images = [await publish('first'), await publish('second'), await publish('third')]
  await node.cluster.api.namespace(ReadingDeployment.namespace)
}, 1_800_000)
afterAll(async () => await opened.disposeAsync(), 120_000)

/** IDs of the containers, those that keep pods among them, whose root is by this snapshotter. */
async function containersOn(snapshotter: string): Promise<string[]> {
  const words = ['-n', 'k8s.io', 'snapshots', '--snapshotter', snapshotter, 'ls']
  const list = await node.containerd.ctr(words)
  return [...list.matchAll(/^([0-9a-f]{64}) .* Active/gm)].map(([, id]) => id ?? '')
}

test('the first container of its pod writes the drop-in, and says that containerd is to be restarted', async () => {
  await node.apply()
  const pod = await node.readyAgentPod()
  await expect.poll(() => node.taints(), patience).toEqual([])
  expect(node.logOf(pod, 'host-setup')).toContain('restart containerd')
  expect(await node.machine.run('ls', '/etc/containerd/conf.d')).toBe('ipdr-agent.toml\n')
})

test('once it is, pods of the class are mounted from a CID, and the agent itself is on overlayfs', async () => {
  const [first] = images
  await node.containerd.restart()
  deployment = await ReadingDeployment.create(node.cluster.api.admin, {
    cid: first,
    replicas: REPLICAS,
    maxSurge: REPLICAS,
    runtimeClass: 'ipdr',
  })
  await deployment.whenRolledOut(first, REPLICAS)
  expect(node.machine.mounts('/var/lib/ipdr-agent').map(({ type }) => type)).toContain('erofs')
  const agents = containerIdsOf(await node.agentPods())
  expect(agents).toHaveLength(2)
  expect(await containersOn('overlayfs')).toEqual(expect.arrayContaining(agents))
  const pods = containerIdsOf(await deployment.pods())
  expect(await containersOn('ipdr')).toEqual(expect.arrayContaining(pods))
}, 300_000)

test('pods without the class run from a CID too, downloaded whole', async () => {
  const [, second] = images
  await deployment.roll(second, null)
  await deployment.whenRolledOut(second, REPLICAS)
  const ids = containerIdsOf(await deployment.pods())
  expect(await containersOn('overlayfs')).toEqual(expect.arrayContaining(ids))
  await expect.poll(() => containersOn('ipdr'), patience).toEqual([])
}, 300_000)

test("the class's pods go on while the agent's pod is deleted, and no container restarts", async () => {
  const [, , third] = images
  await deployment.roll(third, 'ipdr')
  await deployment.whenRunning(third, REPLICAS)
  const before = await node.readyAgentPod()
  await node.deletePod(before)
  const pod = await node.readyAgentPod(before)
  // The same again is no change.
  expect(node.logOf(pod, 'host-setup')).toContain('containerd has what it needs')
  await expect.poll(() => node.fetchedBytes(), patience).toBeGreaterThan(0)
  expect(node.logOf(pod)).toContain('"adopted":true')
  await deployment.whenRolledOut(third, REPLICAS)
  expect(deployment.restarted).toEqual([])
}, 600_000)

test('all of it is deleted, and only the drop-in is left on the node', async () => {
  await deployment.delete()
  for (const cid of images) await node.cri.removeImage(imageOf(cid))
  await expect.poll(() => node.machine.mounts('/var/lib/ipdr-agent'), patience).toEqual([])
  await node.delete()
  await expect.poll(() => node.machine.mounts('/run/ipdr-agent'), patience).toEqual([])
}, 300_000)
