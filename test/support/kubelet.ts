import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { CoreV1Api, type V1Taint } from '@kubernetes/client-node'
import { freePort } from './agent.ts'
import type { Containerd } from './containerd.ts'
import { ControlGroup } from './control-group.ts'
import { Daemon } from './daemon.ts'
import { debianPath } from './debian-programs.ts'
import { goProgram } from './go-programs.ts'
import type { KubeApiServer } from './kube-apiserver.ts'
import type { OwnNode } from './own-node.ts'
import type { Scratch } from './scratch.ts'

/** How long a node may take to be ready once its kubelet is, in ms. 60 s: a few seconds when quiet. */
const NODE_DEADLINE_MS = 60_000

type KubeletOptions = {
  readonly scratch: Scratch
  readonly api: KubeApiServer
  /** One that has a network for pods. */
  readonly containerd: Containerd
  /** Where it runs, with the containerd; by default it has a /var of its own on this machine. */
  readonly node?: OwnNode
  /** Whether the API server reaches it, at NODE_NAME: in a network of our own, which has the address. */
  readonly isReached?: boolean
  /** Taints that its node has from the start. */
  readonly taints?: readonly V1Taint[]
}

/** The node's name. An address, by which the kubelet asks no resolver for one; nobody is there (RFC 5737). */
export const NODE_NAME = '192.0.2.1'

/** A real kubelet, which runs pods by a containerd of a test. */
export class Kubelet implements AsyncDisposable {
  /** What it keeps of pods, and where it mounts their volumes. */
  readonly root: string
  /** Where the logs of pods are. */
  readonly podLogsDir: string
  readonly #scratch: Scratch
  readonly #daemon: Daemon

  private constructor(root: string, scratch: Scratch, daemon: Daemon) {
    this.root = root
    this.podLogsDir = join(scratch.dir, 'pod-logs')
    this.#scratch = scratch
    this.#daemon = daemon
  }

  /** Starts it, and waits until its node takes pods. Builds it if need be. */
  static async start(options: KubeletOptions): Promise<Kubelet> {
    const { scratch: parent, api, containerd, node, taints = [], isReached = false } = options
    const scratch = parent.inner('kubelet')
    const root = join(scratch.dir, 'root')
    const health = await freePort()
    const configPath = join(scratch.dir, 'config.json')
    const resolvConf = join(scratch.dir, 'resolv.conf')
    writeFileSync(resolvConf, '')
    const podsGroup = new ControlGroup(containerd.cgroup)
    podsGroup.make()
    const { certFile, keyFile, caFile } = api.serverCertificate
    const config = {
      apiVersion: 'kubelet.config.k8s.io/v1beta1',
      kind: 'KubeletConfiguration',
      address: isReached ? NODE_NAME : '127.0.0.1',
      port: await freePort(),
      healthzBindAddress: '127.0.0.1',
      healthzPort: health,
      tlsCertFile: certFile,
      tlsPrivateKeyFile: keyFile,
      authentication: { x509: { clientCAFile: caFile }, webhook: { enabled: false } },
      authorization: { mode: 'AlwaysAllow' },
      containerRuntimeEndpoint: `unix://${containerd.socketPath}`,
      cgroupDriver: 'cgroupfs',
      cgroupRoot: podsGroup.path,
      // What the machine that runs the tests is like, and how full, is its own affair.
      failCgroupV1: false,
      failSwapOn: false,
      makeIPTablesUtilChains: false,
      evictionHard: { 'memory.available': '1Mi', 'nodefs.available': '1Mi' },
      imageGCHighThresholdPercent: 100,
      resolvConf,
      oomScoreAdj: 0,
      podLogsDir: join(scratch.dir, 'pod-logs'),
      volumePluginDir: join(scratch.dir, 'volume-plugins'),
      registerWithTaints: taints,
      // A test waits for what it tells.
      syncFrequency: '5s',
    }
    writeFileSync(configPath, JSON.stringify(config))
    mkdirSync(root)
    const daemon = await Daemon.start(
      scratch,
      'kubelet',
      [
        ...(node?.within ?? [join(import.meta.dirname, 'own-var.sh'), root]),
        await goProgram('kubelet'),
        `--config=${configPath}`,
        `--kubeconfig=${api.adminKubeconfig}`,
        `--root-dir=${root}`,
        `--cert-dir=${join(scratch.dir, 'certs')}`,
        `--hostname-override=${NODE_NAME}`,
      ],
      { PATH: debianPath },
    )
    await daemon.whenReady(() => api.answers(`http://127.0.0.1:${health}/healthz`))
    await whenNodeReady(api)
    return new Kubelet(root, scratch, daemon)
  }

  get logPath(): string {
    return this.#daemon.logPath
  }

  /** Kills it, and removes its mounts and folders; what runs in pods is ended with the containerd. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#daemon.kill()
    await this.#scratch[Symbol.asyncDispose]()
  }
}

async function whenNodeReady(api: KubeApiServer): Promise<void> {
  const core = api.admin.makeApiClient(CoreV1Api)
  const deadline = Date.now() + NODE_DEADLINE_MS
  for (;;) {
    const { items } = await core.listNode({ fieldSelector: `metadata.name=${NODE_NAME}` })
    const ready = items[0]?.status?.conditions?.find(({ type }) => type === 'Ready')
    if (ready?.status === 'True') return
    if (Date.now() > deadline) {
      throw new Error(`the node is not ready: ${ready?.message ?? 'it is not there'}`)
    }
    await setTimeout(50)
  }
}
