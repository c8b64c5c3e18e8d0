import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join, matchesGlob } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { parse } from 'smol-toml'
import { CodedError } from '../../snapshotter/errors.ts'
import { IMAGE_HOST } from '../../snapshotter/oci/reference.ts'
import type { Config } from '../config.ts'

/** Which pods get our snapshotter: those of a runtime class, or all of the node. */
export type HostProfile = 'runtime-class' | 'whole-node'

type Table = { readonly [key: string]: unknown }

/** Files that begin so are ours to change. */
const MARK = '# Written by ipdr-agent host-setup; changes are lost.\n'

/** What is written is what is shipped for those who do it by hand. */
const SHIPPED = join(import.meta.dirname, '../../node-image/containerd')

const SHIPPED_NAMES = {
  'runtime-class': ['runtime-class'],
  // Where all pods are ours, the agent's own must not be.
  'whole-node': ['config', 'daemonset'],
} as const

const CONTAINERD = 'containerd.service'

/** What of our settings is to take the place of the operator's: that is what they ask for with `whole-node`. */
const ASKED_FOR = 'snapshotter'

/**
 * Writes a drop-in for containerd and the hosts.toml of our images below `containerdDir`, the node's /etc/containerd, whole or not at
 * all, and tells what changed, and when anything of it last did, in ms since the epoch. Throws CodedError FAILED_PRECONDITION, with what to do by hand, before anything is written, if a
 * setting or file of somebody else would have to go, or containerd would not read the drop-in.
 */
export function writeHostFiles(
  config: Pick<Config, 'root' | 'snapshotter' | 'registry'>,
  { containerdDir, profile }: { readonly containerdDir: string; readonly profile: HostProfile },
): { readonly changed: readonly string[]; readonly changedMs: number } {
  const mainPath = join(containerdDir, 'config.toml')
  const main = parse(
    readText(mainPath) ??
      refuse(`there is no ${mainPath}: write 'containerd config default' to it`),
  )
  const { version, imports } = main
  if (version !== 2 && version !== 3 && version !== 4) {
    refuse(`${mainPath} is not of version 2, 3 or 4`)
  }
  // containerd 2.3 and later read each file by its own version.
  const isContainerd2 = version !== 2
  const certsDir = join(containerdDir, 'certs.d')
  const dropInPath = join(containerdDir, 'conf.d/ipdr-agent.toml')
  const isRead =
    Array.isArray(imports) &&
    imports.some((glob) => typeof glob === 'string' && matchesGlob(dropInPath, glob))
  if (!isRead)
    refuse(
      `${mainPath} does not read ${dropInPath}: add imports = ["${containerdDir}/conf.d/*.toml"]`,
    )
  const shipped = (name: string): string =>
    readFileSync(join(SHIPPED, name), 'utf8')
      .replaceAll('/run/ipdr-agent/snapshotter.sock', config.snapshotter.socketPath)
      .replaceAll('/var/lib/ipdr-agent', config.root)
      .replaceAll('"/etc/containerd/certs.d"', `"${certsDir}"`)
      .replaceAll('linux/amd64', process.arch === 'arm64' ? 'linux/arm64' : 'linux/amd64')
      .replaceAll('http://127.0.0.1:5080', urlOf(config.registry.listen))
  const parts = SHIPPED_NAMES[profile].map((name) =>
    shipped(`${name}-${isContainerd2 ? '2' : '1.7'}.toml`),
  )
  const dropIn = [MARK, ...parts].join('\n')
  const ours = parse(dropIn)
  const conflict =
    (isContainerd2 ? undefined : replacedPlugin(main, ours)) ?? conflictOf(main, ours)
  if (conflict !== undefined) {
    refuse(
      `${mainPath} sets ${conflict}, which ${dropInPath} would change: put our lines into ${mainPath} by hand`,
    )
  }
  const files = [
    { path: dropInPath, content: dropIn },
    {
      path: join(certsDir, IMAGE_HOST, 'hosts.toml'),
      content: `${MARK}${shipped(`certs.d/${IMAGE_HOST}/hosts.toml`)}`,
    },
  ]
  const stale = files.filter(({ path, content }) => {
    const there = readText(path)
    if (there !== undefined && !there.startsWith(MARK))
      refuse(`${path} is not ours: remove it, or do without host-setup`)
    return there !== content
  })
  for (const { path, content } of stale) {
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(`${path}.new`, content, { flush: true })
    renameSync(`${path}.new`, path)
  }
  return {
    changed: stale.map(({ path }) => path),
    changedMs: Math.max(...files.map(({ path }) => statSync(path).mtimeMs)),
  }
}

/**
 * Whether containerd runs since before `changedMs`, and so has not read it, by the word of the node's service manager: also after an attempt
 * that wrote files and ended before the restart. Throws if the service manager cannot be asked.
 */
export function isContainerdOlder(changedMs: number): boolean {
  const words = ['show', '--value', '--property=ExecMainStartTimestamp', '--timestamp=unix']
  const shown = onNode([...words, CONTAINERD])
  // `@` and seconds; nothing of a unit that never ran, which reads all when it does.
  const seconds = /^@(\d+)$/.exec(shown.trim())?.[1]
  return seconds !== undefined && Number(seconds) * 1000 <= changedMs
}

/** Has the node's service manager restart containerd, from a container that sees the node's processes. Throws if that fails. */
export function restartContainerd(): void {
  onNode(['restart', CONTAINERD])
}

function onNode(words: readonly string[]): string {
  return execFileSync('chroot', ['/proc/1/root', 'systemctl', ...words], {
    // A container need not have one, and without it only /bin and /usr/bin are searched.
    env: { ...process.env, PATH: '/usr/sbin:/usr/bin:/sbin:/bin' },
    stdio: ['ignore', 'pipe', 'inherit'],
    encoding: 'utf8',
  })
}

/** The first setting that both have and that differs, by its name. */
function conflictOf(theirs: Table, ours: Table, above = ''): string | undefined {
  for (const [key, value] of Object.entries(ours)) {
    const other = theirs[key]
    if (other === undefined || key === ASKED_FOR || isDeepStrictEqual(other, value)) continue
    const name = above === '' ? key : `${above}.${key}`
    if (!isTable(other) || !isTable(value)) {
      if (name !== 'version') return name
      continue
    }
    const found = conflictOf(other, value, name)
    if (found !== undefined) return found
  }
  return undefined
}

/** Of version 2, a drop-in's plugin takes the place of the whole plugin of that name: nothing of it is merged. */
function replacedPlugin(theirs: Table, ours: Table): string | undefined {
  const name = Object.keys(tableOf(ours['plugins'])).find((id) => id in tableOf(theirs['plugins']))
  return name === undefined ? undefined : `plugins."${name}"`
}

function tableOf(value: unknown): Table {
  return isTable(value) ? value : {}
}

function isTable(value: unknown): value is Table {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function urlOf({ host, port }: Config['registry']['listen']): string {
  return `http://${host.includes(':') ? `[${host}]` : host}:${port}`
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

function refuse(why: string): never {
  throw new CodedError('FAILED_PRECONDITION', why)
}
