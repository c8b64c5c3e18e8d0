import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { SnapshotError } from '../../../snapshotter/errors.ts'
import type {
  ClaimedLayer,
  ClaimRequest,
  LazyLayers,
  RecalledLayer,
} from '../../../snapshotter/snapshots/lazy-layers.ts'
import { type Labels, type Mount, Snapshots } from '../../../snapshotter/snapshots/snapshots.ts'

const { signal } = new AbortController()
const log = pino({ level: 'silent' })
const none: Labels = new Map()

let root = ''
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'snapshots-'))
})
afterEach(() => {
  rmSync(root, { recursive: true })
})

/** Layers by chain ID, each "mounted" as a directory; it remembers what it was asked. */
class FakeLayers implements LazyLayers {
  readonly known = new Map<string, number>()
  /** Where they are not the chain ID, as of all layers but the bottom of an image. */
  readonly diffIds = new Map<string, string>()
  readonly claims: ClaimRequest[] = []
  readonly chains: number[][] = []
  readonly releases: number[] = []
  /** Thrown by lowerDirs if set. */
  failure: Error | undefined
  /** What is remembered of images, by the chain ID of their uppermost layer. */
  readonly remembered = new Map<string, readonly RecalledLayer[]>()
  readonly recalls: string[] = []

  /** Layers that were deleted since they were claimed. */
  readonly gone = new Set<number>()

  holds(layer: number): boolean {
    return !this.gone.delete(layer)
  }

  async recall(layerChainId: string): Promise<readonly RecalledLayer[] | undefined> {
    this.recalls.push(layerChainId)
    return this.remembered.get(layerChainId)
  }

  async claim(request: ClaimRequest): Promise<ClaimedLayer | undefined> {
    this.claims.push(request)
    const { layerChainId } = request
    const layer = this.known.get(layerChainId)
    const diffId = this.diffIds.get(layerChainId) ?? layerChainId
    return layer === undefined ? undefined : { layer, diffId, size: 1_000n, inodes: 10n }
  }

  async lowerDirs(chain: readonly { layer: number }[]): Promise<string[]> {
    if (this.failure !== undefined) throw this.failure
    this.chains.push(chain.map(({ layer }) => layer))
    return chain.map(({ layer }) => this.dir(layer))
  }

  async released(layer: number): Promise<void> {
    this.releases.push(layer)
  }

  dir(layer: number): string {
    const dir = join(root, 'm', String(layer))
    mkdirSync(dir, { recursive: true })
    return dir
  }
}

const refOf = (layerChainId: string): Labels =>
  new Map([['containerd.io/snapshot.ref', layerChainId]])

async function open(layers: LazyLayers = new FakeLayers()): Promise<Snapshots> {
  return await Snapshots.open({ root }, { layers, log })
}

/** Prepares and commits a snapshot in the ordinary way. */
async function unpack(snapshots: Snapshots, name: string, parent?: string): Promise<void> {
  await snapshots.prepare({ key: `${name}-key`, parent, labels: none }, signal)
  await snapshots.commit({ key: `${name}-key`, name, parent: undefined, labels: none }, signal)
}

function directoryNames(): string[] {
  return readdirSync(join(root, 'snapshots'))
}

function failsWith(code: string): unknown {
  return expect.objectContaining({ code })
}

describe('a committed snapshot that was lost', () => {
  const [lower, upper] = ['1', '2'].map((digit) => `sha256:${digit.repeat(64)}`) as [string, string]
  const claimedAs = (layer: number): ClaimedLayer => ({
    layer,
    diffId: `sha256:d${layer}`,
    size: 1_000n,
    inodes: 10n,
  })

  /** Two layers of an image that is remembered. */
  function rememberedLayers(): FakeLayers {
    const layers = new FakeLayers()
    layers.remembered.set(upper, [
      { layerChainId: lower, claimed: claimedAs(1) },
      { layerChainId: upper, claimed: claimedAs(2) },
    ])
    return layers
  }

  test('is there again when it is asked for, and all below it', async () => {
    await using snapshots = await open(rememberedLayers())
    expect(await snapshots.stat(upper, signal)).toMatchObject({ kind: 'committed', parent: lower })
    expect((await snapshots.stat(lower, signal)).parent).toBeUndefined()
    expect(snapshots.layersUnder(upper)).toEqual([1])
  })

  test('can be built on at once, also by several at a time and under the name that containerd has for it', async () => {
    const layers = rememberedLayers()
    await using snapshots = await open(layers)
    const parents = [`k8s.io/3/${upper}`, `${upper}@7`, upper, upper]
    const keys = await Promise.all(
      parents.map(async (parent, index) => {
        const key = `k${index}`
        await snapshots.prepare({ key, parent, labels: none }, signal)
        return key
      }),
    )
    for (const key of keys) expect(snapshots.layersUnder(key)).toEqual([2, 1])
    expect((await snapshots.stat(`k8s.io/3/${upper}`, signal)).parent).toBe(lower)
  })

  test('is unpacked anew where it was no layer of ours, and is not there if that fails', async () => {
    const layers = new FakeLayers()
    const mounts: string[] = []
    const unpack = async ([mount]: readonly Mount[]): Promise<void> => {
      mounts.push(mount?.type ?? '')
      if (mounts.length === 2) throw new SnapshotError('NOT_FOUND', 'its blob is gone')
      writeFileSync(
        join(
          mount?.options.find((each) => each.startsWith('upperdir='))?.slice(9) ??
            mount?.source ??
            '',
          'file',
        ),
        'here',
      )
    }
    layers.remembered.set(upper, [
      { layerChainId: lower, unpack },
      { layerChainId: upper, unpack },
    ])
    await using snapshots = await open(layers)
    const name = `k8s.io/3/${upper}`
    await expect(snapshots.stat(name, signal)).rejects.toThrow('its blob is gone')
    expect(mounts).toEqual(['bind', 'overlay'])
    // What was unpacked before is kept, and nothing else.
    expect([...snapshots.list([])].flat().map((each) => each.name)).toEqual([lower])
    expect(await snapshots.stat(name, signal)).toMatchObject({ parent: lower })
    expect(mounts).toHaveLength(3)
    expect((await snapshots.usage(name, signal)).inodes).toBeGreaterThan(0n)
  })

  test('stays lost if nobody knows its image, which is not asked again and again', async () => {
    const layers = new FakeLayers()
    await using snapshots = await open(layers)
    for (let attempt = 0; attempt < 3; attempt++) {
      await expect(snapshots.stat(upper, signal)).rejects.toEqual(failsWith('NOT_FOUND'))
    }
    expect(layers.recalls).toEqual([upper])
    for (const name of ['container', 'k8s.io/4/container', 'sha256:1', `x/${upper}`]) {
      await expect(snapshots.stat(name, signal)).rejects.toEqual(failsWith('NOT_FOUND'))
    }
    expect(layers.recalls).toEqual([upper])
  })
})

describe('a Prepare that asks for a layer by its chain ID', () => {
  test('commits the layer on the parent that was given, so that containerd finds it', async () => {
    const layers = new FakeLayers()
    layers.known.set('sha256:c1', 1).set('sha256:c2', 2)
    await using snapshots = await open(layers)
    const first = await snapshots.prepare(
      { key: 'extract-1 sha256:c1', parent: undefined, labels: refOf('sha256:c1') },
      signal,
    )
    expect(first).toMatchObject({
      kind: 'committed',
      snapshot: { name: 'sha256:c1', parent: undefined },
    })
    const second = await snapshots.prepare(
      { key: 'extract-2 sha256:c2', parent: 'sha256:c1', labels: refOf('sha256:c2') },
      signal,
    )
    expect(second.kind).toBe('committed')
    const query = 'labels."containerd.io/snapshot.ref"==sha256:c2,parent=="sha256:c1"'
    const [found] = [...snapshots.list([query])].flat()
    expect(found).toMatchObject({ name: 'sha256:c2', kind: 'committed', parent: 'sha256:c1' })
    expect(await snapshots.usage('sha256:c2', signal)).toEqual({ size: 1_000n, inodes: 10n })
    expect(snapshots.layers()).toEqual(new Set([1, 2]))
    expect(directoryNames()).toEqual([])
  })

  test('hands all labels to the claim', async () => {
    const layers = new FakeLayers()
    await using snapshots = await open(layers)
    const labels = new Map([...refOf('sha256:c1'), ['containerd.io/snapshot/cri.image-ref', 'r']])
    await snapshots.prepare({ key: 'k', parent: undefined, labels }, signal)
    expect(layers.claims).toMatchObject([{ layerChainId: 'sha256:c1', labels }])
  })

  test('is a success again for another namespace, and the layer is there once', async () => {
    const layers = new FakeLayers()
    layers.known.set('sha256:c1', 1)
    await using snapshots = await open(layers)
    const labels = refOf('sha256:c1')
    const prepared = await Promise.all(
      ['k8s.io/1/extract-a', 'default/2/extract-b', 'default/3/extract-c'].map((key) =>
        snapshots.prepare({ key, parent: undefined, labels }, signal),
      ),
    )
    expect(prepared.map(({ kind }) => kind)).toEqual(['committed', 'committed', 'committed'])
    expect([...snapshots.list([])].flat()).toHaveLength(1)
  })

  test('on another parent makes another snapshot of the same layer, released with the last', async () => {
    const layers = new FakeLayers()
    layers.known.set('sha256:c2', 2)
    await using snapshots = await open(layers)
    await unpack(snapshots, 'ns1/sha256:c1')
    await unpack(snapshots, 'ns2/sha256:c1')
    const names: string[] = []
    for (const parent of ['ns1/sha256:c1', 'ns2/sha256:c1']) {
      const labels = refOf('sha256:c2')
      const prepared = await snapshots.prepare({ key: `${parent}-k`, parent, labels }, signal)
      if (prepared.kind === 'committed') names.push(prepared.snapshot.name)
    }
    expect(new Set(names).size).toBe(2)
    const [first = '', second = ''] = names
    snapshots.remove(first)
    expect(layers.releases).toEqual([])
    snapshots.remove(second)
    expect(layers.releases).toEqual([2])
    expect(snapshots.layers()).toEqual(new Set())
  })

  test('becomes an ordinary active snapshot if the layer is not ours', async () => {
    await using snapshots = await open()
    const prepared = await snapshots.prepare(
      { key: 'k', parent: undefined, labels: refOf('sha256:unknown') },
      signal,
    )
    expect(prepared.kind).toBe('active')
    expect((await snapshots.stat('k', signal)).kind).toBe('active')
  })

  test('claims a layer again that was deleted before its snapshot was there', async () => {
    const layers = new FakeLayers()
    layers.known.set('sha256:c1', 1)
    layers.gone.add(1)
    await using snapshots = await open(layers)
    const prepared = await snapshots.prepare(
      { key: 'k', parent: undefined, labels: refOf('sha256:c1') },
      signal,
    )
    expect(prepared.kind).toBe('committed')
    expect(layers.claims).toHaveLength(2)
  })

  test('fails if the layer is ours and cannot be had, and leaves nothing', async () => {
    const failure = new SnapshotError('UNAVAILABLE', 'no provider answers')
    const layers = new FakeLayers()
    layers.claim = () => Promise.reject(failure)
    await using snapshots = await open(layers)
    await expect(
      snapshots.prepare({ key: 'k', parent: undefined, labels: refOf('sha256:c1') }, signal),
    ).rejects.toBe(failure)
    expect([...snapshots.list([])]).toEqual([])
    expect(directoryNames()).toEqual([])
  })

  test('asks for nothing if the parent is unknown or not committed', async () => {
    const layers = new FakeLayers()
    await using snapshots = await open(layers)
    await snapshots.prepare({ key: 'active', parent: undefined, labels: none }, signal)
    const labels = refOf('sha256:c1')
    await expect(
      snapshots.prepare({ key: 'k', parent: 'missing', labels }, signal),
    ).rejects.toEqual(failsWith('NOT_FOUND'))
    await expect(snapshots.prepare({ key: 'k', parent: 'active', labels }, signal)).rejects.toEqual(
      failsWith('INVALID_ARGUMENT'),
    )
    expect(layers.claims).toEqual([])
  })
})

// containerd 2.2 and later, of a plugin that says "rebase": it prepares all layers without parents, and names them at Commit.
describe('layers that are unpacked side by side', () => {
  const refused = expect.objectContaining({
    code: 'FAILED_PRECONDITION',
    message: expect.stringContaining('take "rebase" out of the capabilities'),
  })

  test('are refused where the label of their parent shows it, claimed or not', async () => {
    const layers = new FakeLayers()
    layers.known.set('sha256:c2', 2)
    await using snapshots = await open(layers)
    for (const chainId of ['sha256:c2', 'sha256:c3']) {
      const labels = new Map([
        ...refOf(chainId),
        ['containerd.io/snapshot/parent-chain-id', 'sha256:c1'],
      ])
      const prepared = snapshots.prepare({ key: 'k', parent: undefined, labels }, signal)
      await expect(prepared).rejects.toEqual(refused)
    }
    expect([...snapshots.list([])]).toEqual([])
  })

  test('are refused without that label where a claimed layer is not the bottom of an image', async () => {
    const layers = new FakeLayers()
    layers.known.set('sha256:c1', 1).set('sha256:c2', 2)
    layers.diffIds.set('sha256:c2', 'sha256:d2')
    await using snapshots = await open(layers)
    const prepare = (chainId: string, parent?: string): Promise<unknown> =>
      snapshots.prepare({ key: `k ${chainId}`, parent, labels: refOf(chainId) }, signal)
    await prepare('sha256:c1')
    await expect(prepare('sha256:c2')).rejects.toEqual(refused)
    await expect(prepare('sha256:c2', 'sha256:c1')).resolves.toMatchObject({ kind: 'committed' })
  })

  test('are refused at Commit where nothing else shows it', async () => {
    await using snapshots = await open()
    await unpack(snapshots, 'sha256:c1')
    const labels = refOf('sha256:c2')
    await snapshots.prepare({ key: 'k', parent: undefined, labels }, signal)
    const change = { key: 'k', name: 'sha256:c2', parent: 'sha256:c1', labels }
    await expect(snapshots.commit(change, signal)).rejects.toEqual(refused)
    snapshots.remove('k')
    await snapshots.prepare({ key: 'k', parent: 'sha256:c1', labels }, signal)
    await expect(snapshots.commit(change, signal)).resolves.toMatchObject({ parent: 'sha256:c1' })
  })
})

describe('mounts of a chain', () => {
  test('lazy layers that lie together are asked for together, topmost first, between unpacked ones', async () => {
    const layers = new FakeLayers()
    await using snapshots = await open(layers)
    let parent: string | undefined
    for (const [index, kind] of ['lazy', 'lazy', 'plain', 'lazy', 'lazy', 'lazy'].entries()) {
      const name = `sha256:c${index}`
      if (kind === 'plain') await unpack(snapshots, name, parent)
      else {
        layers.known.set(name, index)
        await snapshots.prepare({ key: `k${index}`, parent, labels: refOf(name) }, signal)
      }
      parent = name
    }
    const plain = join(root, 'snapshots', ...directoryNames(), 'fs')
    await snapshots.prepare({ key: 'c', parent, labels: none }, signal)
    layers.chains.length = 0
    const [mount] = await snapshots.mounts('c', signal)
    expect(layers.chains).toEqual([
      [5, 4, 3],
      [1, 0],
    ])
    const lowerDirs = [5, 4, 3].map((layer) => layers.dir(layer))
    const expected = [...lowerDirs, plain, layers.dir(1), layers.dir(0)].join(':')
    expect(mount?.options).toContain(`lowerdir=${expected}`)
  })

  test('a view of one lazy layer is that layer, bound read-only', async () => {
    const layers = new FakeLayers()
    layers.known.set('sha256:c1', 1)
    await using snapshots = await open(layers)
    await snapshots.prepare({ key: 'k', parent: undefined, labels: refOf('sha256:c1') }, signal)
    const mounts = await snapshots.view({ key: 'v', parent: 'sha256:c1', labels: none }, signal)
    expect(mounts).toEqual([{ type: 'bind', source: layers.dir(1), options: ['ro', 'rbind'] }])
    expect(directoryNames()).toEqual([])
  })

  test('a container has the mode and owner of its image at its root', async () => {
    await using snapshots = await open()
    await snapshots.prepare({ key: 'base-key', parent: undefined, labels: none }, signal)
    const base = join(root, 'snapshots/1/fs')
    chownSync(base, 12, 34)
    chmodSync(base, 0o1750)
    await snapshots.commit(
      { key: 'base-key', name: 'base', parent: undefined, labels: none },
      signal,
    )
    await snapshots.prepare({ key: 'c', parent: 'base', labels: none }, signal)
    const { uid, gid, mode } = statSync(join(root, 'snapshots/2/fs'))
    expect({ uid, gid, mode: mode & 0o7777 }).toEqual({ uid: 12, gid: 34, mode: 0o1750 })
  })

  test('a Prepare whose layers cannot be mounted leaves its key free and no directory', async () => {
    const layers = new FakeLayers()
    layers.known.set('sha256:c1', 1)
    await using snapshots = await open(layers)
    await snapshots.prepare({ key: 'k', parent: undefined, labels: refOf('sha256:c1') }, signal)
    layers.failure = new SnapshotError('INTERNAL', 'no loop device')
    const container = { key: 'c', parent: 'sha256:c1', labels: none }
    await expect(snapshots.prepare(container, signal)).rejects.toBe(layers.failure)
    await snapshots.cleanup()
    expect(directoryNames()).toEqual([])
    layers.failure = undefined
    expect((await snapshots.prepare(container, signal)).kind).toBe('active')
  })

  test('of two Prepares of one key at once, one wins and nothing of the other is left', async () => {
    await using snapshots = await open()
    const results = await Promise.allSettled(
      Array.from({ length: 5 }, () =>
        snapshots.prepare({ key: 'k', parent: undefined, labels: none }, signal),
      ),
    )
    const failures = results.filter((result) => result.status === 'rejected')
    expect(failures.map(({ reason }) => (reason as SnapshotError).code)).toEqual(
      Array.from({ length: 4 }, () => 'ALREADY_EXISTS'),
    )
    await snapshots.cleanup()
    expect(directoryNames()).toHaveLength(1)
  })
})

describe('what is on disk', () => {
  test('usage of an active snapshot is measured, of a committed one kept', async () => {
    await using snapshots = await open()
    await snapshots.prepare({ key: 'k', parent: undefined, labels: none }, signal)
    const content = join(root, 'snapshots/1/fs')
    const empty = await snapshots.usage('k', signal)
    writeFileSync(join(content, 'file'), Buffer.alloc(100_000, 1))
    const full = await snapshots.usage('k', signal)
    expect(full.inodes - empty.inodes).toBe(1n)
    expect(full.size - empty.size).toBeGreaterThanOrEqual(100_000n)
    await snapshots.commit({ key: 'k', name: 'c', parent: undefined, labels: none }, signal)
    rmSync(join(content, 'file'))
    expect(await snapshots.usage('c', signal)).toEqual(full)
    await expect(snapshots.usage('k', signal)).rejects.toEqual(failsWith('NOT_FOUND'))
  })

  test('Cleanup waits for removed snapshots, and deletes what no snapshot has', async () => {
    await using snapshots = await open()
    await snapshots.prepare({ key: 'kept', parent: undefined, labels: none }, signal)
    await snapshots.prepare({ key: 'gone', parent: undefined, labels: none }, signal)
    mkdirSync(join(root, 'snapshots/77/fs'), { recursive: true })
    mkdirSync(join(root, 'snapshots/not-a-number'))
    snapshots.remove('gone')
    await snapshots.cleanup()
    expect(directoryNames()).toEqual(['1'])
  })

  test('an ID whose directory a dead process left behind is not used', async () => {
    mkdirSync(join(root, 'snapshots/5/fs'), { recursive: true })
    writeFileSync(join(root, 'snapshots/5/fs/file'), 'of somebody else')
    await using snapshots = await open()
    await snapshots.prepare({ key: 'k', parent: undefined, labels: none }, signal)
    await snapshots.cleanup()
    expect(directoryNames()).not.toContain('5')
    expect(Number(directoryNames()[0])).toBeGreaterThan(5)
  })

  test('after a power cut, an active snapshot has its directories again, a committed one says what is lost', async () => {
    {
      await using snapshots = await open()
      await unpack(snapshots, 'base')
      await snapshots.prepare({ key: 'container', parent: 'base', labels: none }, signal)
      await snapshots.prepare({ key: 'alone', parent: undefined, labels: none }, signal)
    }
    rmSync(join(root, 'snapshots'), { recursive: true })
    await using snapshots = await open()
    await snapshots.mounts('alone', signal)
    expect(existsSync(join(root, 'snapshots/3/work'))).toBe(true)
    await expect(snapshots.mounts('container', signal)).rejects.toEqual(failsWith('DATA_LOSS'))
    snapshots.remove('container')
    snapshots.remove('base')
  })

  test('a root that cannot stand in overlay options is refused', async () => {
    await expect(
      Snapshots.open({ root: join(root, 'a:b') }, { layers: new FakeLayers(), log }),
    ).rejects.toEqual(failsWith('INVALID_ARGUMENT'))
  })

  test('a second agent on the same root is refused, and the first one unharmed', async () => {
    await using snapshots = await open()
    await snapshots.prepare({ key: 'k', parent: undefined, labels: none }, signal)
    await expect(open()).rejects.toEqual(failsWith('UNAVAILABLE'))
    await snapshots.mounts('k', signal)
    expect(directoryNames()).toEqual(['1'])
  })
})

describe('many snapshots', () => {
  test('1,000 are listed in pages, each once, also when others come and go meanwhile', async () => {
    await using snapshots = await open()
    await unpack(snapshots, 'base')
    const keys: string[] = []
    for (let index = 0; index < 1_000; index++) {
      keys.push(`k8s.io/${index}/extract`)
      const labels = new Map([['number', String(index)]])
      await snapshots.view({ key: `k8s.io/${index}/extract`, parent: 'base', labels }, signal)
    }
    const seen: string[] = []
    let pages = 0
    for (const page of snapshots.list(['kind==view'])) {
      pages++
      expect(page.length).toBeLessThanOrEqual(100)
      seen.push(...page.map(({ name }) => name))
      snapshots.remove(`k8s.io/${1_000 - pages}/extract`)
    }
    const removed = keys.slice(1_000 - pages)
    expect(seen.filter((name) => !removed.includes(name))).toEqual(keys.slice(0, 1_000 - pages))
    const [only] = [...snapshots.list(['labels.number==500'])].flat()
    expect(only?.name).toBe('k8s.io/500/extract')
  })
})
