import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdirSync, openSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { connect } from '../../proto/client.ts'
import { criRuntimeContract } from '../../proto/load.ts'
import { type ContainerdVersion, configVersion, containerdPath } from './containerd-programs.ts'
import { type CommandOptions, runCommand } from './run-command.ts'
import type { Scratch } from './scratch.ts'

/** The pause image that CRI starts in every pod; see images/pause-image.ts. */
export const PAUSE_IMAGE = 'pause.local/pause:1'

export type ContainerdOptions = {
  readonly scratch: Scratch
  /** containerd's own overlayfs, or a snapshotter that is served on a socket. */
  readonly snapshotter:
    | 'overlayfs'
    | { readonly name: string; readonly socketPath: string; readonly root?: string }
  /** '1.6' unless given. */
  readonly version?: ContainerdVersion
  /** The snapshotter serves pods of RUNTIME_CLASS alone, the others are on overlayfs; not before 1.7. */
  readonly isPerRuntime?: boolean
  /** There is a runtime whose pods are on overlayfs while the others are not, for the agent as a pod; not before 1.7. */
  readonly hasBootstrap?: boolean
  /** Nothing of ours is in its configuration; what it reads beside that is in this folder, of version 2 or later. */
  readonly dropInDir?: string
  /** Folder of hosts.toml files; see writeHostsFile. By default an empty one. */
  readonly certsDir?: string
  /** The specification that all pods start from; by default containerd's own. */
  readonly baseSpecPath?: string
  /** Where its content store is served; by default it has its own. */
  readonly contentSocket?: string
  /** Gives every pod a network of its own, in which it is alone. Without it there are only pods on the host's network. */
  readonly hasPodNetwork?: boolean
  /** Changes the configuration that we ship, as somebody may who installs it. */
  readonly editConfig?: (toml: string) => string
  /** Sets it apart from other containerds in the same scratch. */
  readonly name?: string
  /** What stands before the words of its command line, such as `nsenter` and what that is told. */
  readonly within?: readonly string[]
}

export type RunOptions = CommandOptions & {
  /** A network namespace of its own, with nothing in it; by default the machine's network. */
  readonly isolated?: boolean
  /** More flags of `ctr run`. */
  readonly flags?: readonly string[]
}

/** The runtime handler of pods that get our snapshotter where the node's other pods do not. */
export const RUNTIME_CLASS = 'ipdr'

/** The runtime handler of the agent's own pod where all others get our snapshotter. */
export const BOOTSTRAP_CLASS = 'ipdr-bootstrap'

/** How long containerd may take to answer after its start, in ms. 30 s: 0.2 s when quiet, 3 s at a load of 100. */
const START_DEADLINE_MS = 30_000

/** Debian's containerd with folders, sockets and control groups of its own: the machine's is never touched. */
export class Containerd implements AsyncDisposable {
  readonly socketPath: string
  /** `overlayfs`, or the name of the served snapshotter if there is no choice; `ctr` uses it unless told otherwise. */
  readonly snapshotter: string
  readonly logPath: string
  /** Parent of its containers' control groups. */
  readonly cgroup: string
  /** Its persistent folder: content store and metadata. */
  readonly root: string
  readonly #certsDir: string
  /** Where its programs are. */
  readonly #path: string
  readonly #scratch: Scratch
  #options: ContainerdOptions
  #daemon: ChildProcess | undefined
  #containers = 0

  private constructor(
    options: ContainerdOptions,
    { scratch, path }: { readonly scratch: Scratch; readonly path: string },
  ) {
    const { snapshotter, version = '1.6' } = options
    this.#scratch = scratch
    this.#path = path
    this.root = join(this.#scratch.dir, 'root')
    this.logPath = join(this.#scratch.dir, 'log')
    this.socketPath = join(this.#scratch.run, 'containerd.sock')
    const isByChoice = options.isPerRuntime === true || options.hasBootstrap === true
    const isOverlay = snapshotter === 'overlayfs' || isByChoice
    this.snapshotter = isOverlay ? 'overlayfs' : snapshotter.name
    this.cgroup = this.#scratch.containersGroup
    this.#certsDir = options.certsDir ?? join(this.#scratch.dir, 'certs.d')
    for (const path of [this.root, this.#certsDir]) mkdirSync(path, { recursive: true })
    this.#options = options
    this.#writeConfig()
    if (options.hasPodNetwork === true) this.#writePodNetwork()
    if (snapshotter !== 'overlayfs' && version === '1.6') {
      // 1.6 reports this folder's disk as the images' one; a proxy plugin has no such folder of itself.
      mkdirSync(join(this.root, `io.containerd.snapshotter.v1.${snapshotter.name}`))
    }
  }

  /** Where the containerd of this name will listen. */
  static socketPathOf(scratch: Scratch, name = 'containerd'): string {
    return join(scratch.run, name, 'containerd.sock')
  }

  /** The folder of the content store of the containerd of this name. */
  static contentRootOf(scratch: Scratch, name = 'containerd'): string {
    return join(scratch.dir, name, 'root', 'io.containerd.content.v1.content')
  }

  /** Starts a containerd, and waits until it answers. Rejects with the end of its log if it does not. */
  static async start(options: ContainerdOptions): Promise<Containerd> {
    const scratch = options.scratch.inner(options.name ?? 'containerd')
    const path = await containerdPath(options.version ?? '1.6', scratch)
    const containerd = new Containerd(options, { scratch, path })
    await containerd.#start()
    return containerd
  }

  /** The file that it is configured by. */
  get configPath(): string {
    return join(this.#scratch.dir, 'config.toml')
  }

  /** Process number of the daemon; undefined between stop and start. */
  get pid(): number | undefined {
    return this.#daemon?.pid
  }

  /**
   * Runs `ctr` with these arguments and gives back what it prints. Rejects with CommandError. Containers are started by
   * `run` instead, which puts them where they are found again.
   */
  async ctr(args: readonly string[], options: CommandOptions = {}): Promise<string> {
    return await runCommand('ctr', ['--address', this.socketPath, ...args], {
      ...options,
      env: { PATH: this.#path, CONTAINERD_SNAPSHOTTER: this.snapshotter, ...options.env },
    })
  }

  /** Pulls an image as `ctr` does, from where the hosts.toml files point to. */
  async pull(reference: string): Promise<void> {
    await this.ctr(['images', 'pull', '--hosts-dir', this.#certsDir, reference])
  }

  /** Mounts the file system of an image that is here, for reading. Dispose of it before the containerd. */
  async mountImage(reference: string): Promise<AsyncDisposable & { readonly path: string }> {
    const path = join(this.#scratch.dir, `image-${this.#containers++}`)
    mkdirSync(path)
    await this.ctr(['images', 'mount', reference, path])
    const unmount = ['images', 'unmount', '--rm', path]
    return { path, [Symbol.asyncDispose]: async () => void (await this.ctr(unmount)) }
  }

  /** Runs a container of an image that is here, waits for its end, and gives back its standard output. */
  async run(reference: string, argv: readonly string[], options: RunOptions = {}): Promise<string> {
    const { flags = [], isolated = false, ...command } = options
    const network = isolated ? [] : ['--net-host']
    const id = `c${this.#containers++}`
    const places = [
      '--cgroup',
      `${this.cgroup}/${id}`,
      '--runc-root',
      join(this.#scratch.run, 'runc'),
    ]
    const fifos = ['--fifo-dir', join(this.#scratch.run, 'fifo')]
    return await this.ctr(
      ['run', '--rm', ...network, ...places, ...fifos, ...flags, reference, id, ...argv],
      command,
    )
  }

  /** Has it use another content store from its next start on, or its own. */
  useContentStore(contentSocket: string | undefined): void {
    const { contentSocket: _before, ...options } = this.#options
    this.#options = contentSocket === undefined ? options : { ...options, contentSocket }
    this.#writeConfig()
  }

  /** Ends the daemon, and starts it again; running containers are not touched. */
  async restart(signal: 'SIGTERM' | 'SIGKILL' = 'SIGTERM'): Promise<void> {
    await this.#end(signal)
    await this.#start()
  }

  /** Ends the daemon, its shims and its containers, and removes its mounts and folders. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#end('SIGTERM')
    await this.#scratch[Symbol.asyncDispose]()
  }

  async #start(): Promise<void> {
    const log = openSync(this.logPath, 'a')
    const { within = [] } = this.#options
    const [file, ...args] = [...within, 'containerd', '--config', this.configPath]
    const daemon = spawn(file, args, {
      env: { PATH: this.#path },
      stdio: ['ignore', log, log],
    })
    closeSync(log)
    await once(daemon, 'spawn')
    if (daemon.pid !== undefined) this.#scratch.own(daemon.pid)
    this.#daemon = daemon
    const deadline = Date.now() + START_DEADLINE_MS
    while (!(await this.#answers())) {
      if (daemon.exitCode !== null || Date.now() > deadline) {
        const lines = readFileSync(this.logPath, 'utf8').trimEnd().split('\n').slice(-10)
        throw new Error(`containerd does not answer on ${this.socketPath}\n${lines.join('\n')}`)
      }
      await setTimeout(20)
    }
  }

  async #end(signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    const daemon = this.#daemon
    this.#daemon = undefined
    if (daemon === undefined || daemon.exitCode !== null || daemon.signalCode !== null) return
    const exited = once(daemon, 'exit')
    daemon.kill(signal)
    await exited
  }

  async #answers(): Promise<boolean> {
    const signal = AbortSignal.timeout(5000)
    using runtime = connect(criRuntimeContract(), this.socketPath)
    try {
      await this.ctr(['version'], { signal })
      // CRI is the last to be ready: it reads its state back first.
      await runtime.calls.ListContainers({}, { signal })
      return true
    } catch {
      return false
    }
  }

  #writePodNetwork(): void {
    const [conf, bin] = [join(this.#scratch.dir, 'cni'), join(this.#scratch.dir, 'cni-bin')]
    for (const path of [conf, bin]) mkdirSync(path)
    const config = { cniVersion: '0.3.1', name: 'ipdr-test', plugins: [{ type: 'alone' }] }
    writeFileSync(join(conf, 'ipdr-test.conflist'), JSON.stringify(config))
    const plugin = join(import.meta.dirname, 'cni-plugin.sh')
    // containerd asks for the second one by itself.
    for (const name of ['alone', 'loopback']) symlinkSync(plugin, join(bin, name))
  }

  #writeConfig(): void {
    const { editConfig = (toml) => toml } = this.#options
    writeFileSync(this.configPath, editConfig(this.#config(this.#options)))
  }

  #config(options: ContainerdOptions): string {
    const { baseSpecPath, version = '1.6', isPerRuntime = false, hasBootstrap = false } = options
    const isMajor2 = configVersion(version) === '2'
    const { runtime, service, pinned } = TABLES[isMajor2 ? '2' : '1']
    const [contentLines = '', contentTable = ''] = contentConfig(options)
    const folder = join(this.#scratch.dir, 'cni-bin')
    // The one name until 2.0, the other from 2.1 on; 2.3 no longer knows the first.
    const binDirs = isMajor2 ? `bin_dirs = ["${folder}"]` : `bin_dir = "${folder}"`
    const parts = [
      contentLines,
      `root = "${this.root}"`,
      `state = "${join(this.#scratch.run, 'state')}"`,
      options.dropInDir === undefined
        ? nodeConfig(options, this.#certsDir)
        : `version = 3\nimports = ["${options.dropInDir}/*.toml"]`,
      contentTable,
      `
      [grpc]
        address = "${this.socketPath}"
      [ttrpc]
        address = "${this.socketPath}.ttrpc"
      [plugins."io.containerd.internal.v1.opt"]
        path = "${join(this.#scratch.dir, 'opt')}"
      [plugins."${service}"]
        ${pinned === undefined ? `sandbox_image = "${PAUSE_IMAGE}"` : ''}
        ${service === runtime ? RUNTIME_OPTIONS : ''}
        disable_tcp_service = true
        stream_server_address = "127.0.0.1"
        stream_server_port = "0"
      ${service === runtime ? '' : `[plugins."${runtime}"]\n${RUNTIME_OPTIONS}`}
      ${pinned === undefined ? '' : `[plugins."${pinned}".pinned_images]\nsandbox = "${PAUSE_IMAGE}"`}
      [plugins."${runtime}".cni]
        conf_dir = "${join(this.#scratch.dir, 'cni')}"
        ${binDirs}
      [plugins."${runtime}".containerd.runtimes.runc]
        runtime_type = "io.containerd.runc.v2"
        ${baseSpecPath === undefined ? '' : `base_runtime_spec = "${baseSpecPath}"`}
        [plugins."${runtime}".containerd.runtimes.runc.options]
          Root = "${join(this.#scratch.run, 'runc')}"
      ${[...(isPerRuntime ? [RUNTIME_CLASS] : []), ...(hasBootstrap ? [BOOTSTRAP_CLASS] : [])]
        .map(
          (handler) => `[plugins."${runtime}".containerd.runtimes.${handler}.options]
             Root = "${join(this.#scratch.run, 'runc')}"`,
        )
        .join('\n')}
      `,
    ]
    return parts.join('\n')
  }
}

/** Names of CRI's plugins. containerd 2 parted the one that 1 has. */
const TABLES = {
  1: {
    runtime: 'io.containerd.grpc.v1.cri',
    service: 'io.containerd.grpc.v1.cri',
    pinned: undefined,
  },
  2: {
    runtime: 'io.containerd.cri.v1.runtime',
    service: 'io.containerd.grpc.v1.cri',
    pinned: 'io.containerd.cri.v1.images',
  },
} as const

const RUNTIME_OPTIONS = `disable_apparmor = true
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true`

/** The configuration that we ship for nodes, so that the tests run on it, with this test's places put in. */
function nodeConfig(
  { version = '1.6', snapshotter, isPerRuntime = false, hasBootstrap = false }: ContainerdOptions,
  certsDir: string,
): string {
  const names = [isPerRuntime ? 'runtime-class' : 'config', ...(hasBootstrap ? ['daemonset'] : [])]
  const folder = join(import.meta.dirname, '../../node-image/containerd')
  const shipped = names
    .map((name) => readFileSync(join(folder, `${name}-${configVersion(version)}.toml`), 'utf8'))
    .join('\n')
    .replace('/etc/containerd/certs.d', certsDir)
  if (snapshotter === 'overlayfs') {
    return shipped
      .replace(/^\[proxy_plugins\.ipdr\]\n(?: .*\n)*/m, '')
      .replaceAll('snapshotter = "ipdr"', 'snapshotter = "overlayfs"')
  }
  return shipped
    .replace('/run/ipdr-agent/snapshotter.sock', snapshotter.socketPath)
    .replace('/var/lib/ipdr-agent', snapshotter.root ?? '/nonexistent')
    .replaceAll('linux/amd64', process.arch === 'arm64' ? 'linux/arm64' : 'linux/amd64')
    .replaceAll('[proxy_plugins.ipdr', `[proxy_plugins.${snapshotter.name}`)
    .replaceAll('snapshotter = "ipdr"', `snapshotter = "${snapshotter.name}"`)
}

/** What belongs before the first table of the file, and the table, as we ship them. */
function contentConfig({ contentSocket }: ContainerdOptions): string[] {
  if (contentSocket === undefined) return []
  const path = join(import.meta.dirname, '../../node-image/containerd/content-proxy.toml')
  const shipped = readFileSync(path, 'utf8').replace('/run/ipdr-agent/content.sock', contentSocket)
  const start = shipped.indexOf('\n[') + 1
  return [shipped.slice(0, start), shipped.slice(start)]
}

/** Sends pulls of images on `host` to `url`, by the hosts.toml that we ship for the agent's own host. */
export function writeHostsFile(certsDir: string, host: string, url: string): void {
  const path = join(
    import.meta.dirname,
    '../../node-image/containerd/certs.d/ipdr.internal/hosts.toml',
  )
  mkdirSync(join(certsDir, host), { recursive: true })
  const text = readFileSync(path, 'utf8').replaceAll('http://127.0.0.1:5080', url)
  writeFileSync(join(certsDir, host, 'hosts.toml'), text)
}
