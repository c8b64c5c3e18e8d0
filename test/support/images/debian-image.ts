import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { lstatSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { runCommand } from '../run-command.ts'
import { buildOnce, IMAGES, lock } from './build-cache.ts'
import {
  CREATED_AT,
  type ImageProcess,
  type LayerBlob,
  type OciLayout,
  openOciLayout,
  packLayer,
  writeOciLayout,
} from './oci-layout.ts'

/** An image made from Debian's packages, one layer for the root file system and one for each step upon it. */
export type DebianRecipe = {
  readonly name: string
  readonly root: DebianRoot
  readonly steps?: readonly DebianStep[]
  readonly process?: ImageProcess
}

/** The lowest layer, as mmdebstrap makes it. */
export type DebianRoot = {
  /** `minbase`: a small Debian with apt. `extract`: nothing but `packages` and what they need, not configured. */
  readonly variant: 'minbase' | 'extract'
  readonly packages?: readonly string[]
}

/** What one more layer changes. */
export type DebianStep = {
  readonly name: string
  /** Installed by apt, without what is only recommended. */
  readonly packages?: readonly string[]
  /** Run by sh as root inside, after the packages. */
  readonly script?: string
}

export type Progress = (line: string) => void

const SUITE = 'bookworm'

/** For unshare(1): a mount namespace of its own, so that mounts end with what made them, however it ends. */
const OWN_MOUNTS = ['--mount', '--propagation=private']

/** Raised when the same recipe is to give another image. */
const BUILDER = 1

/** Builds the image, or finds it built. Layers that images have in common are made once. */
export async function buildDebianImage(
  recipe: DebianRecipe,
  progress: Progress = () => {},
): Promise<OciLayout> {
  const { name, root, steps = [], process: config = {} } = recipe
  const stages = [buildRoot(root, progress)]
  for (const step of steps) {
    const below = Promise.all(stages)
    stages.push(below.then((stages) => buildStep(step, stages, progress)))
  }
  // Each layer is packed while the next stage is made.
  const layers = await Promise.all(
    stages.map(async (stage) => await packStage(await stage, progress)),
  )
  const dir = await buildOnce(`image-${name}`, [layers, config], async (dir) => {
    writeOciLayout(dir, { layers, process: config })
  })
  return openOciLayout(dir)
}

/** `tree` holds what overlayfs wrote above the stages below. */
type Stage = { readonly name: string; readonly recipe: unknown; readonly tree: string }

async function buildRoot(root: DebianRoot, progress: Progress): Promise<Stage> {
  const { variant, packages = [] } = root
  const recipe = [BUILDER, SUITE, root]
  const dir = await buildOnce(`stage-${variant}`, recipe, async (dir) => {
    progress(
      `${variant}${packages.map((name) => ` ${name}`).join('')}: unpacking Debian ${SUITE} …`,
    )
    const include = packages.length > 0 ? [`--include=${packages.join(',')}`] : []
    const tree = join(dir, 'tree')
    await runCommand('unshare', [
      ...OWN_MOUNTS,
      'mmdebstrap',
      '--mode=root',
      '--quiet',
      `--variant=${variant}`,
      ...include,
      '--aptopt=Acquire::Retries "3"',
      SUITE,
      tree,
    ])
    // These differ from machine to machine and from run to run.
    for (const path of ['etc/hostname', 'etc/resolv.conf', 'var/log', 'var/cache/ldconfig']) {
      await rm(join(tree, path), { recursive: true, force: true })
    }
    for (const path of ['etc/resolv.conf', 'etc/hostname']) {
      mkdirSync(join(tree, 'etc'), { recursive: true })
      writeFileSync(join(tree, path), '')
    }
    mkdirSync(join(tree, 'var/log'), { recursive: true })
  })
  return { name: variant, recipe, tree: join(dir, 'tree') }
}

async function buildStep(
  step: DebianStep,
  below: readonly Stage[],
  progress: Progress,
): Promise<Stage> {
  const recipe = [below.at(-1)?.recipe, step]
  const dir = await buildOnce(`stage-${step.name}`, recipe, async (dir) => {
    progress(`${step.name}: ${step.packages?.join(' ') ?? 'running its script'} …`)
    const [tree, work, merged] = ['tree', 'work', 'merged'].map((name) => join(dir, name))
    const aptCache = join(IMAGES, 'apt')
    for (const path of [tree, work, merged]) mkdirSync(path ?? '')
    for (const path of ['lists', 'archives']) {
      mkdirSync(join(aptCache, path, 'partial'), { recursive: true })
    }
    // All steps share apt's cache, and apt does not wait for another apt.
    await using _lock = await lock(aptCache)
    await runCommand('unshare', [...OWN_MOUNTS, 'sh', '-euc', IN_CHROOT], {
      env: {
        ...process.env,
        LOWER: below
          .map(({ tree }) => tree)
          .toReversed()
          .join(':'),
        UPPER: tree,
        WORK: work,
        MERGED: merged,
        APT_CACHE: aptCache,
        PACKAGES: step.packages?.join(' ') ?? '',
        SCRIPT: step.script ?? '',
      },
    })
    await rm(work ?? '', { recursive: true })
  })
  return { name: step.name, recipe, tree: join(dir, 'tree') }
}

const IN_CHROOT = `
  mount -t overlay overlay "$MERGED" \\
    -o "lowerdir=$LOWER,upperdir=$UPPER,workdir=$WORK,redirect_dir=off,metacopy=off,index=off"
  mount -t proc proc "$MERGED/proc"
  mount --bind /etc/resolv.conf "$MERGED/etc/resolv.conf"
  inside() {
    env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \\
      DEBIAN_FRONTEND=noninteractive http_proxy="\${http_proxy-}" chroot "$MERGED" "$@"
  }
  if [ -n "$PACKAGES" ]; then
    mount --bind "$APT_CACHE/lists" "$MERGED/var/lib/apt/lists"
    mount --bind "$APT_CACHE/archives" "$MERGED/var/cache/apt/archives"
    # Packages with a daemon would start it.
    printf '#!/bin/sh\\nexit 101\\n' >"$MERGED/usr/sbin/policy-rc.d"
    chmod +x "$MERGED/usr/sbin/policy-rc.d"
    apt() { inside apt-get -qq -o Acquire::Retries=3 -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= "$@"; }
    apt update
    apt install --yes --no-install-recommends $PACKAGES
    rm "$MERGED/usr/sbin/policy-rc.d"
  fi
  [ -z "$SCRIPT" ] || inside sh -euc "$SCRIPT"
  rm -rf "$MERGED"/var/log/* "$MERGED"/var/cache/ldconfig "$MERGED"/var/cache/debconf/*-old \\
    "$MERGED"/var/lib/dpkg/*-old
`

async function packStage(stage: Stage, progress: Progress): Promise<LayerBlob> {
  const dir = await buildOnce(`layer-${stage.name}`, stage.recipe, async (dir) => {
    progress(`${stage.name}: packing its layer …`)
    const tar = spawn('tar', tarArguments(stage.tree, join(dir, 'work')), {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const [blob, [exitCode]] = await Promise.all([
      packLayer(tar.stdout, 'gzip', dir),
      once(tar, 'close'),
    ])
    if (exitCode !== 0) throw new Error(`tar of ${stage.tree}: exit code ${exitCode}`)
    await rm(join(dir, 'work'), { recursive: true })
    writeFileSync(join(dir, 'layer.json'), JSON.stringify(blob))
  })
  const blob = JSON.parse(readFileSync(join(dir, 'layer.json'), 'utf8')) as LayerBlob
  // It was written in a folder that has been renamed since.
  return { ...blob, path: join(dir, blob.digest.replace(':', '-')) }
}

/** For GNU tar: the layer that overlayfs wrote to `tree`, with its deletions in the form of OCI layers. */
function tarArguments(tree: string, work: string): string[] {
  const { kept, deleted } = entriesOf(tree, opaqueFolders(tree))
  for (const path of deleted) {
    mkdirSync(dirname(join(work, path)), { recursive: true })
    writeFileSync(join(work, path), '')
  }
  mkdirSync(work, { recursive: true })
  const [keptList, deletedList] = [join(work, '.kept'), join(work, '.deleted')]
  writeFileSync(keptList, kept.map((path) => `${path}\0`).join(''))
  writeFileSync(deletedList, deleted.map((path) => `${path}\0`).join(''))
  return [
    '--create',
    '--format=posix',
    '--pax-option=delete=atime,delete=ctime',
    '--numeric-owner',
    '--xattrs',
    '--xattrs-include=user.*',
    '--xattrs-include=security.*',
    '--clamp-mtime',
    `--mtime=@${CREATED_AT.getTime() / 1000}`,
    '--no-recursion',
    '--null',
    '--verbatim-files-from',
    '-C',
    work,
    `--files-from=${deletedList}`,
    '-C',
    tree,
    `--files-from=${keptList}`,
  ]
}

/** overlayfs deletes by character devices 0:0 and by opaque folders; a layer by files named `.wh.`. */
function entriesOf(
  tree: string,
  opaque: ReadonlySet<string>,
): { kept: string[]; deleted: string[] } {
  const [kept, deleted] = [['.'], [...opaque].map((path) => join(path, '.wh..wh..opq'))]
  const walk = (folder: string): void => {
    for (const entry of readdirSync(join(tree, folder), { withFileTypes: true })) {
      const path = join(folder, entry.name)
      const isDeletion = entry.isCharacterDevice() && lstatSync(join(tree, path)).rdev === 0
      if (isDeletion) deleted.push(join(folder, `.wh.${entry.name}`))
      else kept.push(path)
      if (entry.isDirectory()) walk(path)
    }
  }
  walk('.')
  return { kept: kept.toSorted(), deleted: deleted.toSorted() }
}

function opaqueFolders(tree: string): ReadonlySet<string> {
  const { stdout } = spawnSync(
    'getfattr',
    ['--recursive', '--physical', '--no-dereference', '--name=trusted.overlay.opaque', '.'],
    { cwd: tree, encoding: 'utf8', maxBuffer: 1 << 20 },
  )
  return new Set(Array.from(stdout.matchAll(/^# file: (.*)$/gm), ([, path = '']) => path))
}
