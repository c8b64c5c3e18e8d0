import { createHash } from 'node:crypto'
import {
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { expect, onTestFinished, test } from 'vitest'
import { completeEntries, type LayerEntry } from '../../node-image/image/layer-entry.ts'
import { neededPackages } from '../../node-image/image/npm-packages.ts'
import { treeEntries } from '../../node-image/image/tree-entries.ts'
import { writeLayer } from '../../node-image/image/write-layer.ts'
import { writeLayout } from '../../node-image/image/write-layout.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'

const created = new Date('2026-01-02T03:04:05Z')

function openScratch(): Scratch {
  const scratch = Scratch.open('image')
  onTestFinished(() => scratch[Symbol.asyncDispose]())
  return scratch
}

/** A small tree; what differs from run to run is in `seconds` and in the order in which files are made. */
function makeTree(dir: string, { names, seconds }: { names: string[]; seconds: number }): string {
  mkdirSync(join(dir, 'folder/empty'), { recursive: true })
  for (const name of names) {
    const path = join(dir, 'folder', name)
    writeFileSync(path, `this is ${name}`, { mode: name === 'program' ? 0o700 : 0o600 })
    utimesSync(path, seconds, seconds)
  }
  symlinkSync('program', join(dir, 'folder/link'))
  return dir
}

test('the same files in the same image, whenever and in whatever order they were made', async () => {
  const { dir } = openScratch()
  const made = [
    { names: ['program', 'text', 'a'.repeat(150)], seconds: 1_000 },
    { names: ['a'.repeat(150), 'text', 'program'], seconds: 2_000 },
  ]
  const digests: string[] = []
  for (const [number, how] of made.entries()) {
    const tree = makeTree(join(dir, `tree-${number}`), how)
    const layout = join(dir, `layout-${number}`)
    const blobs = join(layout, 'blobs/sha256')
    mkdirSync(blobs, { recursive: true })
    const layer = await writeLayer('files', treeEntries(tree), { blobs, mtime: created })
    const config = { Entrypoint: [], Cmd: [], Env: [], WorkingDir: '/', Labels: {} }
    const image = writeLayout(layout, { layers: [layer], config, created, tag: '1' })
    digests.push(image.digest)
    for (const name of readdirSync(blobs)) {
      const bytes = readFileSync(join(blobs, name))
      expect(createHash('sha256').update(bytes).digest('hex')).toBe(name)
    }
    const tar = gunzipSync(readFileSync(join(blobs, layer.digest.slice(7))))
    expect(layer.diffId).toBe(`sha256:${createHash('sha256').update(tar).digest('hex')}`)
  }
  expect(digests[1]).toBe(digests[0])
  const listed = await runCommand('skopeo', ['inspect', `oci:${join(dir, 'layout-0')}:1`])
  const { Digest, Created } = JSON.parse(listed) as { Digest: string; Created: string }
  expect([Digest, new Date(Created)]).toEqual([digests[0], created])
})

test('what is in a layer belongs to root, has no umask in it, and lies in folders', async () => {
  const { dir } = openScratch()
  const tree = makeTree(join(dir, 'tree'), { names: ['program', 'text'], seconds: 1 })
  const entries: LayerEntry[] = [
    ...treeEntries(tree, { under: 'opt', isWanted: (path) => !path.endsWith('link') }),
    { kind: 'folder', path: 'tmp', mode: 0o1777 },
    { kind: 'link', path: 'bin', target: 'opt/folder' },
  ]
  const { digest } = await writeLayer('files', entries, { blobs: dir, mtime: created })
  const path = join(dir, digest.slice(7))
  const listed = await runCommand('tar', ['--numeric-owner', '--utc', '-tvf', path])
  expect(listed.trim().replaceAll(/ +/g, ' ').split('\n')).toEqual([
    'lrwxrwxrwx 0/0 0 2026-01-02 03:04 bin -> opt/folder',
    'drwxr-xr-x 0/0 0 2026-01-02 03:04 opt/',
    'drwxr-xr-x 0/0 0 2026-01-02 03:04 opt/folder/',
    '-rwxr-xr-x 0/0 15 2026-01-02 03:04 opt/folder/program',
    '-rw-r--r-- 0/0 12 2026-01-02 03:04 opt/folder/text',
    'drwxrwxrwt 0/0 0 2026-01-02 03:04 tmp/',
  ])
})

test('two entries of one name are an error, not a matter of chance', () => {
  const entry = { kind: 'folder', path: 'a', mode: 0o755 } as const
  expect(() => completeEntries([entry, entry])).toThrow('two entries are called a')
})

test('of npm packages stays what dependencies lead to, each in the version that its user finds', () => {
  const packages = {
    '': { dependencies: { a: '1', other: '1' } },
    'node_modules/a': {
      dependencies: { '@s/b': '1', c: '2' },
      peerDependencies: { compiler: '1' },
    },
    'node_modules/a/node_modules/c': { optionalDependencies: { native: '1' } },
    'node_modules/@s/b': { dependencies: { c: '1', a: '1' } },
    'node_modules/c': {},
    'node_modules/native': {},
    'node_modules/compiler': {},
    'node_modules/other': {},
  }
  expect([...neededPackages({ packages }, ['a'])].toSorted()).toEqual([
    'node_modules/@s/b',
    'node_modules/a',
    'node_modules/a/node_modules/c',
    'node_modules/c',
    'node_modules/native',
  ])
})
