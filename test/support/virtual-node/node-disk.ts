import { cpSync, mkdirSync, readFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { buildOnce } from '../images/build-cache.ts'
import { runCommand } from '../run-command.ts'
import type { Scratch } from '../scratch.ts'

const ROOT = join(import.meta.dirname, '../../..')
const GUEST = join(import.meta.dirname, 'guest')

/** Raised when the same recipe is to give another root. */
const BUILDER = 1

/** A kernel, and what it needs to find its disk. */
export type Kernel = { readonly vmlinuz: string; readonly initrd: string }

/** What a node boots from. */
export type NodeDisk = {
  /** An ext4 file system. */
  readonly path: string
  /** Debian 13's own kernel, 6.12. */
  readonly kernel: Kernel
}

/** What is on the node beside what every Debian has. */
const PACKAGES = [
  'systemd-sysv',
  'udev',
  'kmod',
  'containerd',
  'runc',
  'ca-certificates',
  'iproute2',
  'initramfs-tools',
  'linux-image-cloud-amd64',
]

/** No manuals and translations; on the node nobody reads them. */
const EXCLUDED = [
  '/usr/share/man/*',
  '/usr/share/doc/*',
  '/usr/share/locale/*',
  '/usr/share/info/*',
]

/** What the disk holds beyond the files that it is made of. Sparse: 4 GB for images, layers and the log. */
const DISK_BYTES = 6_000_000_000

/** Run for the initramfs: a disk by virtio and nothing else, since most of a boot would go into unpacking the rest. */
const INITRAMFS = `
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/initramfs-tools/hooks"
echo MODULES=list >"$1/etc/initramfs-tools/conf.d/virtual"
printf '#!/bin/sh\\n[ "$1" = prereqs ] && exit\\n. /usr/share/initramfs-tools/hook-functions\\nmanual_add_modules virtio_blk virtio_pci ext4\\n' >"$1/etc/initramfs-tools/hooks/virtual"
chmod +x "$1/etc/initramfs-tools/hooks/virtual"
`

/** Makes a node of Debian 13, our package and this configuration, in the scratch. The Debian, and what npm installs, are made once. */
export async function makeNodeDisk(
  scratch: Scratch,
  config: object,
  progress: (line: string) => void,
): Promise<NodeDisk> {
  const [debian, packages] = [await debianRoot(progress), await agentPackages(progress)]
  const path = join(scratch.dir, 'disk')
  const tree = join(scratch.dir, 'tree')
  mkdirSync(tree)
  await runCommand('tar', ['--extract', '--file', join(debian, 'root.tar'), '-C', tree])
  await runCommand(join(GUEST, 'install.sh'), [], {
    env: {
      ...process.env,
      TREE: tree,
      SOURCES: ROOT,
      PACKAGES: packages,
      NODE: process.execPath,
      CONFIG: JSON.stringify(config),
    },
  })
  await runCommand('truncate', [`--size=${DISK_BYTES}`, path])
  await runCommand('mke2fs', ['-q', '-t', 'ext4', '-d', tree, path])
  await rm(tree, { recursive: true })
  const kernel = { vmlinuz: join(debian, 'vmlinuz'), initrd: join(debian, 'initrd') }
  return { path, kernel }
}

async function debianRoot(progress: (line: string) => void): Promise<string> {
  const recipe = [BUILDER, PACKAGES, EXCLUDED, INITRAMFS]
  return await buildOnce('node-root', recipe, async (dir) => {
    progress('unpacking Debian 13, a few minutes …')
    const options = [
      '--mode=root',
      '--variant=minbase',
      '--quiet',
      `--include=${PACKAGES.join(',')}`,
      ...EXCLUDED.map((path) => `--dpkgopt=path-exclude=${path}`),
      '--aptopt=APT::Install-Recommends "false"',
      '--aptopt=Acquire::Retries "3"',
      `--essential-hook=${INITRAMFS}`,
    ]
    await runCommand(
      'unshare',
      [
        '--mount',
        '--propagation=private',
        'mmdebstrap',
        ...options,
        'trixie',
        join(dir, 'root.tar'),
      ],
      { signal: AbortSignal.timeout(900_000) },
    )
    const words = ['--extract', '--file', join(dir, 'root.tar'), '-C', dir, './boot']
    await runCommand('tar', words)
    await runCommand('sh', ['-euc', 'mv boot/vmlinuz-* vmlinuz; mv boot/initrd.img-* initrd'], {
      cwd: dir,
    })
    await rm(join(dir, 'boot'), { recursive: true })
  })
}

async function agentPackages(progress: (line: string) => void): Promise<string> {
  const files = ['package.json', 'package-lock.json']
  const recipe = [BUILDER, ...files.map((name) => readFileSync(join(ROOT, name), 'utf8'))]
  return await buildOnce('node-packages', recipe, async (dir) => {
    progress("installing the agent's npm packages, about a minute …")
    for (const name of files) cpSync(join(ROOT, name), join(dir, name))
    const quiet = ['--no-audit', '--no-fund', '--prefer-offline', '--loglevel=error']
    await runCommand('npm', ['ci', '--omit=dev', '--omit=peer', ...quiet], { cwd: dir })
  })
}
