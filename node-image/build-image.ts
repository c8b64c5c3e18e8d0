import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { join, relative } from 'node:path'
import { buildProgram, LEFT_OUTSIDE } from './build-program.ts'
import { debianBase } from './image/debian-base.ts'
import type { LayerEntry } from './image/layer-entry.ts'
import { npmPackages } from './image/npm-packages.ts'
import { treeEntries } from './image/tree-entries.ts'
import { type Layer, writeLayer } from './image/write-layer.ts'
import { writeLayout } from './image/write-layout.ts'

const ROOT = join(import.meta.dirname, '..')
/** Where the agent lies in the image. */
const HOME = 'opt/ipdr-agent'
/** What of the tree is in it beside the programs: how they are started, what they read, and what `ipdr-agent host-setup` writes to a node. */
const FOLDERS = ['agent/cli/bin', 'proto', 'node-image/containerd']
const FILES = ['package.json', 'LICENSE']
/** Of every file: what does not change from one commit to the next keeps its digest, and is not moved again. */
const LAYER_TIME = new Date(0)
const PROGRAMS = ['ipdr', 'ipdr-agent', 'ipdr-authorize']

type AgentImage = {
  /** Of the OCI image layout. */
  readonly dir: string
  readonly tag: string
  readonly digest: string
  readonly size: number
  readonly layers: readonly Layer[]
  readonly packages: readonly string[]
}

/** Builds the image of the agent as an OCI image layout in `dir`, in layers that change the less the lower they lie. */
export async function buildImage(
  dir: string,
  progress: (line: string) => void = () => {},
): Promise<AgentImage> {
  const build = join(ROOT, 'build')
  mkdirSync(build, { recursive: true })
  progress('programs …')
  const program = await buildProgram()
  progress('packages of Debian and of npm …')
  const kept = (name: string, recipe: string): string =>
    join(build, `image-${name}-${hashOf(readFileSync(join(ROOT, recipe)))}`)
  const { entries: debian, packages } = debianBase(
    kept('debian', 'node-image/image/debian-base.ts'),
  )
  const npm = npmPackages(ROOT, { dir: kept('npm', 'package-lock.json'), of: LEFT_OUTSIDE })
  const created = createdAt()
  const partial = `${dir}.partial`
  rmSync(partial, { recursive: true, force: true })
  const blobs = join(partial, 'blobs/sha256')
  mkdirSync(blobs, { recursive: true })
  const under = (entries: readonly LayerEntry[]): LayerEntry[] =>
    entries.map((entry) => ({ ...entry, path: `${HOME}/${entry.path}` }))
  progress('layers …')
  const contents: readonly [name: string, entries: readonly LayerEntry[]][] = [
    ['debian', debian],
    ['node', under(nodeProgram())],
    ['npm', under(npm)],
    ['agent', [...under(ownFiles(program)), ...links()]],
  ]
  const layers = await Promise.all(
    contents.map(([name, entries]) => writeLayer(name, entries, { blobs, mtime: LAYER_TIME })),
  )
  const { version, license } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as {
    version: string
    license: string
  }
  const { digest, size } = writeLayout(partial, {
    layers,
    created,
    tag: version,
    config: {
      Entrypoint: ['/usr/local/bin/ipdr-agent'],
      Cmd: ['--config', '/etc/ipdr-agent/config.json'],
      Env: [
        'PATH=/usr/local/bin:/usr/bin:/bin',
        'SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt',
      ],
      WorkingDir: '/',
      Labels: {
        'org.opencontainers.image.title': 'ipdr-agent',
        'org.opencontainers.image.version': version,
        'org.opencontainers.image.licenses': license,
      },
    },
  })
  rmSync(dir, { recursive: true, force: true })
  renameSync(partial, dir)
  return { dir, tag: version, digest, size, layers, packages }
}

function nodeProgram(): LayerEntry[] {
  return treeEntries(join(ROOT, 'node_modules/node/bin'), { under: 'node_modules/node/bin' })
}

function ownFiles(program: string): LayerEntry[] {
  const isWanted = (path: string): boolean => !path.endsWith('.ts')
  return [
    ...treeEntries(program, { under: relative(ROOT, program) }),
    ...FOLDERS.flatMap((folder) => treeEntries(join(ROOT, folder), { under: folder, isWanted })),
    ...FILES.map((path) => ({ kind: 'file', path, mode: 0o644, from: join(ROOT, path) }) as const),
  ]
}

function links(): LayerEntry[] {
  return PROGRAMS.map((name) => ({
    kind: 'link',
    path: `usr/local/bin/${name}`,
    target: `/${HOME}/agent/cli/bin/${name}`,
  }))
}

/** SOURCE_DATE_EPOCH (reproducible-builds.org), else when the commit was made that is checked out. */
function createdAt(): Date {
  const given = process.env['SOURCE_DATE_EPOCH']
  const seconds =
    given ?? execFileSync('git', ['log', '-1', '--format=%ct'], { cwd: ROOT }).toString()
  if (!/^\d+$/.test(seconds.trim())) {
    throw new Error(`SOURCE_DATE_EPOCH must be seconds since 1970, not '${seconds}'`)
  }
  return new Date(Number(seconds) * 1000)
}

function hashOf(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex').slice(0, 16)
}

if (import.meta.main) {
  const dir = join(ROOT, 'build/image')
  const image = await buildImage(dir, (line) => process.stdout.write(`image: ${line}\n`))
  const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`
  const lines = [
    ...image.layers.map(
      ({ name, size, digest }) => `${name.padEnd(8)}${megabytes(size).padStart(10)}  ${digest}`,
    ),
    `${'all'.padEnd(8)}${megabytes(image.size).padStart(10)}  ${image.digest}`,
    `build/image, tag ${image.tag}: an OCI image layout`,
  ]
  process.stdout.write(`${lines.join('\n')}\n`)
}
