import { join } from 'node:path'
import { parse as parseToml } from 'smol-toml'
import { z } from 'zod'
import { connect } from '../../../proto/client.ts'
import { criImageContract, criRuntimeContract, introspectionContract } from '../../../proto/load.ts'
import type { Plugin__Output } from '../../../proto/types/containerd/services/introspection/v1/Plugin.ts'
import { IMAGE_HOST } from '../../../snapshotter/oci/reference.ts'
import type { Config } from '../../config.ts'
import { openShortFile, readShortFile } from '../../keys/read-short-file.ts'
import { registryUrl } from './agent-checks.ts'
import { type Check, type Finding, failure, notChecked, ok, warning } from './finding.ts'
import { reasonOf, statusOf } from './reason-of.ts'

/** gRPC's status of a service that is not there. */
const UNIMPLEMENTED = 12

/** The oldest containerd that the tests run. */
const OLDEST = { major: 1, minor: 6 } as const

/** Ours has 300 bytes. */
const HOSTS_FILE_BYTES_MAX = 64 * 1024

/** A specification of containers, as containerd prints it, has some 10 KB. */
const SPEC_BYTES_MAX = 1024 * 1024

/** Whether containerd is there and knows the agent. */
export function containerdChecks(
  config: Config,
  { certsDir }: { readonly certsDir: string },
): readonly Check[] {
  const asked = (look: (containerd: RunningContainerd) => Promise<Finding>): Check['look'] => {
    return async (signal) => {
      const containerd = await askContainerd(config, signal)
      return typeof containerd === 'string'
        ? notChecked('containerd does not answer')
        : await look(containerd)
    }
  }
  return [
    { name: 'containerd', look: (signal) => version(config, signal) },
    { name: 'proxy plugin', look: asked(async ({ plugins }) => proxyPlugin(config, plugins)) },
    { name: 'content store', look: asked(async (asked) => contentStore(config, asked)) },
    { name: 'default snapshotter', look: asked(async (asked) => whoIsServed(config, asked)) },
    { name: 'annotations', look: asked(async (asked) => annotations(config, asked)) },
    { name: 'hosts.toml', look: (signal) => hostsFile(config, certsDir, signal) },
    { name: 'container hook', look: asked((asked) => containerHook(config, asked)) },
  ]
}

/** CRI's configuration of containerd 1, under `config` of a verbose Status, and what 2 tells of it. */
const criConfig = z.object({
  containerd: z
    .object({
      snapshotter: z.string().optional(),
      disableSnapshotAnnotations: z.boolean().optional(),
      runtimes: z
        .record(
          z.string(),
          z.object({
            snapshotter: z.string().optional(),
            baseRuntimeSpec: z.string().optional(),
          }),
        )
        .nullish(),
    })
    .prefault({}),
  registry: z.object({ configPath: z.string().optional() }).optional(),
})

type RunningContainerd = {
  readonly cri: z.output<typeof criConfig>
  /** Its snapshotters. */
  readonly plugins: readonly Plugin__Output[]
  /** What it may keep blobs in. */
  readonly contentStores: readonly Plugin__Output[]
  /** Folders that its images are in, by what it tells the kubelet. */
  readonly imageFolders: readonly string[]
}

/** What it tells of itself, or why it does not. */
async function askContainerd(
  { containerd: { socketPath } }: Config,
  signal: AbortSignal,
): Promise<RunningContainerd | string> {
  using runtime = connect(criRuntimeContract(), socketPath)
  using images = connect(criImageContract(), socketPath)
  using introspection = connect(introspectionContract(), socketPath)
  try {
    const [{ info }, snapshotters, stores, { imageFilesystems }] = await Promise.all([
      runtime.calls.Status({ verbose: true }, { signal }),
      introspection.calls.Plugins({ filters: ['type==io.containerd.snapshotter.v1'] }, { signal }),
      introspection.calls.Plugins({ filters: ['type==io.containerd.content.v1'] }, { signal }),
      // Where it cannot tell, the kubelet is not told either; the plugin's check says so.
      images.calls.ImageFsInfo({}, { signal }).catch(() => ({ imageFilesystems: [] })),
    ])
    const parsed = criConfig.safeParse(JSON.parse(info['config'] ?? '{}'))
    const imageFolders = imageFilesystems.flatMap(({ fsId }) => fsId?.mountpoint ?? [])
    const cri = parsed.success ? parsed.data : criConfig.parse({})
    const { plugins: contentStores } = stores
    return { cri, plugins: snapshotters.plugins, contentStores, imageFolders }
  } catch (error) {
    signal.throwIfAborted()
    return reasonOf(error)
  }
}

async function version(
  { containerd: { socketPath } }: Config,
  signal: AbortSignal,
): Promise<Finding> {
  using runtime = connect(criRuntimeContract(), socketPath)
  let said: { readonly runtimeName: string; readonly runtimeVersion: string }
  try {
    said = await runtime.calls.Version({}, { signal })
  } catch (error) {
    if (statusOf(error) === UNIMPLEMENTED) {
      return failure(
        `containerd at ${socketPath} runs no pods: its CRI plugin is off`,
        'Take "cri" out of disabled_plugins in /etc/containerd/config.toml, and restart containerd.',
      )
    }
    return failure(
      `no containerd answers at ${socketPath}: ${reasonOf(error)}`,
      'Start it (systemctl start containerd), or set containerd.socketPath to where it listens.',
    )
  }
  const { runtimeName, runtimeVersion } = said
  const [, major = '0', minor = '0'] = /^v?(\d+)\.(\d+)/.exec(runtimeVersion) ?? []
  const isOld =
    Number(major) < OLDEST.major || (Number(major) === OLDEST.major && Number(minor) < OLDEST.minor)
  if (runtimeName !== 'containerd' || isOld) {
    return failure(
      `${runtimeName} ${runtimeVersion} runs the pods`,
      `The agent is made for containerd ${OLDEST.major}.${OLDEST.minor} and later.`,
    )
  }
  return ok(`containerd ${runtimeVersion} at ${socketPath}`)
}

/** Which of the plugins is the agent. */
function ours(config: Config, plugins: readonly Plugin__Output[]): Plugin__Output | undefined {
  return plugins.find(({ exports }) => exports['address'] === config.snapshotter.socketPath)
}

function proxyPlugin(config: Config, plugins: readonly Plugin__Output[]): Finding {
  const { socketPath } = config.snapshotter
  const plugin = ours(config, plugins)
  if (plugin?.initErr != null) {
    return failure(
      `plugin ${plugin.id} did not start: ${plugin.initErr.message}`,
      'See the log of containerd.',
    )
  }
  if (plugin?.capabilities.includes('rebase') === true) {
    return warning(
      `plugin ${plugin.id} says that it can "rebase", which it does not: pulls fail where max_concurrent_unpacks is above 1`,
      'Take "rebase" out of its capabilities in /etc/containerd/config.toml, and restart containerd.',
    )
  }
  if (plugin !== undefined) return ok(`plugin ${plugin.id} leads to ${socketPath}`)
  const addresses = plugins.flatMap(({ id, exports }) =>
    exports['address'] === undefined ? [] : `${id} leads to ${exports['address']}`,
  )
  const instead = addresses.length === 0 ? '' : `: ${addresses.join(', ')}`
  return failure(
    `containerd has no snapshotter at ${socketPath}${instead}`,
    'Put the lines of node-image/containerd/config-<version>.toml into /etc/containerd/config.toml, and restart containerd.',
  )
}

/** Whether blobs are in one store, and in the one that both sides mean: with two, containerd 1 takes either at each start. */
function contentStore({ content }: Config, { contentStores }: RunningContainerd): Finding {
  const own = contentStores.find(({ exports }) => exports['address'] === undefined)
  const proxies = contentStores.filter(({ exports }) => exports['address'] !== undefined)
  const [other] = proxies.filter(({ exports }) => exports['address'] !== content?.socketPath)
  if (other !== undefined) {
    return failure(
      `containerd's content store ${other.id} leads to ${other.exports['address']}, where the agent serves none`,
      content === undefined
        ? 'Set `content` in the configuration of the agent, or take the plugin out of /etc/containerd/config.toml, and restart both.'
        : `Have the plugin lead to ${content.socketPath} (content.socketPath), and restart containerd.`,
    )
  }
  if (content === undefined) return ok('containerd keeps blobs in its own store')
  if (proxies.length === 0) {
    return failure(
      `the agent serves a content store at ${content.socketPath}, and containerd uses its own`,
      'Put the lines of node-image/containerd/content-proxy.toml into /etc/containerd/config.toml, and restart containerd; or take `content` out of the configuration of the agent.',
    )
  }
  if (own === undefined)
    return ok(`containerd keeps blobs with the agent, at ${content.socketPath}`)
  return failure(
    'containerd has two content stores, and may use either',
    'Put disabled_plugins = ["io.containerd.content.v1.content"] at the top of /etc/containerd/config.toml, and restart containerd.',
  )
}

function whoIsServed(config: Config, { cri, plugins, imageFolders }: RunningContainerd): Finding {
  const name = ours(config, plugins)?.id
  if (name === undefined) return notChecked('containerd has no plugin that leads to the agent')
  // containerd 2 does not tell its snapshotter, but the disk that it keeps images on.
  const isDefault =
    cri.containerd.snapshotter === undefined
      ? imageFolders.includes(config.root)
      : cri.containerd.snapshotter === name
  if (isDefault) return ok(`all pods of this node get their layers from ${name}`)
  const handlers = Object.entries(cri.containerd.runtimes ?? {})
    .filter(([, { snapshotter }]) => snapshotter === name)
    .map(([handler]) => handler)
  if (handlers.length > 0)
    return ok(`pods of runtime handler ${handlers.join(', ')} get theirs from ${name}`)
  return failure(
    `no pod gets its layers from ${name}: containerd's snapshotter is ${cri.containerd.snapshotter ?? 'another'}`,
    'Set `snapshotter`, or that of a runtime, as in node-image/containerd, and restart containerd.',
  )
}

function annotations(config: Config, { cri, plugins }: RunningContainerd): Finding {
  if (!config.registries.lazy) return notChecked('registries.lazy is off, so they are not needed')
  const isTold =
    cri.containerd.disableSnapshotAnnotations === undefined
      ? ours(config, plugins)?.exports['enable_remote_snapshot_annotations'] === 'true'
      : !cri.containerd.disableSnapshotAnnotations
  if (isTold) return ok('containerd tells which image a layer is of')
  return warning(
    'containerd does not tell which image a layer is of, so images of ordinary registries are downloaded whole',
    'Set disable_snapshot_annotations = false (1.x), or enable_remote_snapshot_annotations = "true" under the plugin\'s exports (2.1 and later), and restart containerd.',
  )
}

const hostsToml = z.object({
  server: z.string().optional(),
  host: z.record(z.string(), z.object({ capabilities: z.array(z.string()).optional() })).optional(),
})

async function hostsFile(
  config: Config,
  fallbackDir: string,
  signal: AbortSignal,
): Promise<Finding> {
  const containerd = await askContainerd(config, signal)
  const told = typeof containerd === 'string' ? undefined : containerd.cri.registry?.configPath
  if (told === '') {
    return failure(
      'containerd looks for no hosts.toml: its registry.config_path is empty',
      'Set config_path = "/etc/containerd/certs.d" as in node-image/containerd, and restart containerd.',
    )
  }
  // Several folders may be named, as in PATH.
  const dirs = (told ?? fallbackDir).split(':')
  const url = registryUrl(config)
  for (const dir of dirs) {
    const path = join(dir, IMAGE_HOST, 'hosts.toml')
    const file = await readIfThere(path, HOSTS_FILE_BYTES_MAX)
    if (file === undefined) continue
    return judgeHosts(file.toString(), { path, url })
  }
  return failure(
    `there is no ${dirs.map((dir) => join(dir, IMAGE_HOST, 'hosts.toml')).join(', nor ')}`,
    `Copy node-image/containerd/certs.d/${IMAGE_HOST} there; it needs no restart.`,
  )
}

function judgeHosts(
  text: string,
  { path, url }: { readonly path: string; readonly url: string },
): Finding {
  let toml: unknown
  try {
    toml = parseToml(text)
  } catch (error) {
    return failure(
      `${path} is not TOML: ${reasonOf(error).split('\n')[0]}`,
      'Copy it anew from node-image/containerd.',
    )
  }
  const parsed = hostsToml.safeParse(toml)
  const { server, host = {} } = parsed.success ? parsed.data : {}
  const named = new Map(Object.entries(host).map(([name, entry]) => [withoutSlash(name), entry]))
  const capabilities = named.get(url)?.capabilities ?? ['pull', 'resolve', 'push']
  const isOurs = named.has(url) || withoutSlash(server ?? '') === url
  if (!isOurs) {
    const names = [...named.keys(), ...(server === undefined ? [] : [server])]
    return failure(
      `${path} leads to ${names.join(', ') || 'no host'}, and the agent is at ${url}`,
      `Put ${url} there, or set registry.listen to what stands there.`,
    )
  }
  if (!capabilities.includes('pull') || !capabilities.includes('resolve')) {
    return failure(
      `${path} lets ${url} only ${capabilities.join(', ') || 'do nothing'}`,
      'Set capabilities = ["pull", "resolve"].',
    )
  }
  if (withoutSlash(server ?? '') !== url) {
    return warning(
      `${path} leads to ${url}, but has ${server === undefined ? 'no server' : `${server} as server`}, which containerd asks about whatever the agent does not have`,
      `Set server = "${url}".`,
    )
  }
  return ok(`${path} leads to ${url}`)
}

/** Keys for namespaces are worth something only where every container is checked. */
async function containerHook(config: Config, { cri }: RunningContainerd): Promise<Finding> {
  if (config.decryption.keysDir === undefined && config.decryption.keyProviders === undefined) {
    return notChecked('this node opens no encrypted images')
  }
  const runtimes = Object.entries(cri.containerd.runtimes ?? {})
  const without: string[] = []
  for (const [handler, { baseRuntimeSpec = '' }] of runtimes) {
    const spec =
      baseRuntimeSpec === '' ? undefined : await readIfThere(baseRuntimeSpec, SPEC_BYTES_MAX)
    if (spec === undefined || !spec.includes('ipdr-authorize')) without.push(handler)
  }
  if (without.length === 0) return ok('every container is checked before it starts')
  return warning(
    `containers of runtime ${without.join(', ')} start unchecked, so a pod may run an encrypted image whose keys are another namespace's`,
    'Where tenants share the node: ctr oci spec | ipdr runtime-spec, and base_runtime_spec as in node-image/containerd/README.md.',
  )
}

/** Rejects as the file system does, but if there is none. */
async function readIfThere(path: string, bytesMax: number): Promise<Buffer | undefined> {
  try {
    await using file = await openShortFile(path)
    return await readShortFile(file, path, bytesMax)
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined
    throw error
  }
}

function withoutSlash(url: string): string {
  return url.replace(/\/+$/, '')
}
