import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { connect, type ServiceClient } from '../../proto/client.ts'
import { criImageContract, criRuntimeContract } from '../../proto/load.ts'
import type { AuthConfig } from '../../proto/types/runtime/v1/AuthConfig.ts'
import type { ContainerConfig } from '../../proto/types/runtime/v1/ContainerConfig.ts'
import type { ContainerStatus__Output } from '../../proto/types/runtime/v1/ContainerStatus.ts'
import type { FilesystemUsage__Output } from '../../proto/types/runtime/v1/FilesystemUsage.ts'
import type { Image__Output } from '../../proto/types/runtime/v1/Image.ts'
import type {
  ImageServiceDefinition,
  ImageServiceHandlers,
} from '../../proto/types/runtime/v1/ImageService.ts'
import type { PodSandboxConfig } from '../../proto/types/runtime/v1/PodSandboxConfig.ts'
import type {
  RuntimeServiceDefinition,
  RuntimeServiceHandlers,
} from '../../proto/types/runtime/v1/RuntimeService.ts'
import { type Containerd, PAUSE_IMAGE } from './containerd.ts'
import { buildPauseArchive } from './images/pause-image.ts'

/** A pod on the host's network. */
export type Pod = { readonly id: string; readonly config: PodSandboxConfig }

export type ExecResult = {
  readonly stdout: string
  readonly stderr: string
  readonly exitCode: number
}

/** The longest that a call may take, in ms: ten minutes for a pull of a large image on a busy machine. */
const CALL_MS = 600_000

/** What a kubelet does with containerd, by CRI. Every call rejects with grpc-js's ServiceError. */
export class Cri implements Disposable {
  readonly #containerd: Containerd
  readonly #runtime: ServiceClient<RuntimeServiceDefinition, RuntimeServiceHandlers>
  readonly #images: ServiceClient<ImageServiceDefinition, ImageServiceHandlers>
  readonly #logDir: string
  #names = 0

  private constructor(containerd: Containerd, imageServiceSocket: string) {
    this.#containerd = containerd
    this.#runtime = connect(criRuntimeContract(), containerd.socketPath)
    this.#images = connect(criImageContract(), imageServiceSocket)
    this.#logDir = join(containerd.root, '../pods')
    mkdirSync(this.#logDir, { recursive: true })
  }

  /**
   * Connects to a running containerd and gives it the pause image. Calls about images go to another socket, if one is given: the
   * kubelet's `--image-service-endpoint`.
   */
  static async connect(
    containerd: Containerd,
    imageServiceSocket: string = containerd.socketPath,
  ): Promise<Cri> {
    const cri = new Cri(containerd, imageServiceSocket)
    const [repository = '', tag] = PAUSE_IMAGE.split(':')
    const archive = await buildPauseArchive()
    await containerd.ctr(['-n', 'k8s.io', 'images', 'import', '--base-name', repository, archive])
    // CRI hears of it by an event.
    while ((await cri.imageStatus(`${repository}:${tag}`)) === undefined) await setTimeout(10)
    return cri
  }

  /** Pulls an image, and gives back the reference by which containers name it. */
  async pullImage(image: string, signal: AbortSignal = deadline()): Promise<string> {
    const { imageRef } = await this.#images.calls.PullImage({ image: { image } }, { signal })
    return imageRef
  }

  /** Pulls an image for a pod of a namespace, with what its pull secrets say. */
  async pullImageFor(namespace: string, image: string, auth?: AuthConfig): Promise<void> {
    await this.#images.calls.PullImage(
      {
        image: { image },
        auth: auth ?? null,
        sandboxConfig: { metadata: { name: 'pod', uid: 'uid', namespace, attempt: 0 } },
      },
      { signal: deadline() },
    )
  }

  /** Pulls an image as the kubelet does for a pod of a runtime class that has the annotation for it. */
  async pullImageForHandler(handler: string, image: string): Promise<void> {
    const metadata = { name: 'pod', uid: 'uid', namespace: 'default', attempt: 0 }
    const sandboxConfig = { metadata, annotations: annotationsOf(handler) }
    await this.#images.calls.PullImage(
      { image: { image, annotations: annotationsOf(handler) }, sandboxConfig },
      { signal: deadline() },
    )
  }

  /** What containerd knows of an image; undefined if it does not have it. */
  async imageStatus(image: string): Promise<Image__Output | undefined> {
    const call = { signal: deadline() }
    return (await this.#images.calls.ImageStatus({ image: { image } }, call)).image ?? undefined
  }

  /** Removes an image, if it is there. Its snapshots go when containerd next collects garbage. */
  async removeImage(image: string): Promise<void> {
    await this.#images.calls.RemoveImage({ image: { image } }, { signal: deadline() })
  }

  /** How full the disks are on which images lie. */
  async imageFsInfo(): Promise<FilesystemUsage__Output[]> {
    return (await this.#images.calls.ImageFsInfo({}, { signal: deadline() })).imageFilesystems
  }

  /** Starts a pod of a Kubernetes namespace on the host's network; by the runtime of `handler`, if one is given. */
  async runPodSandbox(namespace = 'default', handler?: string): Promise<Pod> {
    const name = `pod-${this.#names++}`
    return await this.runPod(
      {
        metadata: { name, uid: `${name}-uid`, namespace, attempt: 0 },
        ...(handler === undefined ? {} : { annotations: annotationsOf(handler) }),
        linux: {
          securityContext: { namespaceOptions: { network: 'NODE', pid: 'CONTAINER', ipc: 'POD' } },
        },
      },
      handler,
    )
  }

  /** Starts a pod as it is given, but for its log and its control group, which are below those of this containerd. */
  async runPod(given: PodSandboxConfig, handler?: string): Promise<Pod> {
    const logDirectory = join(this.#logDir, given.metadata?.uid ?? '')
    const linux = { ...given.linux, cgroupParent: this.#containerd.cgroup }
    const config = { ...given, logDirectory, linux }
    mkdirSync(logDirectory)
    const { podSandboxId } = await this.#runtime.calls.RunPodSandbox(
      { config, runtimeHandler: handler ?? '' },
      { signal: deadline() },
    )
    return { id: podSandboxId, config }
  }

  /** Makes a container of an image that is here; without a command it runs the image's own. */
  async createContainer(pod: Pod, image: string, command: readonly string[] = []): Promise<string> {
    const name = `container-${this.#names++}`
    return await this.createContainerOf(pod, {
      metadata: { name, attempt: 0 },
      image: { image },
      command: [...command],
      linux: { securityContext: { namespaceOptions: { network: 'NODE', pid: 'CONTAINER' } } },
    })
  }

  /** Makes a container as it is given, in a pod that runs. */
  async createContainerOf(pod: Pod, config: ContainerConfig): Promise<string> {
    const { containerId } = await this.#runtime.calls.CreateContainer(
      {
        podSandboxId: pod.id,
        sandboxConfig: pod.config,
        config: { ...config, logPath: `${config.metadata?.name}.log` },
      },
      { signal: deadline() },
    )
    return containerId
  }

  async startContainer(containerId: string): Promise<void> {
    await this.#runtime.calls.StartContainer({ containerId }, { signal: deadline() })
  }

  /** Runs a command in a running container and waits for its end. */
  async execSync(containerId: string, cmd: readonly string[]): Promise<ExecResult> {
    const request = { containerId, cmd: [...cmd] }
    const result = await this.#runtime.calls.ExecSync(request, { signal: deadline() })
    const { stdout, stderr, exitCode } = result
    return { stdout: stdout.toString(), stderr: stderr.toString(), exitCode }
  }

  async containerStatus(containerId: string): Promise<ContainerStatus__Output> {
    const call = { signal: deadline() }
    const { status } = await this.#runtime.calls.ContainerStatus({ containerId }, call)
    if (status === null) throw new Error(`container ${containerId} has no status`)
    return status
  }

  /** Waits until the container's process has ended, and gives back its last status. */
  async whenExited(containerId: string, signal: AbortSignal): Promise<ContainerStatus__Output> {
    for (;;) {
      const status = await this.containerStatus(containerId)
      if (status.state === 'CONTAINER_EXITED') return status
      await setTimeout(10, undefined, { signal })
    }
  }

  /** What the container has written so far, of both streams. */
  async logOf(containerId: string): Promise<string> {
    const { logPath } = await this.containerStatus(containerId)
    // Each line begins with its time, its stream, and whether it is a full one.
    return readFileSync(logPath, 'utf8').replace(/^\S+ std(?:out|err) [FP] /gm, '')
  }

  /** Removes a container; kills it, if it still runs. */
  async removeContainer(containerId: string): Promise<void> {
    await this.#runtime.calls.RemoveContainer({ containerId }, { signal: deadline() })
  }

  /** Stops a pod and removes it, with its containers. */
  async removePodSandbox({ id: podSandboxId }: Pick<Pod, 'id'>): Promise<void> {
    await this.#runtime.calls.StopPodSandbox({ podSandboxId }, { signal: deadline() })
    await this.#runtime.calls.RemovePodSandbox({ podSandboxId }, { signal: deadline() })
  }

  /** IDs of all pods. */
  async listPodSandboxes(): Promise<string[]> {
    const { items } = await this.#runtime.calls.ListPodSandbox({}, { signal: deadline() })
    return items.map(({ id }) => id)
  }

  [Symbol.dispose](): void {
    this.#runtime[Symbol.dispose]()
    this.#images[Symbol.dispose]()
  }
}

function deadline(): AbortSignal {
  return AbortSignal.timeout(CALL_MS)
}

/** By which containerd pulls for another runtime than the default one: it does not look at the runtime class for that. */
function annotationsOf(handler: string): Record<string, string> {
  return { 'io.containerd.cri.runtime-handler': handler }
}
