import {
  chmodSync,
  chownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { status } from '@grpc/grpc-js'
import { afterAll, beforeAll, describe, expect, test as plainTest } from 'vitest'
import type { Timestamp__Output } from '../../proto/types/google/protobuf/Timestamp.ts'
import { mountAll } from '../support/mount-all.ts'
import {
  type Labels,
  type SnapshotsClient,
  serveSnapshots,
  type TestSnapshotter,
} from '../support/snapshots-client.ts'

// The checks that containerd has every snapshotter pass (its package core/snapshots/testsuite), by their names there,
// against our service on its socket and with real mounts. Each has a root and a server of its own.

const test = plainTest.extend<{ suite: Suite }>({
  suite: async ({ task: _task }, use) => {
    const dir = mkdtempSync(join(tmpdir(), 'suite-'))
    try {
      await using served = await serveSnapshots(newDir(dir, 'root'))
      await use({ ...served, work: newDir(dir, 'work') })
    } finally {
      rmSync(dir, { recursive: true })
    }
  },
})

let umask = 0
beforeAll(() => {
  umask = process.umask(0)
})
afterAll(() => {
  process.umask(umask)
})

const gcRoot: Labels = { 'containerd.io/gc.root': '2026-01-01T00:00:00Z' }

describe.concurrent('containerd snapshotter suite', { timeout: 60_000 }, () => {
  test('Basic', async ({ suite: { client, work } }) => {
    const first = [
      file('/foo', 'foo\n', 0o777),
      directory('/a', 0o755),
      directory('/a/b', 0o755),
      directory('/a/b/c', 0o755),
    ]
    const second = [file('/bar', 'bar\n', 0o777), file('/foo', 'bar\n', 0o777), gone('/a/b')]
    const flat = newDir(work, 'flat')

    const preparing = newDir(work, 'preparing')
    await inMount(await client.prepare(preparing, '', gcRoot), preparing, () => {
      apply(first, preparing)
    })
    const committed = join(work, 'committed')
    await client.commit(committed, preparing, { labels: gcRoot })
    const info = await client.stat(committed)
    expect(info).toMatchObject({ parent: '', kind: 'COMMITTED' })
    await expect(client.stat(preparing)).rejects.toMatchObject({ code: status.NOT_FOUND })

    const next = newDir(work, 'nextlayer')
    apply(first, flat)
    await inMount(await client.prepare(next, committed, gcRoot), next, () => {
      expect(treeOf(next)).toEqual(treeOf(flat))
      apply(second, next)
    })
    expect(await client.stat(next)).toMatchObject({ parent: committed, kind: 'ACTIVE' })
    const nextCommitted = join(work, 'committed-next')
    await client.commit(nextCommitted, next, { labels: gcRoot })
    const nextInfo = await client.stat(nextCommitted)
    expect(nextInfo).toMatchObject({ parent: committed, kind: 'COMMITTED' })
    await expect(client.stat(next)).rejects.toMatchObject({ code: status.NOT_FOUND })

    expect(new Set(await all(client.walk()))).toEqual(new Set([info, nextInfo]))

    const view = newDir(work, 'nextnextlayer')
    apply(second, flat)
    await inMount(await client.view(view, nextCommitted, gcRoot), view, () => {
      expect(treeOf(view)).toEqual(treeOf(flat))
    })
    await client.remove(view)
    await expect(client.remove(committed)).rejects.toMatchObject({
      code: status.FAILED_PRECONDITION,
      details: expect.stringContaining('remove'),
    })
    await client.remove(nextCommitted)
    await client.remove(committed)
  })

  test('StatActive', async ({ suite: { client, work } }) => {
    const preparing = newDir(work, 'preparing')
    await inMount(await client.prepare(preparing, '', gcRoot), preparing, () => undefined)
    expect(await client.stat(preparing)).toMatchObject({
      name: preparing,
      kind: 'ACTIVE',
      parent: '',
    })
  })

  test('StatComitted', async ({ suite: { client, work } }) => {
    const preparing = newDir(work, 'preparing')
    await inMount(await client.prepare(preparing, '', gcRoot), preparing, () => undefined)
    const committed = join(work, 'committed')
    await client.commit(committed, preparing, { labels: gcRoot })
    expect(await client.stat(committed)).toMatchObject({
      name: committed,
      kind: 'COMMITTED',
      parent: '',
    })
  })

  test('TransitivityTest', async ({ suite: { client, work } }) => {
    const snapA = await commitLayer(client, work, '', [file('/foo', 'foo\n', 0o777)])
    const snapB = await commitLayer(client, work, snapA, [file('/foo', 'foo bar\n', 0o777)])
    const infoB = await client.stat(snapB)
    expect(infoB.parent).toBe(snapA)
    expect((await client.stat(snapA)).parent).toBe('')
    expect((await client.stat(infoB.parent)).parent).toBe('')
  })

  test('PreareViewFailingtest', async ({ suite: { client, work } }) => {
    const snapA = await commitLayer(client, work, '', [])
    const taken = { code: status.ALREADY_EXISTS }
    await client.prepare('newlayer', snapA, gcRoot)
    await expect(client.view('newlayer', snapA, gcRoot)).rejects.toMatchObject(taken)
    await client.prepare('prepLayer', snapA, gcRoot)
    await expect(client.prepare('prepLayer', snapA, gcRoot)).rejects.toMatchObject(taken)
    await client.view('viewLayer', snapA, gcRoot)
    await expect(client.view('viewLayer', snapA, gcRoot)).rejects.toMatchObject(taken)
  })

  test('Update', async ({ suite: { client } }) => {
    const t1 = msNow()
    await createBaseSnapshots(client, '')
    await client.prepare('a2', '', gcRoot)
    await client.view('v2', '', gcRoot)
    const t2 = msNow() + 1n
    const expected = [
      { name: 'c1', kind: 'COMMITTED', parent: '' },
      { name: 'c2', kind: 'COMMITTED', parent: 'c1' },
      { name: 'a1', kind: 'ACTIVE', parent: 'c2' },
      { name: 'a2', kind: 'ACTIVE', parent: '' },
      { name: 'v1', kind: 'VIEW', parent: 'c2' },
      { name: 'v2', kind: 'VIEW', parent: '' },
    ]
    for (const immutable of expected) {
      const born = await client.stat(immutable.name)
      expect(born).toMatchObject(immutable)
      expect(nsOf(born.createdAt)).toBeGreaterThanOrEqual(t1 * 1_000_000n)
      expect(nsOf(born.createdAt)).toBeLessThanOrEqual(t2 * 1_000_000n)
      expect(born.updatedAt).toEqual(born.createdAt)

      const labels = { l1: 'v1', l2: 'v2', l3: 'v3', ...gcRoot }
      const u1 = msNow()
      const all = await client.update({ ...born, parent: 'doesnotexist', labels })
      const u2 = msNow() + 1n
      expect(all).toMatchObject({ ...immutable, createdAt: born.createdAt })
      expect(all.labels).toEqual(labels)
      expect(nsOf(all.updatedAt)).toBeGreaterThanOrEqual(u1 * 1_000_000n)
      expect(nsOf(all.updatedAt)).toBeLessThanOrEqual(u2 * 1_000_000n)

      const some = await client.update(
        { ...all, labels: { l1: 'updated', l4: 'v4' } },
        'labels.l1',
        'labels.l2',
      )
      expect(some.labels).toEqual({ l1: 'updated', l3: 'v3', ...gcRoot })

      const replaced = await client.update({ ...some, labels: { l4: 'v4', ...gcRoot } }, 'labels')
      expect(replaced.labels).toEqual({ l4: 'v4', ...gcRoot })

      await expect(
        client.update({ ...replaced, parent: 'doesnotexist' }, 'parent'),
      ).rejects.toMatchObject({ code: status.INVALID_ARGUMENT })
    }
  })

  test('Remove', async ({ suite: { client } }) => {
    await client.prepare('committed-a', '', gcRoot)
    await client.commit('committed-1', 'committed-a', { labels: gcRoot })
    await client.prepare('reuse-1', 'committed-1', gcRoot)
    await client.remove('reuse-1')
    await client.view('reuse-1', 'committed-1', gcRoot)
    await client.remove('reuse-1')
    await client.prepare('reuse-1', '', gcRoot)
    await client.remove('committed-1')
    await client.commit('committed-1', 'reuse-1', { labels: gcRoot })
    expect((await all(client.walk())).map(({ name }) => name)).toEqual(['committed-1'])
  })

  test('Walk', async ({ suite: { client } }) => {
    const labels = { 'containerd.io/gc.root': 'check-walk' }
    await client.prepare('a-np', '', labels)
    await client.prepare('p-tmp', '', labels)
    await client.commit('p', 'p-tmp', { labels })
    await client.prepare('a', 'p', labels)
    await client.view('v', 'p', labels)
    await client.prepare('p-wl-tmp', '', labels)
    await client.commit('p-wl', 'p-wl-tmp', { labels: { l: '1', ...labels } })
    await client.prepare('a-wl', 'p-wl', { l: '2', ...labels })
    await client.view('v-wl', 'p-wl', { l: '3', ...labels })
    await client.prepare('a-np-wl', '', { l: '2', ...labels })
    const ours = 'labels."containerd.io/gc.root"==check-walk'
    const cases: [filters: string[], matches: string[]][] = [
      [[ours], ['a-np', 'p', 'a', 'v', 'p-wl', 'a-wl', 'v-wl', 'a-np-wl']],
      [[`kind==active,${ours}`], ['a-np', 'a', 'a-wl', 'a-np-wl']],
      [[`kind==view,${ours}`], ['v', 'v-wl']],
      [[`kind==committed,${ours}`], ['p', 'p-wl']],
      [
        ['name==p', 'name==a-np-wl'],
        ['p', 'a-np-wl'],
      ],
      [['name==a-wl,labels.l'], ['a-wl']],
      [['parent==p'], ['a', 'v']],
      [[`parent!="",${ours}`], ['a', 'v', 'a-wl', 'v-wl']],
      [['labels.l'], ['p-wl', 'a-wl', 'v-wl', 'a-np-wl']],
      [['labels.l==2'], ['a-wl', 'a-np-wl']],
    ]
    for (const [filters, matches] of cases) {
      const walked = (await all(client.walk(...filters))).map(({ name }) => name)
      expect({ filters, names: walked.toSorted() }).toEqual({ filters, names: matches.toSorted() })
    }
  })

  test('LayerFileupdate', async ({ suite }) => {
    const layers = [
      [
        directory('/etc', 0o700),
        file('/etc/hosts', 'mydomain 10.0.0.1', 0o644),
        file('/etc/profile', 'PATH=/usr/bin', 0o644),
      ],
      [
        file('/etc/hosts', 'mydomain 10.0.0.2', 0o644),
        file('/etc/profile', 'PATH=/usr/bin', 0o666),
        directory('/root', 0o700),
        file('/root/.bashrc', 'PATH=/usr/sbin:/usr/bin', 0o644),
      ],
    ]
    for (let round = 0; round < 5; round++) {
      const { seen, expected } = await buildLayers(suite, layers)
      expect(seen).toEqual(expected)
      // The subject of the check: files of equal size whose times fall into one second, and into two.
      await setTimeout(1_000 - (Date.now() % 1_000))
    }
  })

  test('RemoveDirectoryInLowerLayer', async ({ suite }) => {
    const { seen, expected } = await buildLayers(suite, [
      [directory('/lib', 0o700), file('/lib/hidden', '', 0o644)],
      [gone('/lib'), directory('/lib', 0o700), file('/lib/not-hidden', '', 0o644)],
      [file('/lib/newfile', '', 0o644)],
    ])
    expect(seen).toEqual(expected)
  })

  test('Chown', async ({ suite }) => {
    const { seen, expected } = await buildLayers(suite, [
      [
        directory('/opt', 0o700),
        directory('/opt/a', 0o700),
        directory('/opt/a/b', 0o700),
        file('/opt/a/b/file.txt', 'hello', 0o644),
      ],
      [
        owned('/opt', 1, 1),
        owned('/opt/a', 1, 1),
        owned('/opt/a/b', 1, 1),
        owned('/opt/a/b/file.txt', 1, 1),
      ],
    ])
    expect(seen).toEqual(expected)
  })

  test('DirectoryPermissionOnCommit', async ({ suite }) => {
    const { seen, expected } = await buildLayers(suite, [
      [
        directory('/dir1', 0o700),
        directory('/dir2', 0o700),
        directory('/dir3', 0o700),
        directory('/dir4', 0o700),
        file('/dir4/f1', '...', 0o644),
        directory('/dir5', 0o700),
        file('/dir5/f1', '...', 0o644),
        owned('/dir1', 1, 1),
        owned('/dir2', 1, 1),
        owned('/dir3', 1, 1),
        owned('/dir5', 1, 1),
        owned('/dir5/f1', 1, 1),
      ],
      [owned('/dir2', 0, 0), gone('/dir3'), owned('/dir4', 1, 1), owned('/dir4/f1', 1, 1)],
      [
        directory('/dir3', 0o700),
        owned('/dir3', 1, 1),
        gone('/dir5'),
        directory('/dir5', 0o700),
        owned('/dir5', 1, 1),
      ],
    ])
    expect(seen).toEqual(expected)
  })

  test('RemoveIntermediateSnapshot', async ({ suite: { client, work } }) => {
    const base = await commitLayer(client, work, '', [])
    await client.prepare('intermediate', base, gcRoot)
    await client.commit('committed-inter', 'intermediate', { labels: gcRoot })
    await client.prepare('toplayer', 'committed-inter', gcRoot)
    await expect(client.remove('committed-inter')).rejects.toMatchObject({
      code: status.FAILED_PRECONDITION,
    })
    await client.remove('toplayer')
    await client.remove('committed-inter')
    await client.remove(base)
  })

  test('DeletedFilesInChildSnapshot', async ({ suite }) => {
    const { seen, expected } = await buildLayers(suite, [
      [file('/foo', 'foo\n', 0o777), file('/foobar', 'foobar\n', 0o777)],
      [gone('/foobar')],
      [],
    ])
    expect(seen).toEqual(expected)
  })

  test('MoveFileFromLowerLayer', async ({ suite }) => {
    const { seen, expected } = await buildLayers(suite, [
      [
        directory('/dir1', 0o700),
        file('/dir1/f1', 'Hello', 0o644),
        directory('/dir2', 0o700),
        file('/dir2/f2', '...', 0o644),
      ],
      [
        directory('/dir3', 0o700),
        file('/dir3/f1', 'Hello', 0o644),
        gone('/dir1'),
        linked('/dir2/f2', '/dir3/f2'),
        gone('/dir2/f2'),
      ],
    ])
    expect(seen).toEqual(expected)
  })

  test('ViewReadonly', async ({ suite: { client, work } }) => {
    await client.prepare('preparing', '', gcRoot)
    await client.commit('committed', 'preparing', { labels: gcRoot })
    const mounts = await client.view('view', 'committed', gcRoot)
    const target = newDir(work, 'view-mount')
    await inMount(mounts, target, () => {
      expect(() => writeFileSync(join(target, 'testfile'), 'testcontent')).toThrow(/EROFS/)
    })
    await client.remove('view')
    await client.remove('committed')
  })

  test('StatInWalk', async ({ suite: { client } }) => {
    await createBaseSnapshots(client, 'stats-in-walk-')
    const walked: string[] = []
    for await (const info of client.walk()) {
      expect(await client.stat(info.name)).toEqual(info)
      walked.push(info.name)
    }
    expect(walked).toHaveLength(4)
  })

  test('CloseTwice', async ({ suite: { client, snapshots } }) => {
    await client.prepare('prepare', '', gcRoot)
    await client.commit('close-twice', 'prepare', { labels: gcRoot })
    await client.remove('close-twice')
    await snapshots[Symbol.asyncDispose]()
    await expect(snapshots[Symbol.asyncDispose]()).resolves.toBeUndefined()
  })

  test('RootPermission', async ({ suite: { client, work } }) => {
    const preparing = newDir(work, 'preparing')
    await inMount(await client.prepare(preparing, '', gcRoot), preparing, () => {
      expect(statSync(preparing).mode & 0o777).toBe(0o755)
    })
  })

  // As containerd does for overlayfs: it cannot rename a directory of a lower layer without redirect_dir.
  test('Rename', async ({ suite }) => {
    const { seen, expected } = await buildLayers(suite, [
      [
        directory('/dir1', 0o700),
        directory('/somefiles', 0o700),
        file('/somefiles/f1', 'was here first!', 0o644),
        file('/somefiles/f2', 'nothing interesting', 0o644),
      ],
      [
        file('/somefiles/f1-overwrite', 'new content 1', 0o644),
        renamed('/somefiles/f1-overwrite', '/somefiles/f1'),
        renamed('/somefiles/f2', '/somefiles/f3'),
      ],
    ])
    expect(seen).toEqual(expected)
  })

  test('128LayersMount', async ({ suite: { client, work } }) => {
    const layers: Change[][] = [
      [
        file('/bottom', 'way at the bottom\n', 0o777),
        file('/overwriteme', 'FIRST!\n', 0o777),
        directory('/addhere', 0o755),
        directory('/onlyme', 0o755),
        file('/onlyme/bottom', 'bye!\n', 0o777),
      ],
    ]
    for (let layer = 1; layer <= 127; layer++) {
      layers.push([
        file('/overwriteme', `${layer} WAS HERE!\n`, 0o777),
        file(`/addhere/file-${layer}`, 'same\n', 0o755),
        gone('/onlyme'),
        directory('/onlyme', 0o755),
        file(`/onlyme/file-${layer}`, 'only me!\n', 0o777),
      ])
    }
    const flat = newDir(work, 'flat')
    let parent = ''
    for (const [layer, changes] of layers.entries()) {
      const preparing = newDir(work, `prepare-layer-${layer}`)
      await inMount(await client.prepare(preparing, parent, gcRoot), preparing, () => {
        expect(treeOf(preparing)).toEqual(treeOf(flat))
        apply(changes, flat)
        apply(changes, preparing)
        expect(treeOf(preparing)).toEqual(treeOf(flat))
      })
      parent = join(work, `committed-${layer}`)
      await client.commit(parent, preparing, { labels: gcRoot })
    }
    const view = newDir(work, 'fullview')
    await inMount(await client.view(view, parent, gcRoot), view, () => {
      expect(treeOf(view)).toEqual(treeOf(flat))
    })
  })
})

type Suite = Omit<TestSnapshotter, typeof Symbol.asyncDispose> & { readonly work: string }

/**
 * Makes a snapshot of every layer on top of the last. Each is `seen` in a view and `expected` from a plain directory
 * that was changed in the same way.
 */
async function buildLayers(
  { client, work }: Suite,
  layers: readonly Change[][],
): Promise<{ seen: Tree[]; expected: Tree[] }> {
  const flat = mkdtempSync(join(work, 'flat-'))
  const [seen, expected]: [Tree[], Tree[]] = [[], []]
  let parent = ''
  for (const changes of layers) {
    parent = await commitLayer(client, work, parent, changes)
    apply(changes, flat)
    expected.push(treeOf(flat))
    const target = mkdtempSync(join(work, 'check-'))
    await inMount(await client.view(`${parent}-view`, parent, gcRoot), target, () => {
      seen.push(treeOf(target))
    })
    await client.remove(`${parent}-view`)
  }
  return { seen, expected }
}

/** The name of a committed snapshot with these changes to its parent. */
async function commitLayer(
  client: SnapshotsClient,
  work: string,
  parent: string,
  changes: readonly Change[],
): Promise<string> {
  const target = mkdtempSync(join(work, 'prepare-'))
  await inMount(await client.prepare(target, parent, gcRoot), target, () => {
    apply(changes, target)
  })
  const name = `${target}-committed`
  await client.commit(name, target, { labels: gcRoot })
  return name
}

async function createBaseSnapshots(client: SnapshotsClient, prefix: string): Promise<void> {
  const [c1, c2] = [`${prefix}c1`, `${prefix}c2`]
  await client.prepare(`${c1}-a`, '', gcRoot)
  await client.commit(c1, `${c1}-a`, { labels: gcRoot })
  await client.prepare(`${c2}-a`, c1, gcRoot)
  await client.commit(c2, `${c2}-a`, { labels: gcRoot })
  await client.prepare(`${prefix}a1`, c2, gcRoot)
  await client.view(`${prefix}v1`, c2, gcRoot)
}

async function inMount(
  mounts: Parameters<typeof mountAll>[0],
  target: string,
  work: () => void,
): Promise<void> {
  if (mounts.length === 0) throw new Error('no mounts')
  await using _mounted = await mountAll(mounts, target)
  work()
}

async function all<Item>(items: AsyncIterable<Item>): Promise<Item[]> {
  const list: Item[] = []
  for await (const item of items) list.push(item)
  return list
}

/** A change to a directory tree, given its root. */
type Change = (root: string) => void

function apply(changes: readonly Change[], root: string): void {
  for (const change of changes) change(root)
}

function file(path: string, content: string, mode: number): Change {
  return (root) => {
    writeFileSync(join(root, path), content, { mode })
    // Of a file that was there already, too.
    chmodSync(join(root, path), mode)
  }
}

function directory(path: string, mode: number): Change {
  return (root) => mkdirSync(join(root, path), { mode })
}

function gone(path: string): Change {
  return (root) => rmSync(join(root, path), { recursive: true })
}

function owned(path: string, uid: number, gid: number): Change {
  return (root) => chownSync(join(root, path), uid, gid)
}

function linked(from: string, to: string): Change {
  return (root) => linkSync(join(root, from), join(root, to))
}

function renamed(from: string, to: string): Change {
  return (root) => renameSync(join(root, from), join(root, to))
}

/** What is at each path. */
type Tree = Record<string, string>

/** Every path below `root` with all that a layer keeps of it. */
function treeOf(root: string): Tree {
  const tree: Tree = {}
  for (const path of readdirSync(root, { recursive: true, encoding: 'utf8' })) {
    const full = join(root, path)
    const { mode, uid, gid, nlink } = lstatSync(full)
    const isDirectory = (mode & 0o170000) === 0o040000
    const isLink = (mode & 0o170000) === 0o120000
    const content = isDirectory ? '' : isLink ? readlinkSync(full) : readFileSync(full, 'utf8')
    const links = isDirectory ? '' : ` ${nlink} links`
    tree[path] = `${mode.toString(8)} ${uid}:${gid}${links} ${content}`
  }
  return tree
}

function newDir(parent: string, name: string): string {
  const path = join(parent, name)
  mkdirSync(path, { mode: 0o777 })
  return path
}

function msNow(): bigint {
  return BigInt(Date.now())
}

function nsOf(time: Timestamp__Output | null): bigint {
  if (time === null) throw new Error('no time')
  return BigInt(time.seconds) * 1_000_000_000n + BigInt(time.nanos)
}
