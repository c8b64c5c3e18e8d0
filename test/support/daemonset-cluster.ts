import { globSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { CoreV1Api, type V1Pod } from '@kubernetes/client-node'
import { vi } from 'vitest'
import { NOT_READY_TAINT } from '../../agent/kubernetes/node-taint.ts'
import { buildImage } from '../../node-image/build-image.ts'
import { Containerd, type ContainerdOptions, writeHostsFile } from './containerd.ts'
import { containerdPath } from './containerd-programs.ts'
import { Cri } from './cri.ts'
import { SERVICE_ADDRESS } from './kube-apiserver.ts'
import { KubeCluster } from './kube-cluster.ts'
import { kubectl, kubectlCommand } from './kubectl.ts'
import { Kubelet } from './kubelet.ts'
import { agentConfig, KUBERNETES } from './kubernetes-manifests.ts'
import { Publisher } from './lazy-node.ts'
import { enterOwnNetwork } from './own-network.ts'
import { OwnNode } from './own-node.ts'
import { patience } from './reading-deployment.ts'
import { runCommand } from './run-command.ts'
import { Scratch } from './scratch.ts'

const IMAGE = 'ipdr.dev/agent:0.1.0'
const NAMESPACE = 'ipdr-system'

type DaemonSetClusterOptions = {
  readonly scratch: Scratch
  /** Which overlay of node-image/kubernetes is applied. */
  readonly overlay: 'whole-node' | 'runtime-class'
}

/** Where containerd's configuration is on a node. */
const CONTAINERD_DIR = '/etc/containerd'

/**
 * A whole Kubernetes of one node, to which the agent comes by `kubectl apply -k` of an overlay that we ship: all paths and ports are as
 * shipped, on a node of its own (own-node.sh) in a network of its own. One in a process: the process is in that network from then on.
 */
export class DaemonSetCluster implements AsyncDisposable {
  readonly cluster: KubeCluster
  readonly publisher: Publisher
  readonly machine: OwnNode
  readonly containerd: Containerd
  readonly cri: Cri
  readonly kubelet: Kubelet
  /** The control group of the FUSE keeper. */
  readonly keeperGroup: string
  readonly #core: CoreV1Api
  /** What the user applies. */
  readonly #overlay: Overlay
  readonly #opened: AsyncDisposableStack

  private constructor(
    parts: Pick<
      DaemonSetCluster,
      'cluster' | 'publisher' | 'machine' | 'containerd' | 'cri' | 'kubelet' | 'keeperGroup'
    >,
    overlay: Overlay,
    opened: AsyncDisposableStack,
  ) {
    const { cluster, publisher, machine, containerd, cri, kubelet, keeperGroup } = parts
    this.cluster = cluster
    this.publisher = publisher
    this.machine = machine
    this.containerd = containerd
    this.cri = cri
    this.kubelet = kubelet
    this.keeperGroup = keeperGroup
    this.#core = cluster.api.admin.makeApiClient(CoreV1Api)
    this.#overlay = overlay
    this.#opened = opened
  }

  /** Starts it, with the image of the agent on the node and its taint, and without the agent. */
  static async start(options: DaemonSetClusterOptions): Promise<DaemonSetCluster> {
    const { scratch } = options
    await using opened = new AsyncDisposableStack()
    const { dir: image } = await buildImage(join(scratch.dir, 'image'))
    await KubeCluster.fetch()
    await containerdPath('2', scratch)
    kubectlCommand()
    await enterOwnNetwork([SERVICE_ADDRESS])
    const cluster = opened.use(await KubeCluster.start(scratch, { isService: true }))
    const { api } = cluster
    const publisher = opened.use(await Publisher.start(scratch))
    const machine = await OwnNode.start(scratch)
    // As node-image/kubernetes/README.md has it for new nodes.
    await machine.run('mkdir', '-p', '/var/lib/ipdr-agent')
    const certsDir = join(scratch.dir, 'certs.d')
    writeHostsFile(certsDir, 'ipdr.internal', 'http://127.0.0.1:5080')
    const agent = { socketPath: '/run/ipdr-agent/snapshotter.sock', root: '/var/lib/ipdr-agent' }
    // With one it is set up before there is an agent, with the other the agent's own pod does it.
    const profiles = {
      'whole-node': { snapshotter: { name: 'ipdr', ...agent }, hasBootstrap: true, certsDir },
      'runtime-class': { snapshotter: 'overlayfs', dropInDir: `${CONTAINERD_DIR}/conf.d` },
    } as const satisfies Record<string, Partial<ContainerdOptions>>
    const containerd = opened.use(
      await Containerd.start({
        scratch,
        ...profiles[options.overlay],
        version: '2',
        hasPodNetwork: true,
        within: machine.within,
      }),
    )
    await machine.run('mkdir', CONTAINERD_DIR)
    await machine.run('cp', containerd.configPath, `${CONTAINERD_DIR}/config.toml`)
    const cri = opened.use(await Cri.connect(containerd))
    const taints = [NOT_READY_TAINT]
    const kubelet = opened.use(
      await Kubelet.start({ scratch, api, containerd, node: machine, taints }),
    )
    await importAgent(image, { containerd, cri })
    const keeperGroup = `${dirname(containerd.cgroup)}/fuse-keeper`
    const config = {
      ...agentConfig(),
      ipfs: { gateways: [publisher.gatewayUrl] },
      fuseKeeper: { controlGroup: keeperGroup },
      // So that bytes are missing until a container reads them.
      prefetch: { replay: false },
    }
    const overlay = { name: options.overlay, dir: join(scratch.dir, 'overlay'), config }
    const parts = { cluster, publisher, machine, containerd, cri, kubelet, keeperGroup }
    return new DaemonSetCluster(parts, overlay, opened.move())
  }

  /** Applies the overlay, with more configuration and components if they are given, without waiting for anything. */
  async apply(more: OverlayAdditions = {}): Promise<void> {
    writeOverlay(this.#overlay, more)
    await this.kube('apply', '-k', this.#overlay.dir)
  }

  /** Deletes what the overlay made, and waits until the agent's pod is gone. */
  async delete(): Promise<void> {
    await this.kube('delete', '-k', this.#overlay.dir)
    await vi.waitUntil(async () => (await this.agentPods()).length === 0, patience)
  }

  /** Runs kubectl as an administrator, and gives back what it prints. */
  async kube(...words: string[]): Promise<string> {
    return await kubectl(words, { kubeconfig: this.cluster.api.adminKubeconfig })
  }

  /** Rolls the DaemonSet out anew, and waits until kubectl says that it is. */
  async restartDaemonSet(): Promise<void> {
    const words = ['daemonset/ipdr-agent', '-n', NAMESPACE]
    await this.kube('rollout', 'restart', ...words)
    await this.kube('rollout', 'status', ...words)
  }

  /** The pods of the DaemonSet, those that end among them. */
  async agentPods(): Promise<V1Pod[]> {
    const labelSelector = 'app.kubernetes.io/name=ipdr-agent'
    return (await this.#core.listNamespacedPod({ namespace: NAMESPACE, labelSelector })).items
  }

  /** The one pod of the DaemonSet, once it is there alone, another than `before`, and ready. */
  async readyAgentPod(before?: V1Pod): Promise<V1Pod> {
    const ready = async (): Promise<V1Pod | undefined> => {
      const [pod, ...more] = await this.agentPods()
      const isNew = pod?.metadata?.uid !== before?.metadata?.uid && more.length === 0
      return isNew && isReady(pod) ? pod : undefined
    }
    return await vi.waitUntil(ready, { ...patience, timeout: 240_000 })
  }

  async deletePod(pod: V1Pod): Promise<void> {
    const name = pod.metadata?.name ?? ''
    await this.#core.deleteNamespacedPod({ namespace: NAMESPACE, name })
  }

  /** Keys of the node's taints. */
  async taints(): Promise<string[]> {
    const { items } = await this.#core.listNode()
    return items.flatMap(({ spec }) => spec?.taints ?? []).map(({ key }) => key)
  }

  /** Gives the node the taint of one whose agent is not ready. */
  async taint(): Promise<void> {
    const [node] = (await this.#core.listNode()).items
    const { key, effect } = NOT_READY_TAINT
    await this.kube('taint', 'node', node?.metadata?.name ?? '', `${key}=:${effect}`)
  }

  /** Makes a secret beside the agent, of `name=path` for each file. */
  async makeSecret(name: string, files: readonly string[]): Promise<void> {
    const from = files.map((file) => `--from-file=${file}`)
    await this.kube('-n', NAMESPACE, 'create', 'secret', 'generic', name, ...from)
  }

  /** What a container of the agent's pod has written, in all its lives in this pod. */
  logOf(pod: V1Pod, container = 'agent'): string {
    const folder = `${NAMESPACE}_${pod.metadata?.name}_${pod.metadata?.uid}/${container}`
    const files = globSync(join(this.kubelet.podLogsDir, folder, '*.log'))
    return files.map((path) => readFileSync(path, 'utf8')).join('')
  }

  /** Kills the agent's container, and waits until the kubelet has started it anew. */
  async killAgent(pod: V1Pod): Promise<void> {
    const restarts = async (): Promise<number | undefined> =>
      agentContainerOf((await this.agentPods())[0])?.restartCount
    const before = (await restarts()) ?? 0
    process.kill(await this.#firstProcessOf(pod), 'SIGKILL')
    await vi.waitUntil(async () => (await restarts()) === before + 1, patience)
  }

  /** Bytes of blocks that the agent which runs now has fetched; 0 while none answers. */
  async fetchedBytes(): Promise<number> {
    return await this.metric('ipdr_fetched_bytes_total')
  }

  /** A number of the agent that runs now, all labels together; 0 while none answers. */
  async metric(name: string): Promise<number> {
    try {
      const text = await (await fetch('http://127.0.0.1:5081/metrics')).text()
      const values = [...text.matchAll(new RegExp(`^${name}(?:{\\S*)? (\\S+)$`, 'gm'))]
      return values.reduce((sum, [, value]) => sum + Number(value), 0)
    } catch {
      return 0
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened.disposeAsync()
  }

  /** Of the agent's container. By containerd, since /proc may wait for one that waits for us. */
  async #firstProcessOf(pod: V1Pod): Promise<number> {
    const id = agentContainerOf(pod)?.containerID?.replace('containerd://', '') ?? ''
    const tasks = await this.containerd.ctr(['-n', 'k8s.io', 'tasks', 'ls'])
    const [, pid] = new RegExp(`^${id}\\s+(\\d+)`, 'm').exec(tasks) ?? []
    if (pid === undefined) throw new Error(`containerd knows no task ${id}:\n${tasks}`)
    return Number(pid)
  }
}

/** Gives the image to containerd as node-image/kubernetes/README.md says, without a registry. */
async function importAgent(
  image: string,
  { containerd, cri }: { readonly containerd: Containerd; readonly cri: Cri },
): Promise<void> {
  const archive = `${image}.tar`
  await runCommand('tar', ['-C', image, '-cf', archive, '.'])
  const words = ['images', 'import', '--base-name', 'ipdr.dev/agent', '--snapshotter', 'overlayfs']
  await containerd.ctr(['-n', 'k8s.io', ...words, archive])
  // CRI hears of it by an event.
  while ((await cri.imageStatus(IMAGE)) === undefined) await setTimeout(10)
}

/** What a user writes over an overlay of ours. */
type Overlay = {
  /** Of ours. */
  readonly name: string
  readonly dir: string
  readonly config: object
}
type OverlayAdditions = { readonly config?: object; readonly components?: readonly string[] }

/** The configuration is the one thing that everybody changes. */
function writeOverlay(
  { name, dir, config }: Overlay,
  { config: more = {}, components = [] }: OverlayAdditions,
): void {
  mkdirSync(dir, { recursive: true })
  writeFileSync(join(dir, 'config.json'), JSON.stringify({ ...config, ...more }))
  const shipped = (kind: string, what: string): string =>
    relative(dir, join(KUBERNETES, kind, what))
  const kustomization = {
    apiVersion: 'kustomize.config.k8s.io/v1beta1',
    kind: 'Kustomization',
    namespace: NAMESPACE,
    resources: [shipped('overlays', name)],
    components: components.map((component) => shipped('components', component)),
    configMapGenerator: [
      { name: 'ipdr-agent-config', behavior: 'replace', files: ['config.json'] },
    ],
  }
  // YAML is a superset of JSON.
  writeFileSync(join(dir, 'kustomization.yaml'), JSON.stringify(kustomization))
}

function isReady(pod: V1Pod | undefined): boolean {
  return pod?.status?.conditions?.find(({ type }) => type === 'Ready')?.status === 'True'
}

function agentContainerOf(
  pod: V1Pod | undefined,
): { containerID?: string; restartCount: number } | undefined {
  return pod?.status?.containerStatuses?.find(({ name }) => name === 'agent')
}
