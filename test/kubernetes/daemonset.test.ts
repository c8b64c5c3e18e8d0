import { globSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { CoreV1Api, type V1Pod } from '@kubernetes/client-node'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { NOT_READY_TAINT } from '../../agent/kubernetes/node-taint.ts'
import { buildImage } from '../../node-image/build-image.ts'
import { Containerd, writeHostsFile } from '../support/containerd.ts'
import { containerdPath } from '../support/containerd-programs.ts'
import { ControlGroup } from '../support/control-group.ts'
import { Cri } from '../support/cri.ts'
import { SERVICE_ADDRESS } from '../support/kube-apiserver.ts'
import { KubeCluster } from '../support/kube-cluster.ts'
import { kubectl, kubectlCommand } from '../support/kubectl.ts'
import { Kubelet } from '../support/kubelet.ts'
import { agentConfig, KUBERNETES } from '../support/kubernetes-manifests.ts'
import { Publisher } from '../support/lazy-node.ts'
import { enterOwnNetwork } from '../support/own-network.ts'
import { OwnNode } from '../support/own-node.ts'
import {
  imageOf,
  patience,
  publishReader,
  ReadingDeployment,
} from '../support/reading-deployment.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

// Goal: where the agent is a pod of its own DaemonSet, pods run from CIDs, whatever becomes of that pod. Method: `kubectl apply -k` of
// the overlay that we ship, on a whole Kubernetes, with an overlay of the user's over it for the configuration; all paths and
// ports are as shipped, on a node of its own (test/support/own-node.sh) in a network of its own. The tests follow each other.

const IMAGE = 'ipdr.dev/agent:0.1.0'
const NAMESPACE = 'ipdr-system'
const REPLICAS = 3

const opened = new AsyncDisposableStack()
let scratch: Scratch
let cluster: KubeCluster
let machine: OwnNode
let containerd: Containerd
let cri: Cri
let kubelet: Kubelet
let core: CoreV1Api
let deployment: ReadingDeployment
/** What the user applies. */
let overlay: string
let keeperGroup: string
/** What the Deployment is rolled to, one after the other. */
let images: readonly [string, string, string, string]

beforeAll(async () => {
  scratch = opened.use(Scratch.open('kubernetes-pods'))
  const { dir: image } = await buildImage(join(scratch.dir, 'image'))
  await KubeCluster.fetch()
  await containerdPath('2', scratch)
  kubectlCommand()
  await enterOwnNetwork([SERVICE_ADDRESS])
  cluster = opened.use(await KubeCluster.start(scratch, { isService: true }))
  const { api } = cluster
  const publisher = opened.use(await Publisher.start(scratch))
  machine = await OwnNode.start(scratch)
  // As node-image/kubernetes/README.md has it for new nodes.
  await machine.run('mkdir', '-p', '/var/lib/ipdr-agent')
  const certsDir = join(scratch.dir, 'certs.d')
  writeHostsFile(certsDir, 'ipdr.internal', 'http://127.0.0.1:5080')
  const agent = { socketPath: '/run/ipdr-agent/snapshotter.sock', root: '/var/lib/ipdr-agent' }
  containerd = opened.use(
    await Containerd.start({
      scratch,
      snapshotter: { name: 'ipdr', ...agent },
      version: '2',
      hasBootstrap: true,
      hasPodNetwork: true,
      certsDir,
      within: machine.within,
    }),
  )
  cri = opened.use(await Cri.connect(containerd))
  const taints = [NOT_READY_TAINT]
  kubelet = opened.use(await Kubelet.start({ scratch, api, containerd, node: machine, taints }))
  await importAgent(image)
  keeperGroup = `${dirname(containerd.cgroup)}/fuse-keeper`
  overlay = writeOverlay({
    ...agentConfig(),
    ipfs: { gateways: [publisher.gatewayUrl] },
    fuseKeeper: { controlGroup: keeperGroup },
    // So that bytes are missing until a container reads them.
    prefetch: { replay: false },
  })
  const parts = { scratch, publisher, random: seeded(12), pauseS: 0.4 }
  const publish = (version: string): Promise<string> => publishReader(version, parts)
  images = [
    await publish('first'),
    await publish('second'),
    await publish('third'),
    await publish('fourth'),
  ]
  core = api.admin.makeApiClient(CoreV1Api)
  await api.namespace(ReadingDeployment.namespace)
}, 1_800_000)
afterAll(async () => await opened.disposeAsync(), 120_000)

/** Gives the image to containerd as node-image/kubernetes/README.md says, without a registry. */
async function importAgent(image: string): Promise<void> {
  const archive = `${image}.tar`
  await runCommand('tar', ['-C', image, '-cf', archive, '.'])
  const words = ['images', 'import', '--base-name', 'ipdr.dev/agent', '--snapshotter', 'overlayfs']
  await containerd.ctr(['-n', 'k8s.io', ...words, archive])
  // CRI hears of it by an event.
  while ((await cri.imageStatus(IMAGE)) === undefined) await setTimeout(10)
}

/** The one thing that everybody changes. */
function writeOverlay(config: object): string {
  const dir = join(scratch.dir, 'overlay')
  mkdirSync(dir)
  writeFileSync(join(dir, 'config.json'), JSON.stringify(config))
  const kustomization = {
    apiVersion: 'kustomize.config.k8s.io/v1beta1',
    kind: 'Kustomization',
    namespace: NAMESPACE,
    resources: [relative(dir, join(KUBERNETES, 'overlays/whole-node'))],
    configMapGenerator: [
      { name: 'ipdr-agent-config', behavior: 'replace', files: ['config.json'] },
    ],
  }
  // YAML is a superset of JSON.
  writeFileSync(join(dir, 'kustomization.yaml'), JSON.stringify(kustomization))
  return dir
}

async function kube(...words: string[]): Promise<string> {
  return await kubectl(words, { kubeconfig: cluster.api.adminKubeconfig })
}

/** The pods of the DaemonSet, those that end among them. */
async function agentPods(): Promise<V1Pod[]> {
  const labelSelector = 'app.kubernetes.io/name=ipdr-agent'
  return (await core.listNamespacedPod({ namespace: NAMESPACE, labelSelector })).items
}

/** The one pod of the DaemonSet, once it is there alone, another than `before`, and ready. */
async function readyAgentPod(before?: V1Pod): Promise<V1Pod> {
  const ready = async (): Promise<V1Pod | undefined> => {
    const [pod, ...more] = await agentPods()
    const isNew = pod?.metadata?.uid !== before?.metadata?.uid && more.length === 0
    return isNew && isReady(pod) ? pod : undefined
  }
  await expect.poll(ready, { ...patience, timeout: 240_000 }).toBeDefined()
  const pod = await ready()
  if (pod === undefined) throw new Error('it is no longer ready')
  return pod
}

function isReady(pod: V1Pod | undefined): boolean {
  return pod?.status?.conditions?.find(({ type }) => type === 'Ready')?.status === 'True'
}

async function taintsOfNode(): Promise<string[]> {
  const { items } = await core.listNode()
  return items.flatMap(({ spec }) => spec?.taints ?? []).map(({ key }) => key)
}

/** What the agent's container has written, in all its lives in this pod. */
function logOf(pod: V1Pod): string {
  const folder = `${NAMESPACE}_${pod.metadata?.name}_${pod.metadata?.uid}/agent`
  const files = globSync(join(kubelet.podLogsDir, folder, '*.log'))
  return files.map((path) => readFileSync(path, 'utf8')).join('')
}

/** Bytes of blocks that the agent which runs now has fetched; 0 while none answers. */
async function fetchedBytes(): Promise<number> {
  try {
    const text = await (await fetch('http://127.0.0.1:5081/metrics')).text()
    const values = [...text.matchAll(/^ipdr_fetched_bytes_total\S* (\S+)$/gm)]
    return values.reduce((sum, [, value]) => sum + Number(value), 0)
  } catch {
    return 0
  }
}

test('the pods of a Deployment wait while the node has the taint, and are ready once the DaemonSet is there', async () => {
  const [first] = images
  const { admin } = cluster.api
  expect(await taintsOfNode()).toContain(NOT_READY_TAINT.key)
  deployment = await ReadingDeployment.create(admin, {
    cid: first,
    replicas: 1,
    maxSurge: REPLICAS,
  })
  const whyPending = async (): Promise<unknown> =>
    (await deployment.pods())[0]?.status?.conditions?.map(({ message }) => message)
  await expect.poll(whyPending, patience).toEqual([expect.stringContaining('untolerated taint')])
  await kube('apply', '-k', overlay)
  await readyAgentPod()
  await expect.poll(taintsOfNode, patience).toEqual([])
  await deployment.whenRolledOut(first, 1)
  expect(machine.mounts('/var/lib/ipdr-agent').map(({ type }) => type)).toContain('erofs')
  // All the while the kubelet knew how full the disk of images is, and would have made room.
  expect(readFileSync(kubelet.logPath, 'utf8')).not.toContain('HasDedicatedImageFs')
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
      await core.deleteNamespacedPod({ namespace: NAMESPACE, name: pod.metadata?.name ?? '' })
      await readyAgentPod(pod)
    },
  },
  {
    what: "the agent's container is killed",
    image: () => images[2],
    strike: async (pod: V1Pod) => {
      process.kill(await firstProcessOf(pod), 'SIGKILL')
      const restarts = async (): Promise<number | undefined> =>
        agentContainerOf((await agentPods())[0])?.restartCount
      await expect.poll(restarts, patience).toBe(1)
      await readyAgentPod()
    },
  },
  {
    what: 'the DaemonSet is rolled out anew',
    image: () => images[3],
    strike: async (pod: V1Pod) => {
      await kube('rollout', 'restart', 'daemonset/ipdr-agent', '-n', NAMESPACE)
      await kube('rollout', 'status', 'daemonset/ipdr-agent', '-n', NAMESPACE)
      await readyAgentPod(pod)
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
    await strike(await readyAgentPod())
    // It was struck while bytes were missing: who took its place has to fetch.
    await expect.poll(fetchedBytes, patience).toBeGreaterThan(0)
    const [pod] = await agentPods()
    expect(pod && logOf(pod)).toContain('"adopted":true')
    await deployment.whenRolledOut(image, REPLICAS)
    expect(deployment.restarted).toEqual([])
  },
  600_000,
)

test('all of it is deleted, and nothing is left on the node', async () => {
  await deployment.delete()
  for (const cid of images) await cri.removeImage(imageOf(cid))
  await expect.poll(() => machine.mounts('/var/lib/ipdr-agent'), patience).toEqual([])
  await kube('delete', '-k', overlay)
  await expect.poll(agentPods, patience).toEqual([])
  // The kubelet removes once a minute what is left of pods that have ended.
  await expect
    .poll(
      async () => ({
        mounts: machine
          .mounts('/run/ipdr-agent', '/run/containerd', kubelet.root)
          .map(({ target }) => target),
        keeper: new ControlGroup(keeperGroup).pids(),
        tasks: await containerd.ctr(['-n', 'k8s.io', 'tasks', 'ls', '-q']),
        pods: readdirSync(join(kubelet.root, 'pods')),
      }),
      patience,
    )
    .toEqual({ mounts: ['/run/containerd'], keeper: [], tasks: '', pods: [] })
}, 300_000)

function agentContainerOf(
  pod: V1Pod | undefined,
): { containerID?: string; restartCount: number } | undefined {
  return pod?.status?.containerStatuses?.find(({ name }) => name === 'agent')
}

/** Of the agent's container. By containerd, since /proc may wait for one that waits for us. */
async function firstProcessOf(pod: V1Pod): Promise<number> {
  const id = agentContainerOf(pod)?.containerID?.replace('containerd://', '') ?? ''
  const tasks = await containerd.ctr(['-n', 'k8s.io', 'tasks', 'ls'])
  const [, pid] = new RegExp(`^${id}\\s+(\\d+)`, 'm').exec(tasks) ?? []
  if (pid === undefined) throw new Error(`containerd knows no task ${id}:\n${tasks}`)
  return Number(pid)
}
