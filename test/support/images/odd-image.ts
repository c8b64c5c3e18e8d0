import { createWriteStream, mkdirSync, readFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { type Header, pack } from 'tar-stream'
import { runCommand } from '../run-command.ts'
import { buildOnce } from './build-cache.ts'
import {
  type Compression,
  type OciLayout,
  openOciLayout,
  packLayer,
  writeOciLayout,
} from './oci-layout.ts'

const ODD_TREE = join(import.meta.dirname, 'odd-tree.sh')

/** Where the odd image has folders that no tar mentions: their times are those of the unpacking. */
export const UNMENTIONED_FOLDERS: readonly string[] = [
  'crafted/dot',
  'crafted/double',
  'crafted/implied',
  'crafted/implied/by',
  'crafted/implied/by/name',
]

/**
 * An image with everything that a layer may hold and that is easily got wrong, in five layers: GNU's format; POSIX' with
 * extended attributes; both of its older forms of sparse files; entries that tar(1) does not write; and deletions.
 */
export async function buildOddImage(): Promise<OciLayout> {
  const dir = await buildOnce('image-odd', readFileSync(ODD_TREE, 'utf8') + RECIPE, async (dir) => {
    const [tree, blobs] = [join(dir, 'tree'), join(dir, 'layers')]
    mkdirSync(tree)
    await runCommand(ODD_TREE, [tree])
    const tar = (name: string): string => join(dir, name)
    await runTar(['--create', '--format=gnu', `--file=${tar('gnu')}`, '-C', tree, '.'])
    await runTar([
      '--create',
      '--format=posix',
      '--sparse',
      '--xattrs',
      '--xattrs-include=*',
      PAX_OPTION,
      under('posix'),
      `--file=${tar('posix')}`,
      '-C',
      tree,
      '.',
    ])
    for (const [mode, version] of [
      ['--create', '0.0'],
      ['--append', '0.1'],
    ] as const) {
      await runTar([
        mode,
        '--format=posix',
        '--sparse',
        `--sparse-version=${version}`,
        PAX_OPTION,
        under(`sparse-${version}`),
        `--file=${tar('sparse')}`,
        '-C',
        join(tree, 'sparse'),
        '.',
      ])
    }
    await writeTar(tar('crafted'), CRAFTED)
    await writeTar(tar('deletions'), DELETIONS)
    const layers = []
    for (const [name, compression] of LAYERS) {
      layers.push(await packLayer(tar(name), compression, blobs))
      await rm(tar(name))
    }
    await rm(tree, { recursive: true })
    writeOciLayout(dir, { layers })
    await rm(blobs, { recursive: true })
  })
  return openOciLayout(dir)
}

/**
 * An image of one layer with sparse files in GNU's old format and in many pieces, and a contiguous file. tar(1) unpacks it;
 * containerd 1.6 knows neither type of entry and refuses.
 */
export async function buildTarOnlyImage(): Promise<OciLayout> {
  const recipe = readFileSync(ODD_TREE, 'utf8') + RECIPE
  const dir = await buildOnce('image-tar-only', recipe, async (dir) => {
    const [tree, tar] = [join(dir, 'tree'), join(dir, 'tar')]
    mkdirSync(tree)
    await runCommand(ODD_TREE, [tree])
    await writeTar(tar, [
      { name: 'contiguous', type: 'contiguous-file', body: 'as any other file' },
    ])
    await runTar(['--append', '--format=gnu', '--sparse', `--file=${tar}`, '-C', tree, './sparse'])
    writeOciLayout(dir, { layers: [await packLayer(tar, 'gzip', join(dir, 'layers'))] })
    for (const name of ['tree', 'tar', 'layers']) await rm(join(dir, name), { recursive: true })
  })
  return openOciLayout(dir)
}

/** An image with one sparse file of 4 GiB and 64 KiB: few bytes in the layer, many for who unpacks it. */
export async function buildLargeFileImage(): Promise<OciLayout> {
  const dir = await buildOnce('image-large-file', RECIPE, async (dir) => {
    const tree = join(dir, 'tree')
    mkdirSync(tree)
    await runCommand('sh', ['-euc', LARGE_FILE, 'sh', join(tree, 'large')])
    await runTar(['--create', '--format=posix', '--sparse', `--file=${dir}/tar`, '-C', tree, '.'])
    const layers = [await packLayer(join(dir, 'tar'), 'gzip', join(dir, 'layers'))]
    writeOciLayout(dir, { layers })
    for (const name of ['tree', 'tar', 'layers']) await rm(join(dir, name), { recursive: true })
  })
  return openOciLayout(dir)
}

/** Raised when the same sources are to give other images. */
const RECIPE = '1'

const LARGE_FILE = `
  truncate --size=4295032832 "$1"
  printf first | dd of="$1" conv=notrunc status=none
  printf 'across four gibibytes' | dd of="$1" bs=1 seek=4294967290 conv=notrunc status=none
  printf last | dd of="$1" bs=1 seek=4295032828 conv=notrunc status=none
  touch -d '2016-06-16T16:16:16Z' "$1" "$(dirname "$1")"
`

const LAYERS: readonly (readonly [string, Compression])[] = [
  ['gnu', 'gzip'],
  ['posix', 'zstd'],
  ['sparse', 'none'],
  ['crafted', 'gzip'],
  ['deletions', 'gzip'],
]

const PAX_OPTION = '--pax-option=delete=atime,delete=ctime'

/** Moves names and hard links, but not the targets of symbolic links, into a folder. */
function under(folder: string): string {
  return `--transform=flags=rh;s,^\\.,./${folder},`
}

async function runTar(args: readonly string[]): Promise<void> {
  await runCommand('tar', ['--sort=name', '--numeric-owner', ...args])
}

type Entry = Partial<Header> & { readonly name: string; readonly body?: string }

const folder = (name: string, more: Partial<Header> = {}): Entry => ({
  name,
  type: 'directory',
  mode: 0o755,
  ...more,
})

const CRAFTED: readonly Entry[] = [
  folder('./'),
  folder('crafted/'),
  { name: 'crafted/implied/by/name/file', body: 'its folders stand nowhere in the tar' },
  // Of entries with one name the last one counts.
  { name: 'crafted/twice', body: 'first', mode: 0o600 },
  { name: 'crafted/linked-to-first', type: 'link', linkname: 'crafted/twice' },
  { name: 'crafted/twice', body: 'second', mode: 0o640 },
  { name: 'crafted/linked-to-second', type: 'link', linkname: './crafted/twice' },
  { name: 'crafted/file-then-link', body: 'a file' },
  { name: 'crafted/file-then-link', type: 'symlink', linkname: 'twice' },
  { name: 'crafted/link-then-file', type: 'symlink', linkname: 'twice' },
  { name: 'crafted/link-then-file', body: 'a file, and not written through the link' },
  { name: 'crafted/file-then-folder', body: 'a file' },
  folder('crafted/file-then-folder/'),
  { name: 'crafted/file-then-folder/inside', body: 'inside' },
  folder('crafted/folder-twice/', { mode: 0o700, uid: 1 }),
  { name: 'crafted/folder-twice/stays', body: 'stays' },
  folder('crafted/folder-twice/', { mode: 0o711, uid: 2 }),
  // Forms of a name.
  { name: './crafted/dot-slash', body: 'x' },
  { name: '/crafted/absolute', body: 'x' },
  { name: 'crafted//double//slash', body: 'x' },
  { name: 'crafted/./dot/./inside', body: 'x' },
  folder('crafted/no-slash-at-the-end'),
  { name: 'crafted/pax', pax: { path: 'crafted/name-from-pax', mtime: '1234567890.000000007' } },
  { name: 'crafted/pax-xattr', pax: { 'SCHILY.xattr.user.crafted': 'yes' }, body: 'x' },
  { name: 'crafted/pax-owner', pax: { uid: '3000000', gid: '4000000' }, body: 'x' },
  { name: 'crafted/named-owner', uname: 'nobody', gname: 'nogroup', uid: 5, gid: 6, body: 'x' },
]

const DELETIONS: readonly Entry[] = [
  folder('./'),
  // Files, folders and links of lower layers; and what was never there.
  { name: 'sizes/.wh.4096' },
  { name: 'sizes/.wh.many' },
  { name: 'links/.wh.dangling' },
  { name: 'links/.wh.second' },
  { name: 'devices/.wh.fifo' },
  { name: '.wh.owners' },
  { name: 'sizes/.wh.never-there' },
  // Deleted and made again, as something else.
  { name: 'modes/.wh.file-0644' },
  { name: 'posix/.wh.devices' },
  { name: 'posix/devices', body: 'no folder any more' },
  // Opaque: what is below is hidden, what this layer brings is not, wherever the mark stands.
  folder('posix/sizes/', { mode: 0o750 }),
  { name: 'posix/sizes/before-the-mark', body: 'x' },
  { name: 'posix/sizes/.wh..wh..opq' },
  { name: 'posix/sizes/after-the-mark', body: 'x' },
  { name: 'posix/names/.wh..wh..opq' },
  // Over a lower layer's entry of another type, without a deletion.
  { name: 'sparse/islands', type: 'symlink', linkname: 'only-a-hole' },
  folder('modes/file-0600/', { mode: 0o700 }),
  { name: 'modes/folder-0755', body: 'a file now' },
  // Only the attributes change.
  folder('modes/folder-0777/', { mode: 0o701, uid: 9 }),
]

async function writeTar(path: string, entries: readonly Entry[]): Promise<void> {
  const tar = pack()
  const written = pipeline(tar, createWriteStream(path))
  for (const { body = '', ...header } of entries) {
    tar.entry({ mode: 0o644, mtime: new Date('2017-07-17T17:17:17Z'), ...header }, body)
  }
  tar.finalize()
  await written
}
