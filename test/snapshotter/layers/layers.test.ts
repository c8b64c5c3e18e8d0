import { existsSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { mkdir, open, readFile, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { BlockSource } from '../../../snapshotter/block-source.ts'
import { BlockError } from '../../../snapshotter/errors.ts'
import { listMounts } from '../../../snapshotter/kernel/mountinfo.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { compareTrees } from '../../support/compare-trees.ts'
import { failureOf } from '../../support/failure-of.ts'
import { makeTar, paxPart, type TarPart } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { runCommand } from '../../support/run-command.ts'
import { seeded } from '../../support/seeded.ts'
import { type EstargzLine, writeEstargz } from '../../support/write-estargz.ts'
import { skopeoLayer } from '../toc/chunked/golden/skopeo-layer.ts'
import { stargzLayers } from '../toc/estargz/golden/stargz-layers.ts'
import { LazyNode } from './lazy-node.ts'
import {
  chunkedLayer,
  estargzLayer,
  gzipLayer,
  indexedLayer,
  lyingLayer,
  type PublishedImage,
  plainLayer,
  publishImage,
  zstdLayer,
} from './published-image.ts'

const deadlineMs = 60_000

async function openNode(
  blocks: BlockSource,
  options: Parameters<typeof LazyNode.open>[1] = {},
): Promise<LazyNode> {
  const node = await LazyNode.open(blocks, options)
  onTestFinished(() => node[Symbol.asyncDispose]())
  return node
}

/** Files of random content under directories that are all mentioned; GNU tar and containerd unpack it alike. */
function treeTar(seed: number, files: number): Buffer {
  const random = seeded(seed)
  const parts: TarPart[] = [{ name: './', typeflag: '5', mode: 0o755, mtime: 1 }]
  for (let dir = 0; dir < 5; dir++) {
    parts.push({ name: `d${dir}/`, typeflag: '5', mode: 0o2750 + dir, uid: dir, mtime: 2 })
  }
  for (let index = 0; index < files; index++) {
    const name = `d${random(5)}/${index}`
    const owner = { uid: random(70_000), gid: random(70_000), mtime: random(2 ** 31) }
    parts.push(paxPart([['SCHILY.xattr.user.index', `value ${index}`]]))
    const size = random(20) === 0 ? random(400_000) : random(20_000)
    const file = { name, ...owner, mode: random(0o10_000), content: randomContent(random, size) }
    parts.push(file)
    const { content: _, ...header } = file
    if (random(4) === 0)
      parts.push({ ...header, name: `${name}-link`, typeflag: '1', linkName: name })
    if (random(4) === 0)
      parts.push({ name: `${name}-to`, ...owner, typeflag: '2', linkName: '../x' })
  }
  return makeTar(...parts)
}

/** The tree of a tar as GNU tar unpacks it. */
async function unpacked(node: LazyNode, tar: Uint8Array): Promise<string> {
  const dir = join(node.scratch.dir, 'unpacked')
  await mkdir(dir)
  const flags = ['-xp', '--delay-directory-restore', '--xattrs', '--xattrs-include=*']
  await runCommand('tar', [...flags, '--numeric-owner', '--directory', dir], { input: tar })
  return dir
}

/** Fetches and checks all of the image. */
async function fetchWhole(node: LazyNode, image: PublishedImage): Promise<void> {
  const { signal } = new AbortController()
  await node.snapshotter.pull(image.root.toString(), { all: true, signal, onProgress: () => {} })
}

describe('the ways to a mounted layer', () => {
  const tar = treeTar(11, 200)
  const forms = [
    ['zstd with an index', indexedLayer, true],
    ["zstd with another tool's table", chunkedLayer, true],
    ['eStargz', estargzLayer, true],
    ['a plain tar', plainLayer, true],
    ['gzip', gzipLayer, false],
    ['zstd of another tool', zstdLayer, false],
  ] as const

  test.each([
    ...forms.map((form) => [...form, undefined] as const),
    ...forms.map((form) => [...form, 'loops'] as const),
    ...forms.map((form) => [...form, 'files'] as const),
  ])(
    '%s shows the tree of its tar (lazy: %o, %s)',
    async (_, layerOf, isLazy, mountsFrom) => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [await layerOf(tar)])
      const node = await openNode(blocks, mountsFrom && { mountsFrom })
      await node.pull(image)
      const [layer] = node.snapshotter.layers()
      // The file of an eStargz layer has room for headers of unknown length.
      const isArranged = layer?.format === 'tar+estargz'
      expect(isArranged || layer?.layerSize === tar.length).toBe(true)
      expect(layer?.state).toBe('ready')
      expect(layer?.notLazyBecause === undefined).toBe(isLazy)
      await using mounted = await node.mount(image)
      expect(await compareTrees(mounted.path, await unpacked(node, tar))).toEqual([])
      expect(node.log.sentences.filter((sentence) => sentence.includes('EIO'))).toEqual([])
    },
    deadlineMs,
  )

  test(
    'a layer with an index is mounted from a part of its blocks, a plain tar from its headers',
    async () => {
      const large = makeTar(
        ...Array.from({ length: 6 }, (_, index) => ({
          name: `file-${index}`,
          content: randomContent(seeded(index), 2_000_000),
        })),
      )
      for (const layerOf of [indexedLayer, chunkedLayer, estargzLayer, plainLayer]) {
        const blocks = new MemoryBlocks()
        const image = await publishImage(blocks, [await layerOf(large)])
        const node = await openNode(blocks)
        await node.pull(image)
        const presentBytes = node.snapshotter.layers()[0]?.presentBytes ?? Number.NaN
        expect(presentBytes).toBeLessThan(large.length / 2)
        const read = new Set(blocks.asked).size
        expect(read).toBeLessThan(blocks.blocks.size / 2)
      }
    },
    deadlineMs,
  )

  test(
    'a layer that containers/storage wrote shows the tree of its tar, and is whole when all of it is here',
    async () => {
      const { blob, annotations, tar } = await skopeoLayer()
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [{ blob, annotations, diffId: digestOf(tar) }])
      const node = await openNode(blocks)
      await node.pull(image)
      expect(node.snapshotter.layers()).toMatchObject([
        { format: 'tar+zstd:chunked', notLazyBecause: undefined, verified: false, presentBytes: 0 },
      ])
      {
        await using mounted = await node.mount(image)
        expect(await compareTrees(mounted.path, await unpacked(node, tar))).toEqual([])
      }
      await node.stop()
      await node.start(blocks)
      await fetchWhole(node, image)
      expect(node.snapshotter.layers()).toMatchObject([{ state: 'ready', verified: true }])
      expect(node.verificationFailures).toEqual([])
    },
    deadlineMs,
  )

  test.each(['plain', 'prioritized'] as const)(
    'a layer that stargz-snapshotter wrote shows its tree without what is its own, and is whole when all of it is here (%s)',
    async (name) => {
      const { blob, annotations, tar } = stargzLayers[name]
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [{ blob, annotations, diffId: digestOf(tar) }])
      const node = await openNode(blocks)
      await node.pull(image)
      expect(node.snapshotter.layers()).toMatchObject([
        { format: 'tar+estargz', notLazyBecause: undefined, verified: false, presentBytes: 0 },
      ])
      {
        await using mounted = await node.mount(image)
        const dir = await unpacked(node, tar)
        for (const own of ['stargz.index.json', '.prefetch.landmark', '.no.prefetch.landmark']) {
          await rm(join(dir, own), { force: true })
        }
        const [fraction, ...differences] = await compareTrees(mounted.path, dir, {
          anyTimeOf: [''],
        })
        // The one file whose time has a fraction, which the table has not.
        expect(fraction).toMatch(/name-.*mtimeNs is "1700000000000000000"/)
        expect(differences).toEqual([])
      }
      await node.stop()
      await node.start(blocks)
      await fetchWhole(node, image)
      expect(node.snapshotter.layers()).toMatchObject([{ state: 'ready', verified: true }])
      expect(node.verificationFailures).toEqual([])
    },
    deadlineMs,
  )

  test(
    'an eStargz layer whose table differs from its tar is found out when all of it is here',
    async () => {
      const blocks = new MemoryBlocks()
      const lie = (lines: EstargzLine[]): void =>
        void Object.assign(lines[1] ?? {}, { mode: 0o777 })
      const { blob, tar: whole } = writeEstargz(tar, { change: lie })
      const image = await publishImage(blocks, [{ blob, diffId: digestOf(whole) }])
      const node = await openNode(blocks)
      await node.pull(image)
      await expect(fetchWhole(node, image)).rejects.toThrow(/not what its image promises/)
      expect(node.verificationFailures).toEqual(['toc'])
    },
    deadlineMs,
  )

  test(
    'a layer whose table cannot be used is read whole, and says why; one whose table lies is found out',
    async () => {
      const blocks = new MemoryBlocks()
      const layer = await chunkedLayer(tar)
      const checksum = 'io.github.containers.zstd-chunked.manifest-checksum'
      const annotations = { ...layer.annotations, [checksum]: `sha256:${'0'.repeat(64)}` }
      const broken = await publishImage(blocks, [{ ...layer, annotations }])
      const other = makeTar({ name: 'file', content: 'of another diff ID' })
      const lying = await publishImage(blocks, [
        { ...(await chunkedLayer(other)), diffId: digestOf(Buffer.from('not it')) },
      ])
      const node = await openNode(blocks)
      await node.pull(broken)
      expect(node.snapshotter.layers()).toMatchObject([
        {
          format: 'tar+zstd',
          verified: true,
          notLazyBecause: expect.stringContaining('the manifest says'),
        },
      ])
      await node.pull(lying)
      await expect(fetchWhole(node, lying)).rejects.toThrow(/not what its image promises/)
      expect(node.verificationFailures).toEqual(['layer'])
    },
    deadlineMs,
  )

  test(
    'a gzip layer is streamed once: neither a second image nor a restart asks for it again',
    async () => {
      const blocks = new MemoryBlocks()
      const layer = gzipLayer(tar)
      const first = await publishImage(blocks, [layer])
      const second = await publishImage(blocks, [layer, plainLayer(makeTar({ name: 'more' }))])
      const node = await openNode(blocks)
      await node.pull(first)
      const leaves = new Set(blocks.asked)
      await node.stop()
      await node.start(blocks)
      blocks.asked.length = 0
      await node.pull(second)
      await using mounted = await node.mount(second)
      expect((await stat(join(mounted.path, 'more'))).size).toBe(0)
      const blobLeaves = layer.blob.length / 262_144
      expect(blobLeaves).toBeGreaterThan(1)
      expect(blocks.asked.filter((cid) => leaves.has(cid)).length).toBeLessThan(blobLeaves)
    },
    deadlineMs,
  )

  test(
    'layers pulled at once by two images are built once',
    async () => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [gzipLayer(tar)])
      const node = await openNode(blocks)
      const { signal } = new AbortController()
      const pull = () =>
        node.snapshotter.pull(image.root.toString(), { all: false, signal, onProgress: () => {} })
      await Promise.all([pull(), pull(), pull()])
      const streamed = node.log.sentences.filter((sentence) => sentence.includes('reading all'))
      expect(streamed).toHaveLength(1)
      expect(node.snapshotter.layers()).toHaveLength(1)
    },
    deadlineMs,
  )
})

describe('layers on top of one another', () => {
  const base = makeTar(
    { name: './', typeflag: '5', mode: 0o755, uid: 3 },
    { name: 'etc/', typeflag: '5', mode: 0o2711, uid: 5, gid: 6, mtime: 1_000_000 },
    { name: 'etc/kept', content: 'kept' },
    { name: 'etc/replaced', content: 'old' },
    { name: 'gone/', typeflag: '5' },
    { name: 'gone/file', content: 'x' },
    { name: 'hidden/', typeflag: '5', mode: 0o700 },
    { name: 'hidden/below', content: 'y' },
  )
  const middle = makeTar(
    { name: 'etc/app/conf', content: 'conf' }, // Neither etc nor etc/app is mentioned.
    { name: 'etc/replaced', content: 'new' },
    { name: '.wh.gone' },
    { name: 'hidden/', typeflag: '5', mode: 0o750 },
    { name: 'hidden/.wh..wh..opq' },
    { name: 'hidden/above', content: 'z' },
  )
  const top = makeTar({ name: 'etc/app/extra', content: 'extra' })

  test.each([
    ['one mount a layer', 24],
    ['one merged mount', 2],
  ])(
    '%s shows what an unpack of one tar after the other gives',
    async (_, mergeLayersMin) => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [
        await indexedLayer(base),
        await indexedLayer(middle),
        plainLayer(top),
      ])
      const node = await openNode(blocks, { mergeLayersMin })
      await node.pull(image)
      await using mounted = await node.mount(image)
      const at = (path: string) => stat(join(mounted.path, path))
      // As containerd's unpack: a directory that a tar does not mention is the one below, else a new one.
      expect(await at('etc')).toMatchObject({ mode: 0o42711, uid: 5, gid: 6, mtimeMs: 1e9 })
      expect(await at('etc/app')).toMatchObject({ mode: 0o40755, uid: 0 })
      expect(await at('hidden')).toMatchObject({ mode: 0o40750 })
      expect(await at('')).toMatchObject({ mode: 0o40755, uid: 3 })
      const list = await runCommand('find', ['.', '-type', 'f'], { cwd: mounted.path })
      expect(list.trim().split('\n').toSorted()).toEqual([
        './etc/app/conf',
        './etc/app/extra',
        './etc/kept',
        './etc/replaced',
        './hidden/above',
      ])
      expect(await readFile(join(mounted.path, 'etc/replaced'), 'utf8')).toBe('new')
      expect(await readFile(join(mounted.path, 'etc/app/extra'), 'utf8')).toBe('extra')
      expect(node.snapshotter.mounts()).toHaveLength(mergeLayersMin === 2 ? 1 : 3)
    },
    deadlineMs,
  )

  test(
    'an opaque root hides every layer below',
    async () => {
      const blocks = new MemoryBlocks()
      const anew = makeTar({ name: '.wh..wh..opq' }, { name: 'only', content: 'this' })
      for (const mergeLayersMin of [24, 2]) {
        const image = await publishImage(blocks, [plainLayer(base), plainLayer(anew)])
        const node = await openNode(blocks, { mergeLayersMin })
        await node.pull(image)
        await using mounted = await node.mount(image)
        expect(readdirSync(mounted.path)).toEqual(['only'])
      }
    },
    deadlineMs,
  )

  test(
    'two images with a layer in common share its mount',
    async () => {
      const blocks = new MemoryBlocks()
      const [low, one] = [await indexedLayer(base), plainLayer(makeTar({ name: 'one' }))]
      const first = await publishImage(blocks, [low, one])
      const second = await publishImage(blocks, [low, plainLayer(makeTar({ name: 'two' }))])
      const node = await openNode(blocks)
      for (const image of [first, second]) await node.pull(image)
      await using _first = await node.mount(first)
      await using _second = await node.mount(second)
      expect(node.snapshotter.mounts()).toHaveLength(3)
    },
    deadlineMs,
  )

  test(
    'removing the images takes down their mounts, and garbage collection deletes their layers',
    async () => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [await indexedLayer(base), plainLayer(middle)])
      const node = await openNode(blocks)
      await node.pull(image)
      await node.view(image)
      const { snapshots } = node.snapshotter
      expect(listMounts(join(node.root, 'm'))).toHaveLength(2)
      const [layer] = node.snapshotter.layers()
      const refused = await failureOf(() => node.snapshotter.removeLayer(layer?.blobDigest ?? ''))
      expect(refused).toMatchObject({ code: 'FAILED_PRECONDITION' })
      for (const name of ['view-0', ...image.chainIds.toReversed()]) snapshots.remove(name)
      await snapshots.cleanup()
      expect(listMounts(join(node.root, 'm'))).toEqual([])
      expect(node.snapshotter.layers()).toHaveLength(2) // Their bytes stay for the next pull.
      expect(await node.snapshotter.collectGarbage(0)).toMatchObject({ layers: 2 })
      expect(node.snapshotter.images()).toEqual([])
      expect(node.snapshotter.layers()).toEqual([])
      for (const dir of ['layers', 'm', 'derived']) {
        expect(readdirSync(join(node.root, dir))).toEqual([])
      }
    },
    deadlineMs,
  )
})

describe('a layer that is not what its image promised', () => {
  const tar = makeTar(
    { name: 'a', content: randomContent(seeded(1), 700_000) },
    { name: 'b', content: randomContent(seeded(2), 700_000) },
  )

  test(
    'is found out when it is complete: marked corrupt, its reads fail, and nobody gets it again',
    async () => {
      const blocks = new MemoryBlocks()
      const honest = await indexedLayer(tar)
      const image = await publishImage(blocks, [
        { ...honest, diffId: digestOf(Buffer.from('lie')) },
      ])
      const node = await openNode(blocks)
      await node.pull(image)
      await using mounted = await node.mount(image)
      await using held = await open(join(mounted.path, 'a'))
      expect((await held.read(Buffer.alloc(10), 0, 10, 0)).bytesRead).toBe(10)
      const failure = await failureOf(() => fetchWhole(node, image))
      expect(failure).toMatchObject({ name: 'LayerError', code: 'DATA_LOSS' })
      expect(node.snapshotter.layers()[0]).toMatchObject({ state: 'corrupt', verified: false })
      expect(node.verificationFailures).toEqual(['layer'])
      expect(node.log.sentences.join('\n')).toContain('is not what its image promised')
      // Nothing of it was read ahead so far.
      await expect(held.read(Buffer.alloc(10), 0, 10, 500_000)).rejects.toThrow(/EIO|ESTALE/)
      await expect(readFile(join(mounted.path, 'b'))).rejects.toThrow(/EIO|ESTALE/)
      expect(await failureOf(() => node.view(image))).toMatchObject({ code: 'DATA_LOSS' })
      await node.stop()
      await node.start(blocks)
      expect(await failureOf(() => node.view(image))).toMatchObject({ code: 'DATA_LOSS' })
    },
    deadlineMs,
  )

  test.each([
    ['leaves a file out', 'b', undefined],
    ['makes a file set-uid', 'a', { mode: 0o4755 }],
    ['shows a file under another name', 'a', { path: 'z' }],
  ])(
    'is found out if its index %s',
    async (_, path, change) => {
      const blocks = new MemoryBlocks()
      const layer = await lyingLayer(tar, ({ entries, layerSize }) => ({
        layerSize,
        entries: entries.flatMap((entry) =>
          entry.path !== path ? [entry] : change === undefined ? [] : [{ ...entry, ...change }],
        ),
      }))
      const image = await publishImage(blocks, [layer])
      const node = await openNode(blocks)
      await node.pull(image)
      expect(await failureOf(() => fetchWhole(node, image))).toMatchObject({ code: 'DATA_LOSS' })
      expect(node.snapshotter.layers()[0]).toMatchObject({ state: 'corrupt' })
      expect(node.verificationFailures).toEqual(['toc'])
      expect(await failureOf(() => node.view(image))).toMatchObject({ code: 'DATA_LOSS' })
    },
    deadlineMs,
  )

  test(
    'is found out at once if it has to be read whole',
    async () => {
      for (const layerOf of [gzipLayer, zstdLayer]) {
        const blocks = new MemoryBlocks()
        const diffId = digestOf(Buffer.from('lie'))
        const image = await publishImage(blocks, [{ ...layerOf(tar), diffId }])
        const node = await openNode(blocks)
        const failure = await failureOf(() => node.pull(image))
        expect(failure).toMatchObject({ name: 'LayerError', code: 'DATA_LOSS' })
        expect(failure.message).toContain('its tar has the digest')
        expect(node.snapshotter.layers()).toEqual([])
        expect(readdirSync(join(node.root, 'layers'))).toEqual([])
      }
    },
    deadlineMs,
  )

  test(
    'is never shown through its plain file before it was checked',
    async () => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [await indexedLayer(tar)])
      const node = await openNode(blocks)
      await node.pull(image)
      await fetchWhole(node, image)
      expect(node.snapshotter.layers()[0]).toMatchObject({ isComplete: true, verified: true })
      await node.view(image)
      expect(node.snapshotter.mounts()).toMatchObject([{ kind: 'plain' }])
    },
    deadlineMs,
  )

  test(
    'is checked after a restart if the agent ended between its last byte and the check',
    async () => {
      const blocks = new MemoryBlocks()
      const honest = await indexedLayer(tar)
      const image = await publishImage(blocks, [
        { ...honest, diffId: digestOf(Buffer.from('lie')) },
      ])
      const node = await openNode(blocks)
      await node.pull(image)
      const { snapshotter } = node
      const { signal } = new AbortController()
      // Stopping ends the check: what is then on disk is what a kill at that moment leaves.
      let stopping: Promise<void> | undefined
      await snapshotter
        .pull(image.root.toString(), {
          all: true,
          signal,
          onProgress: ({ presentBytes, layerBytes }) => {
            if (presentBytes === layerBytes) stopping ??= node.stop()
          },
        })
        .catch(() => undefined)
      await stopping
      await node.start(blocks)
      await expect
        .poll(() => node.snapshotter.layers()[0]?.state, { timeout: 10_000 })
        .toBe('corrupt')
    },
    deadlineMs,
  )
})

describe('two blobs that claim one diff ID', () => {
  const tar = makeTar({ name: 'bin/sh', content: randomContent(seeded(3), 900_000) })
  const evil = makeTar({ name: 'bin/sh', content: randomContent(seeded(4), 900_000) })

  test(
    'the one that was here first is checked whole before the second image is handed out',
    async () => {
      const blocks = new MemoryBlocks()
      const liar = await publishImage(blocks, [
        { ...(await indexedLayer(evil)), diffId: digestOf(tar) },
      ])
      const honest = await publishImage(blocks, [await indexedLayer(tar)])
      expect(liar.chainIds).toEqual(honest.chainIds)
      const node = await openNode(blocks)
      await node.pull(liar)
      await node.serve(honest)
      expect(node.snapshotter.layers()).toMatchObject([{ state: 'corrupt' }])
      // containerd has a snapshot of that name and takes it: it must not start on the liar's bytes.
      expect(await failureOf(() => node.view(honest))).toMatchObject({ code: 'DATA_LOSS' })
    },
    deadlineMs,
  )

  test(
    'also when the first one is still being built',
    async () => {
      const blocks = new MemoryBlocks()
      const liar = await publishImage(blocks, [
        { ...(await indexedLayer(evil)), diffId: digestOf(tar) },
      ])
      const honest = await publishImage(blocks, [await indexedLayer(tar)])
      const node = await openNode(blocks)
      const pulling = node.pull(liar)
      await expect
        .poll(() => node.snapshotter.layers()[0]?.state, { interval: 1, timeout: 10_000 })
        .toBe('building')
      await node.serve(honest)
      await pulling
      expect(node.snapshotter.layers()).toMatchObject([{ state: 'corrupt' }])
    },
    deadlineMs,
  )

  test('the second is not handed out while the first cannot be checked', async () => {
    const blocks = new MemoryBlocks()
    const liar = await publishImage(blocks, [
      { ...(await indexedLayer(evil)), diffId: digestOf(tar) },
    ])
    const node = await openNode(blocks)
    await node.pull(liar)
    await node.stop()
    const others = new MemoryBlocks()
    const honest = await publishImage(others, [plainLayer(tar)])
    await node.start(others)
    expect(await failureOf(() => node.serve(honest))).toMatchObject({ code: 'NOT_FOUND' })
  })

  test('of two that are pulled at once none is handed out unchecked', async () => {
    const blocks = new MemoryBlocks()
    const honest = await publishImage(blocks, [await indexedLayer(tar)])
    const liar = await publishImage(blocks, [
      { ...(await indexedLayer(evil)), diffId: digestOf(tar) },
    ])
    const node = await openNode(blocks)
    for (const image of [honest, liar]) await node.serve(image)
    expect(await failureOf(() => node.pull(liar))).toMatchObject({ code: 'DATA_LOSS' })
    await node.pull(honest) // As containerd tries again.
    await using mounted = await node.mount(honest)
    expect(digestOf(await readFile(join(mounted.path, 'bin/sh')))).toBe(
      digestOf(randomContent(seeded(3), 900_000)),
    )
  })

  test(
    'both stay if both tell the truth',
    async () => {
      const blocks = new MemoryBlocks()
      const first = await publishImage(blocks, [await indexedLayer(tar)])
      const second = await publishImage(blocks, [plainLayer(tar)])
      const node = await openNode(blocks)
      await node.pull(first)
      await node.pull(second)
      expect(node.snapshotter.layers()[0]).toMatchObject({ state: 'ready', verified: true })
      await using mounted = await node.mount(second)
      expect(digestOf(await readFile(join(mounted.path, 'bin/sh')))).toBe(
        digestOf(randomContent(seeded(3), 900_000)),
      )
    },
    deadlineMs,
  )
})

describe('what was lost on this node', () => {
  const tar = treeTar(21, 40)

  test.each([
    ['its map is damaged', 'map'],
    ['its folder is gone', ''],
  ])(
    'a layer is built again under its id when %s',
    async (_, file) => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [await indexedLayer(tar)])
      const node = await openNode(blocks)
      await node.pull(image)
      const [before] = node.snapshotter.layers()
      await node.stop()
      const path = join(node.root, 'layers', String(before?.id), file)
      if (file === '') rmSync(path, { recursive: true })
      else writeFileSync(path, 'damaged')
      await node.start(blocks)
      expect(node.snapshotter.layers()).toMatchObject([{ id: before?.id, state: 'lost' }])
      await using mounted = await node.mount(image)
      expect(await compareTrees(mounted.path, await unpacked(node, tar))).toEqual([])
      expect(node.snapshotter.layers()).toMatchObject([{ id: before?.id, state: 'ready' }])
    },
    deadlineMs,
  )

  test(
    'a layer whose building was cut short leaves nothing behind and is built anew',
    async () => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [gzipLayer(tar)])
      let asked = 0
      const failing: BlockSource = {
        get: async (cid, request) => {
          if (++asked > 4) throw new BlockError('UNAVAILABLE', 'the network is gone')
          return blocks.get(cid, request)
        },
      }
      const node = await openNode(failing)
      expect(await failureOf(() => node.pull(image))).toMatchObject({ code: 'UNAVAILABLE' })
      expect(node.snapshotter.layers()).toEqual([])
      expect(readdirSync(join(node.root, 'layers'))).toEqual([])
      await node.stop()
      await node.start(blocks)
      await node.pull(image)
      expect(node.snapshotter.layers()).toHaveLength(1)
    },
    deadlineMs,
  )
})

test(
  'after a restart no peer is needed to mount, and only missing bytes are asked for',
  async () => {
    const tar = makeTar(
      { name: 'early', content: randomContent(seeded(5), 600_000) },
      { name: 'late', content: randomContent(seeded(6), 600_000) },
    )
    const blocks = new MemoryBlocks()
    const image = await publishImage(blocks, [await indexedLayer(tar)])
    const node = await openNode(blocks)
    await node.pull(image)
    {
      await using mounted = await node.mount(image)
      await readFile(join(mounted.path, 'early'))
    }
    await node.stop()
    blocks.asked.length = 0
    await node.start(blocks)
    await using mounted = await node.mount(image)
    await readFile(join(mounted.path, 'early'))
    expect(blocks.asked).toEqual([])
    await readFile(join(mounted.path, 'late'))
    const held = [...blocks.blocks].filter(([, bytes]) => bytes.length > 1_000).map(([cid]) => cid)
    expect(blocks.asked.length).toBeGreaterThan(0)
    // Leaves only, no inner node: the list of leaves is on disk.
    expect(blocks.asked.every((cid) => held.includes(cid))).toBe(true)
  },
  deadlineMs,
)

test(
  'what was waited for is told by file, also for one image alone',
  async () => {
    const tar = makeTar(
      { name: 'usr/lib/libc.so', content: randomContent(seeded(7), 600_000) },
      { name: 'usr/lib/unread.so', content: randomContent(seeded(8), 600_000) },
    )
    const blocks = new MemoryBlocks()
    const image = await publishImage(blocks, [plainLayer(tar)])
    const other = await publishImage(blocks, [plainLayer(makeTar({ name: 'x' }))])
    const node = await openNode(blocks)
    for (const each of [image, other]) await node.pull(each)
    await using mounted = await node.mount(image)
    await readFile(join(mounted.path, 'usr/lib/libc.so'))
    const waits = await node.snapshotter.waitedFor(image.root.toString())
    const paths = new Set(waits.map(({ path }) => path))
    expect(paths).toContain('/usr/lib/libc.so')
    expect(waits.every(({ error }) => error === undefined)).toBe(true)
    expect(await node.snapshotter.waitedFor(other.manifestDigest)).toSatisfy((reads: unknown[]) =>
      reads.every((read) => !waits.includes(read as never)),
    )
  },
  deadlineMs,
)

test(
  'reads that wait when the snapshotter closes do not bring the process down',
  async () => {
    const tar = makeTar({ name: 'file', content: randomContent(seeded(9), 600_000) })
    const blocks = new MemoryBlocks()
    const image = await publishImage(blocks, [await indexedLayer(tar)])
    const isAsked = Promise.withResolvers<void>()
    let blocked = false
    const stalling: BlockSource = {
      get: async (cid, request) => {
        if (!blocked) return blocks.get(cid, request)
        isAsked.resolve()
        await new Promise((_, reject) =>
          request.signal.addEventListener('abort', () => reject(request.signal.reason)),
        )
        throw new BlockError('CANCELLED', 'never')
      },
    }
    const node = await openNode(stalling, { foregroundDeadlineMs: 1_000 })
    await node.pull(image)
    await using mounted = await node.mount(image)
    blocked = true
    const reading = readFile(join(mounted.path, 'file'))
    await isAsked.promise
    await node.stop()
    blocked = false
    await node.start(blocks)
    expect((await reading).length).toBe(600_000)
  },
  deadlineMs,
)

test('without EROFS or FUSE no layer is claimed, and nothing is written', async () => {
  const blocks = new MemoryBlocks()
  const image = await publishImage(blocks, [plainLayer(makeTar({ name: 'x' }))])
  const node = await openNode(blocks, { isLazy: false })
  await expect(node.pull(image)).rejects.toThrow('was not claimed')
  expect(node.log.sentences.join('\n')).toContain('downloads the image whole')
  expect(node.snapshotter.layers()).toEqual([])
  expect(existsSync(join(node.root, 'layers'))).toBe(true)
  expect(statSync(join(node.root, 'layers')).nlink).toBe(2)
})
