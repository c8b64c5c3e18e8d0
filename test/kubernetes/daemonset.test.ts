import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { V1Pod } from '@kubernetes/client-node'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { NOT_READY_TAINT } from '../../agent/kubernetes/node-taint.ts'
import { makeCertificates } from '../support/cluster-certificates.ts'
import { ControlGroup } from '../support/control-group.ts'
import { DaemonSetCluster } from '../support/daemonset-cluster.ts'
import {
  imageOf,
  patience,
  publishReader,
  ReadingDeployment,
} from '../support/reading-deployment.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

// Goal: where the agent is a pod of its own DaemonSet, pods run from CIDs, whatever becomes of that pod. Method: `kubectl apply -k` of
// the overlay that we ship, on a whole Kubernetes, with an overlay of the user's over it for the configuration. The tests follow each
// other.

const REPLICAS = 3

const opened = new AsyncDisposableStack()
let scratch: Scratch
let node: DaemonSetCluster
let deployment: ReadingDeployment
/** What the Deployment is rolled to, one after the other. */
let images: readonly [string, string, string, string]

beforeAll(async () => {
  scratch = opened.use(Scratch.open('kubernetes-pods'))
  node = opened.use(await DaemonSetCluster.start({ scratch, overlay: 'whole-node' }))
  const parts = { scratch, publisher: node.publisher, random: seeded(12), pauseS: 0.4 }
  const publish = (version: string): Promise<string> => publishReader(version, parts)
  images = [
    await publish('first'),
    await publish('second'),
    await publish('third'),
    await publish('fourth'),
  ]
  await node.cluster.api.namespace(ReadingDeployment.namespace)
}, 1_800_000)
afterAll(async () => await opened.disposeAsync(), 120_000)

test('the pods of a Deployment wait while the node has the taint, and are ready once the DaemonSet is there', async () => {
  const [first] = images
  const { admin } = node.cluster.api
  expect(await node.taints()).toContain(NOT_READY_TAINT.key)
  deployment = await ReadingDeployment.create(admin, {
    cid: first,
    replicas: 1,
    maxSurge: REPLICAS,
  })
  const whyPending = async (): Promise<unknown> =>
    (await deployment.pods())[0]?.status?.conditions?.map(({ message }) => message)
  await expect.poll(whyPending, patience).toEqual([expect.stringContaining('untolerated taint')])
  await node.apply()
  await node.readyAgentPod()
  await expect.poll(() => node.taints(), patience).toEqual([])
  await deployment.whenRolledOut(first, 1)
  expect(node.machine.mounts('/var/lib/ipdr-agent').map(({ type }) => type)).toContain('erofs')
  // All the while the kubelet knew how full the disk of images is, and would have made room.
  expect(readFileSync(node.kubelet.logPath, 'utf8')).not.toContain('HasDedicatedImageFs')
}, 600_000)

test('it is scaled up and down', async () => {
  const [first] = images
  for (const replicas of [REPLICAS + 2, REPLICAS]) {
    await deployment.scale(replicas)
    await deployment.whenRolledOut(first, replicas)
  }
  expect(deployment.restarted).toEqual([])
}, 300_000)

/** What befalls the agent, until it is ready again. */
const strikes = [
  {
    what: "the agent's pod is deleted",
    image: () => images[1],
    strike: async (pod: V1Pod) => {
      await node.deletePod(pod)
      await node.readyAgentPod(pod)
    },
  },
  {
    what: "the agent's container is killed",
    image: () => images[2],
    strike: async (pod: V1Pod) => {
      await node.killAgent(pod)
      await node.readyAgentPod()
    },
  },
  {
    what: 'the DaemonSet is rolled out anew',
    image: () => images[3],
    strike: async (pod: V1Pod) => {
      await node.restartDaemonSet()
      await node.readyAgentPod(pod)
    },
  },
]

test.each(strikes.map((strike) => [strike.what, strike] as const))(
  'it is rolled to another CID while %s, and no container restarts',
  async (_, { image: chosen, strike }) => {
    const image = chosen()
    await deployment.roll(image)
    // All read at once, and are half a minute at it.
    await deployment.whenRunning(image, REPLICAS)
    await strike(await node.readyAgentPod())
    // It was struck while bytes were missing: who took its place has to fetch.
    await expect.poll(() => node.fetchedBytes(), patience).toBeGreaterThan(0)
    const [pod] = await node.agentPods()
    expect(pod && node.logOf(pod)).toContain('"adopted":true')
    await deployment.whenRolledOut(image, REPLICAS)
    expect(deployment.restarted).toEqual([])
  },
  600_000,
)

test('with cluster-peers the agent finds itself through the API, and its key is for it alone', async () => {
  const { node: own } = await makeCertificates(join(scratch.dir, 'certificates'), ['node'])
  const files = [`tls.crt=${own.certFile}`, `tls.key=${own.keyFile}`, `ca.crt=${own.caFile}`]
  await node.makeSecret('ipdr-agent-cluster', files)
  const inPod = (name: string): string => `/etc/ipdr-agent-cluster/${name}`
  const tls = {
    certFile: inPod('tls.crt'),
    keyFile: inPod('tls.key'),
    caFile: inPod('ca.crt'),
  }
  const cluster = { listen: '0.0.0.0:5082', kubernetes: {}, tls }
  const before = await node.readyAgentPod()
  await node.apply({ config: { cluster }, components: ['cluster-peers'] })
  const pod = await node.readyAgentPod(before)
  // The slice is the controller's own. At the address of this node there is nobody, and so somebody else.
  expect(node.logOf(pod)).toContain('peers of Service ipdr-system/ipdr-agent: ')
  await expect.poll(() => node.metric('ipdr_cluster_peers'), patience).toBe(1)
  // The other container, which is nobody, still reads its token.
  await node.taint()
  await expect.poll(() => node.taints(), { ...patience, timeout: 120_000 }).toEqual([])
}, 600_000)

test('all of it is deleted, and nothing is left on the node', async () => {
  const { machine, kubelet, containerd, cri } = node
  await deployment.delete()
  for (const cid of images) await cri.removeImage(imageOf(cid))
  await expect.poll(() => machine.mounts('/var/lib/ipdr-agent'), patience).toEqual([])
  await node.delete()
  // The kubelet removes once a minute what is left of pods that have ended.
  await expect
    .poll(
      async () => ({
        mounts: machine
          .mounts('/run/ipdr-agent', '/run/containerd', kubelet.root)
          .map(({ target }) => target),
        keeper: new ControlGroup(node.keeperGroup).pids(),
        tasks: await containerd.ctr(['-n', 'k8s.io', 'tasks', 'ls', '-q']),
        pods: readdirSync(join(kubelet.root, 'pods')),
      }),
      patience,
    )
    .toEqual({ mounts: ['/run/containerd'], keeper: [], tasks: '', pods: [] })
}, 300_000)
