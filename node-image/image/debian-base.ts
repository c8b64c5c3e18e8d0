import { execFileSync } from 'node:child_process'
import { existsSync, lstatSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { keepFirst } from './keep-first.ts'
import type { LayerEntry } from './layer-entry.ts'
import { treeEntries } from './tree-entries.ts'

const SUITE = 'bookworm'

/** What Node 24 is linked with; a shell for our start scripts; `sleep`, which is the FUSE keeper; `setpriv`; `unshare` for user namespaces; roots of trust. */
const PACKAGES =
  'libc6 libstdc++6 libgcc-s1 libzstd1 dash coreutils util-linux ca-certificates'.split(' ')

/** Of these packages and of what they depend on: no more than is called, and than whoever looks around in a container wants. */
const PROGRAMS = 'sh|dash|sleep|readlink|dirname|chroot|setpriv|unshare|cat|ls|env|id|stat'

/** What these programs and Node are linked with, and what the C library opens by itself to look up names. */
const LIBRARIES =
  'ld-linux[-_0-9a-z]*|libc|libm|libdl|libpthread|librt|libresolv|libnss_dns|libnss_files|libstdc\\+\\+|libgcc_s|libcap-ng|libselinux|libzstd|libpcre2-8'

const WANTED = new RegExp(
  [
    `^(?:usr/)?s?bin/(?:${PROGRAMS})$`,
    `^(?:usr/)?lib(?:64)?/(?:[^/]+-linux-gnu/)?(?:${LIBRARIES})\\.so[.0-9]*$`,
    '^etc/ld\\.so\\.conf',
    '^usr/share/ca-certificates/',
    '^usr/share/doc/[^/]+(?:/copyright)?$',
  ].join('|'),
)

/**
 * Debian's part of the image. The first call unpacks it to `dir`, by mmdebstrap, which checks Debian's signatures; later ones find it
 * there. `packages` are names and versions of the sources, as their changelogs have them.
 */
export function debianBase(dir: string): {
  readonly entries: LayerEntry[]
  readonly packages: readonly string[]
} {
  if (!existsSync(dir)) unpack(dir)
  const isWanted = (path: string): boolean => WANTED.test(path)
  const packages = versionsIn(join(dir, 'usr/share/doc'))
  return {
    packages,
    entries: [
      ...treeEntries(dir, { isWanted }),
      text('etc/passwd', 'root:x:0:0:root:/root:/bin/sh\n'),
      text('etc/group', 'root:x:0:\n'),
      text('etc/nsswitch.conf', 'hosts: files dns\n'),
      text('etc/ssl/certs/ca-certificates.crt', certificatesIn(dir)),
      text('usr/share/ipdr-agent/debian-packages', `${packages.join('\n')}\n`),
      ...['dev', 'proc', 'sys', 'run', 'var/lib', 'etc/ipdr-agent'].map(
        (path) => ({ kind: 'folder', path, mode: 0o755 }) as const,
      ),
      { kind: 'folder', path: 'root', mode: 0o700 },
      { kind: 'folder', path: 'tmp', mode: 0o1777 },
    ],
  }
}

function unpack(dir: string): void {
  // Of ours alone: another build may unpack the same at the same time.
  const partial = `${dir}.${process.pid}`
  rmSync(partial, { recursive: true, force: true })
  const include = `--include=${PACKAGES.join(',')}`
  const retries = '--aptopt=Acquire::Retries "3"'
  const words = ['--mode=root', '--quiet', '--variant=extract', include, retries, SUITE, partial]
  // A mount namespace of its own, so that mounts end with what made them, however it ends.
  const alone = ['--mount', '--propagation=private', 'mmdebstrap']
  execFileSync('unshare', [...alone, ...words], { stdio: ['ignore', 'ignore', 'inherit'] })
  keepFirst(partial, dir)
}

function versionsIn(doc: string): string[] {
  const changelogs = readdirSync(doc)
    .filter((name) => !lstatSync(join(doc, name)).isSymbolicLink())
    .map((name) => join(doc, name, 'changelog.Debian.gz'))
    .filter((path) => existsSync(path))
  const versions = changelogs.flatMap((path) => {
    const [, name, version] =
      /^(\S+) \(([^)]+)\)/.exec(gunzipSync(readFileSync(path)).toString()) ?? []
    return name === undefined ? [] : [`${name} ${version}`]
  })
  return [...new Set(versions)].toSorted()
}

function certificatesIn(dir: string): string {
  const folder = join(dir, 'usr/share/ca-certificates/mozilla')
  const names = readdirSync(folder).toSorted()
  return names.map((name) => readFileSync(join(folder, name), 'utf8')).join('')
}

function text(path: string, content: string): LayerEntry {
  return { kind: 'file', path, mode: 0o644, from: Buffer.from(content) }
}
