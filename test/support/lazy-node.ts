import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout } from 'node:timers/promises'
import { CID } from 'multiformats/cid'
import { repositoryBlocks } from '../../agent/cli/repository-blocks.ts'
import { BlockRepository } from '../../agent/ipfs/repository.ts'
import { listMounts, type MountEntry } from '../../snapshotter/kernel/mountinfo.ts'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import { parseImageConfig } from '../../snapshotter/oci/image-config.ts'
import { layerChainIds } from '../../snapshotter/oci/layer-chain-id.ts'
import { IMAGE_HOST } from '../../snapshotter/oci/reference.ts'
import { addFilesBeside } from '../../snapshotter/publish/add-files-beside.ts'
import { AgentProcess } from './agent.ts'
import { Containerd, writeHostsFile } from './containerd.ts'
import type { ContainerdVersion } from './containerd-programs.ts'
import { Cri } from './cri.ts'
import { debianPath } from './debian-programs.ts'
import type { OciLayout } from './images/oci-layout.ts'
import { importAsIs } from './import-as-is.ts'
import type { MemoryBlocks } from './memory-blocks.ts'
import { type MountToMake, mountAll } from './mount-all.ts'
import { runCommand } from './run-command.ts'
import { Scratch } from './scratch.ts'

const IPDR = join(import.meta.dirname, '../../agent/cli/bin/ipdr')

/** How long a node may refuse calls after its agent was started again, in ms. containerd's client waits up to 3 s itself. */
const RETRY_DEADLINE_MS = 30_000

/** Another machine, as far as the agent can tell: a repository that `ipdr serve` offers from a process of its own. */
export class Publisher implements AsyncDisposable {
  /** What agents put in `ipfs.gateways`. */
  readonly gatewayUrl: string
  /** Its folder. */
  readonly repository: string
  readonly #stop: () => Promise<void>

  private constructor(gatewayUrl: string, repository: string, stop: () => Promise<void>) {
    this.gatewayUrl = gatewayUrl
    this.repository = repository
    this.#stop = stop
  }

  /** Starts to serve an empty repository in the scratch. */
  static async start(scratch: Scratch): Promise<Publisher> {
    const repository = join(scratch.dir, 'repository')
    const places = ['--repository', repository, '--gateway', '127.0.0.1:0']
    const listen = ['--listen', '/ip4/127.0.0.1/tcp/0']
    const server = spawn(IPDR, ['serve', ...places, ...listen, '--output', 'json'], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    if (server.pid !== undefined) scratch.own(server.pid)
    const exited = once(server, 'exit')
    const ended = exited.then(([code]) => {
      throw new Error(`ipdr serve ended with exit code ${code} before it served`)
    })
    ended.catch(() => undefined)
    const [line] = (await Promise.race([once(createInterface(server.stdout), 'line'), ended])) as [
      string,
    ]
    const { gateway } = JSON.parse(line) as { gateway: string }
    return new Publisher(gateway, repository, async () => {
      server.kill()
      await exited
    })
  }

  /** Runs `ipdr push` on the layout, with `more` words, and gives back the root CID. */
  async push(
    { dir, tag: name }: Pick<OciLayout, 'dir' | 'tag'>,
    tag?: string,
    more: readonly string[] = [],
  ): Promise<string> {
    const places = ['--repository', this.repository, ...more]
    const named = tag === undefined ? [] : ['--tag', tag]
    const words = ['push', `oci:${dir}:${name}`, ...places, ...named, '--output', 'json']
    return (JSON.parse(await runCommand(IPDR, words)) as { root: string }).root
  }

  /** Publishes the layout as publishers before ours do, see `importAsIs`. Gives back the root CID. */
  importAsIs(layout: OciLayout): Promise<string> {
    return importAsIs(layout, this.repository)
  }

  /** Runs `ipdr index` on an image in the repository and gives back its new root CID. */
  async index(root: string): Promise<string> {
    const words = ['index', root, '--repository', this.repository, '--output', 'json']
    return (JSON.parse(await runCommand(IPDR, words)) as { root: string }).root
  }

  /** Puts manifests, by their tags, and blobs beside an image as they are, and gives back its new root CID. */
  async addBeside(
    root: string,
    {
      manifests,
      blobs,
    }: { manifests: ReadonlyMap<string, Uint8Array>; blobs: readonly Uint8Array[] },
  ): Promise<string> {
    await using repository = await BlockRepository.open(this.repository)
    const parts = { blocks: repositoryBlocks(repository), sink: repository }
    const beside = [
      { directory: 'manifests', files: manifests },
      { directory: 'blobs', files: new Map(blobs.map((blob) => [digestOf(blob), blob])) },
    ]
    const request = { priority: 'foreground', signal: AbortSignal.timeout(60_000) } as const
    const cid = await addFilesBeside(CID.parse(root), beside, parts, request)
    await repository.addRoot(cid, 'test')
    return cid.toString()
  }

  /** Offers blocks that were made elsewhere. */
  async offer({ blocks }: MemoryBlocks): Promise<void> {
    await using repository = await BlockRepository.open(this.repository)
    for (const [cid, block] of blocks) await repository.put(CID.parse(cid), block)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stop()
  }
}

export type LazyNodeOptions = Parameters<typeof AgentProcess.start>[1] & {
  /** One that serves other nodes too; by default a new one. */
  readonly publisher?: Publisher
  /** More hosts, by name, and where their images come from. */
  readonly hosts?: Readonly<Record<string, string>>
  /** The agent stands between the kubelet and containerd where images are pulled. */
  readonly imageService?: boolean
  /** Credentials for registries beside what the image service learns, as in the configuration. */
  readonly credentials?: object
  /** Of containerd; '1.6' unless given. */
  readonly version?: ContainerdVersion
  /** The agent is containerd's content store, in the folder of containerd's own. */
  readonly contentProxy?: boolean
  /** Changes the configuration of containerd that we ship. */
  readonly editConfig?: (toml: string) => string
  /** Only pods of RUNTIME_CLASS are ours. */
  readonly isPerRuntime?: boolean
  /** Pods need not be on the host's network. */
  readonly hasPodNetwork?: boolean
  /** Whether the runtime asks the agent before it starts a container. */
  readonly authorizes?: boolean
}

/** A node as we ship it: agent and containerd, a kubelet's view of them, and a publisher on the same loopback. */
export class LazyNode implements AsyncDisposable {
  readonly scratch: Scratch
  readonly publisher: Publisher
  readonly agent: AgentProcess
  readonly containerd: Containerd
  readonly cri: Cri
  /** containerd's folder of hosts.toml files. */
  readonly certsDir: string
  readonly #opened: AsyncDisposableStack
  #imageMounts = 0

  private constructor(parts: LazyNodeParts, opened: AsyncDisposableStack) {
    this.scratch = parts.scratch
    this.publisher = parts.publisher
    this.agent = parts.agent
    this.containerd = parts.containerd
    this.cri = parts.cri
    this.certsDir = parts.certsDir
    this.#opened = opened
  }

  /** Starts all of it. `name` shows up in its paths. */
  static async start(name: string, options: LazyNodeOptions = {}): Promise<LazyNode> {
    const {
      publisher: shared,
      hosts = {},
      authorizes = false,
      version = '1.6',
      isPerRuntime = false,
      hasPodNetwork = false,
      imageService = false,
      contentProxy = false,
      credentials,
      editConfig,
      ...config
    } = options
    await using opened = new AsyncDisposableStack()
    const scratch = opened.use(Scratch.open(name))
    const publisher = shared ?? opened.use(await Publisher.start(scratch))
    const gateways = [publisher.gatewayUrl]
    const containerdSocket = Containerd.socketPathOf(scratch)
    const registries = imageService && {
      registries: {
        credentials: { imageService: {}, ...credentials },
      },
    }
    const agent = opened.use(
      await AgentProcess.start(scratch, {
        gateways,
        containerdSocket,
        ...config,
        ...registries,
        ...(contentProxy && { contentRoot: Containerd.contentRootOf(scratch) }),
      }),
    )
    const certsDir = join(scratch.dir, 'certs.d')
    for (const [host, url] of Object.entries({ [IMAGE_HOST]: agent.registryUrl, ...hosts })) {
      writeHostsFile(certsDir, host, url)
    }
    const snapshotter = { name: 'ipdr', socketPath: agent.snapshotterSocket, root: agent.root }
    const baseSpecPath = authorizes ? await writeBaseSpec(scratch, agent.runDir) : undefined
    const containerd = opened.use(
      await Containerd.start({
        scratch,
        snapshotter,
        version,
        isPerRuntime,
        hasPodNetwork,
        certsDir,
        ...(editConfig !== undefined && { editConfig }),
        ...(baseSpecPath !== undefined && { baseSpecPath }),
        ...(contentProxy && { contentSocket: agent.contentSocket }),
      }),
    )
    const cri = opened.use(
      await (imageService
        ? Cri.connect(containerd, agent.imageServiceSocket)
        : Cri.connect(containerd)),
    )
    return new LazyNode({ scratch, publisher, agent, containerd, cri, certsDir }, opened.move())
  }

  /** The EROFS mounts of lazy layers. */
  get layerMounts(): MountEntry[] {
    return listMounts(join(this.agent.root, 'm')).filter(({ type }) => type === 'erofs')
  }

  /** The sum of all samples of a metric, whatever their labels; 0 if there is none yet. */
  async metric(name: string): Promise<number> {
    const samples = [...(await this.agent.metrics())]
    return samples
      .filter(([sample]) => sample === name || sample.startsWith(`${name}{`))
      .reduce((sum, [, value]) => sum + value, 0)
  }

  /** Bytes of blocks that this worker of the agent has fetched. */
  fetchedBytes(): Promise<number> {
    return this.metric('ipdr_fetched_bytes_total')
  }

  /** Digests of all blobs that containerd has downloaded for CRI. */
  async downloadedBlobs(): Promise<string[]> {
    const listed = await this.containerd.ctr(['-n', 'k8s.io', 'content', 'ls', '-q'])
    return listed.trim().split('\n')
  }

  /** Mounts the file system of an image that CRI has pulled, for reading. */
  async mountImage(image: string): Promise<AsyncDisposable & { readonly path: string }> {
    const { containerd, cri } = this
    const name = `image-${this.#imageMounts++}`
    const path = join(this.scratch.dir, name)
    mkdirSync(path)
    const id = (await cri.imageStatus(image))?.id ?? ''
    const config = await containerd.ctr(['-n', 'k8s.io', 'content', 'get', id])
    const top = layerChainIds(parseImageConfig(Buffer.from(config), image).diffIds).at(-1) ?? ''
    // Not `ctr images mount`, which in 1.6 knows no snapshotter but overlayfs.
    const snapshots = ['-n', 'k8s.io', 'snapshots', '--snapshotter', containerd.snapshotter]
    const mounts = await containerd.ctr([...snapshots, 'view', '--mounts', name, top])
    const mounted = await mountAll((JSON.parse(mounts) as GoMount[]).map(fromGo), path)
    // Nothing refers to a view: containerd may collect it as garbage at any moment, and has at times before we get here.
    // The mount must not need it, so that it is always gone.
    await containerd.ctr([...snapshots, 'rm', name]).catch(() => undefined)
    return { path, [Symbol.asyncDispose]: () => mounted[Symbol.asyncDispose]() }
  }

  /** Starts a pod with one container of an image that is here. */
  async startContainer(
    image: string,
    command?: readonly string[],
    namespace?: string,
  ): Promise<RunningContainer & AsyncDisposable> {
    const { cri } = this
    const pod = await cri.runPodSandbox(namespace)
    const id = await cri.createContainer(pod, image, command)
    await cri.startContainer(id)
    return { id, [Symbol.asyncDispose]: () => cri.removePodSandbox(pod) }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened.disposeAsync()
  }
}

/** Adds the hook to containerd's specification as our manual says. */
async function writeBaseSpec(scratch: Scratch, runDir: string): Promise<string> {
  const path = join(scratch.dir, 'base-spec.json')
  const env = { PATH: debianPath }
  const spec = await runCommand('ctr', ['oci', 'spec'], { env })
  const words = ['runtime-spec', '--run-dir', runDir]
  writeFileSync(path, await runCommand(IPDR, words, { input: spec }))
  return path
}

/** A mount as ctr prints it: Go's names. */
type GoMount = { readonly Type: string; readonly Source: string; readonly Options: string[] }

function fromGo({ Type: type, Source: source, Options: options }: GoMount): MountToMake {
  return { type, source, options }
}

type LazyNodeParts = Pick<
  LazyNode,
  'scratch' | 'publisher' | 'agent' | 'containerd' | 'cri' | 'certsDir'
>

export type RunningContainer = { readonly id: string }

/** Makes a call again until it is answered: containerd refuses some for a moment after the agent was started again. */
export async function onceServed<T>(call: () => Promise<T>): Promise<T> {
  const deadline = Date.now() + RETRY_DEADLINE_MS
  for (;;) {
    try {
      return await call()
    } catch (error) {
      if (Date.now() > deadline || !isRefusal(error)) throw error
      await setTimeout(50)
    }
  }
}

function isRefusal(error: unknown): boolean {
  return error instanceof Error && /connection (?:error|refused)|unavailable/i.test(error.message)
}
