import { execFileSync } from 'node:child_process'
import {
  createReadStream,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import zlib from 'node:zlib'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { IpdrImage } from '../../../snapshotter/dag/ipdr-image.ts'
import { ImageError } from '../../../snapshotter/errors.ts'
import type { Descriptor } from '../../../snapshotter/oci/descriptor.ts'
import { MEDIA_TYPES } from '../../../snapshotter/oci/descriptor.ts'
import type { Digest } from '../../../snapshotter/oci/digest.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import type { ImageIndex, ImageManifest } from '../../../snapshotter/oci/manifest.ts'
import { parseManifest } from '../../../snapshotter/oci/manifest.ts'
import type { ImageToPush } from '../../../snapshotter/publish/image-to-push.ts'
import type { PushedImage, PushProgress } from '../../../snapshotter/publish/push-image.ts'
import { pushImage } from '../../../snapshotter/publish/push-image.ts'
import { layoutDirectory, openOciLayout } from '../../../snapshotter/publish/sources/oci-layout.ts'
import { openTarFile, openTarStream } from '../../../snapshotter/publish/sources/open-tar.ts'
import { readLayerIndex } from '../../../snapshotter/toc/read-layer-toc.ts'
import type { TarPart } from '../../support/make-tar.ts'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomTreeTar } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'

const { signal } = new AbortController()
const request = { priority: 'foreground', signal } as const

/** An image in memory, whose blobs can be spoilt. */
class MemoryImage implements ImageToPush {
  readonly blobs: Map<Digest, Uint8Array> = new Map()
  manifest: Uint8Array = Buffer.alloc(0)

  async *blob(digest: Digest): AsyncGenerator<Uint8Array> {
    const bytes = this.blobs.get(digest)
    if (bytes === undefined) throw new ImageError('NOT_FOUND', `no blob ${digest}`)
    for (let at = 0; at < bytes.length; at += 50_000) yield bytes.subarray(at, at + 50_000)
  }

  add(bytes: Uint8Array, mediaType: string): Descriptor {
    const digest = digestOf(bytes)
    this.blobs.set(digest, bytes)
    return { mediaType, digest, size: bytes.length }
  }

  addManifest(
    layers: readonly { blob: Uint8Array; tar: Uint8Array; mediaType?: string }[],
    architecture = 'amd64',
  ): Descriptor {
    const diffIds = layers.map(({ tar }) => digestOf(tar))
    const config = { architecture, os: 'linux', rootfs: { type: 'layers', diff_ids: diffIds } }
    const manifest = {
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.dockerManifest,
      config: this.add(Buffer.from(JSON.stringify(config)), MEDIA_TYPES.dockerConfig),
      layers: layers.map(({ blob, mediaType }) =>
        this.add(blob, mediaType ?? 'application/vnd.docker.image.rootfs.diff.tar.gzip'),
      ),
    }
    this.manifest = Buffer.from(JSON.stringify(manifest))
    return {
      ...this.add(this.manifest, MEDIA_TYPES.dockerManifest),
      platform: { os: 'linux', architecture },
    }
  }
}

const tars = [1, 2, 3].map((seed) => randomTreeTar(seeded(seed), 60))
const [tarA = Buffer.alloc(0), tarB = Buffer.alloc(0), tarC = Buffer.alloc(0)] = tars

async function push(
  image: ImageToPush,
  onProgress?: (progress: PushProgress) => void,
): Promise<{ pushed: PushedImage; blocks: MemoryBlocks; image: IpdrImage }> {
  const blocks = new MemoryBlocks()
  const sink = {
    put: async (cid: { toString(): string }, block: Uint8Array): Promise<void> => {
      blocks.blocks.set(cid.toString(), block)
    },
  }
  const pushed = await pushImage(image, sink, { signal, ...(onProgress && { onProgress }) })
  const opened = await IpdrImage.open(pushed.root, blocks, request)
  if (opened === undefined) throw new Error('what was pushed has both directories')
  return { pushed, blocks, image: opened }
}

async function blobBytes(image: IpdrImage, digest: string): Promise<Buffer> {
  const file = await image.blob(digest, request)
  const pieces: Uint8Array[] = []
  for await (const piece of file.stream({ start: 0, end: file.size }, request)) pieces.push(piece)
  return Buffer.concat(pieces)
}

async function manifestOf(image: IpdrImage, reference = 'latest'): Promise<ImageManifest> {
  const { bytes } = await image.manifest(reference, request)
  const parsed = parseManifest(bytes, reference)
  if (parsed.kind !== 'manifest') throw new Error(`${reference} is an index`)
  return parsed
}

/** Each layer of the pushed image is a valid OCI blob of its tar, with an index that one read finds. */
async function expectLayers(
  image: IpdrImage,
  manifest: ImageManifest,
  tars: Buffer[],
): Promise<void> {
  expect(manifest.layers).toHaveLength(tars.length)
  for (const [index, { digest, size, mediaType, annotations = {} }] of manifest.layers.entries()) {
    const blob = await blobBytes(image, digest)
    expect(mediaType).toBe('application/vnd.oci.image.layer.v1.tar+zstd')
    expect(blob.length).toBe(size)
    expect(digestOf(blob)).toBe(digest)
    const tar = execFileSync('zstd', ['-d', '-c', '-q'], { input: blob, maxBuffer: 1 << 28 })
    expect(tar.equals(tars[index] ?? blob), `layer ${index}`).toBe(true)
    const read = async (range: { start: number; end: number }): Promise<Uint8Array> =>
      blob.subarray(range.start, range.end)
    const found = await readLayerIndex(annotations, read, size, signal)
    expect(found?.toc.layerSize).toBe(tar.length)
    // The map's units are the leaves of the UnixFS file, as long as they hold layer bytes.
    const file = await image.blob(digest, request)
    const units = (found?.map.starts.length ?? 1) - 1
    for (let unit = 0; unit < units; unit++) {
      expect(found?.map.blobRange(unit)).toEqual({
        start: file.leafStarts[unit],
        end: file.leafStarts[unit + 1],
      })
    }
  }
}

const compressions: [title: string, compress: (tar: Uint8Array) => Uint8Array][] = [
  ['plain under a media type that says gzip', (tar) => tar],
  ['gzip', (tar) => zlib.gzipSync(tar)],
  [
    'gzip of several members',
    (tar) =>
      Buffer.concat([zlib.gzipSync(tar.subarray(0, 9999)), zlib.gzipSync(tar.subarray(9999))]),
  ],
  [
    'zstd of several frames',
    (tar) =>
      Buffer.concat(
        [tar.subarray(0, 9999), tar.subarray(9999)].map((part) => zlib.zstdCompressSync(part)),
      ),
  ],
]

describe('pushing a manifest', () => {
  test.each(compressions)('layers that are %s are published as their tar', async (_, compress) => {
    const source = new MemoryImage()
    source.addManifest([
      { blob: compress(tarA), tar: tarA },
      { blob: compress(tarB), tar: tarB },
    ])
    const sourceManifest = parseManifest(source.manifest, 'source') as ImageManifest
    const progress = new Map<string, number>()
    const { pushed, image } = await push(source, ({ digest, doneBytes, totalBytes }) => {
      expect(doneBytes).toBeGreaterThan(progress.get(digest) ?? 0)
      expect(totalBytes).toBe(source.blobs.get(digest)?.length)
      progress.set(digest, doneBytes)
    })
    const manifest = await manifestOf(image)
    await expectLayers(image, manifest, [tarA, tarB])
    expect(manifest.mediaType).toBe(MEDIA_TYPES.ociManifest)
    // The config is the same bytes, so diff IDs and chain IDs are what they were.
    expect(manifest.config).toMatchObject({
      digest: sourceManifest.config.digest,
      mediaType: MEDIA_TYPES.ociConfig,
    })
    const config = await blobBytes(image, manifest.config.digest)
    expect(digestOf(config)).toBe(sourceManifest.config.digest)
    expect(await manifestOf(image, pushed.digest)).toEqual(manifest)
    expect(pushed.layers.map(({ sourceDigest, layerBytes }) => [sourceDigest, layerBytes])).toEqual(
      [
        [sourceManifest.layers[0]?.digest, tarA.length],
        [sourceManifest.layers[1]?.digest, tarB.length],
      ],
    )
    for (const { sourceDigest, sourceBytes } of pushed.layers) {
      expect(progress.get(sourceDigest)).toBe(sourceBytes)
    }
  })

  test('the same image has the same CID again', async () => {
    const source = new MemoryImage()
    source.addManifest([{ blob: zlib.gzipSync(tarA), tar: tarA }])
    const [first, second] = [await push(source), await push(source)]
    expect(first.pushed.root.toString()).toBe(second.pushed.root.toString())
  })

  test('a layer that two manifests share is published once', async () => {
    const source = new MemoryImage()
    const blob = zlib.gzipSync(tarA)
    source.addManifest([
      { blob, tar: tarA },
      { blob, tar: tarA },
    ])
    const { pushed, image } = await push(source)
    expect(pushed.layers).toHaveLength(1)
    await expectLayers(image, await manifestOf(image), [tarA, tarA])
  })

  test('encrypted and foreign layers stay as they are', async () => {
    const source = new MemoryImage()
    const secret = Buffer.alloc(300_000, 'secret')
    source.addManifest([
      { blob: tarA, tar: tarA },
      {
        blob: secret,
        tar: tarB,
        mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip+encrypted',
      },
    ])
    const { pushed, image } = await push(source)
    expect(pushed.layers[1]).toMatchObject({
      keptBecause: 'it is encrypted',
      digest: digestOf(secret),
    })
    const { layers } = await manifestOf(image)
    expect((await blobBytes(image, layers[1]?.digest ?? '')).equals(secret)).toBe(true)
  })
})

describe('pushing an index', () => {
  function twoPlatforms(): { source: MemoryImage; amd64: Descriptor; arm64: Descriptor } {
    const source = new MemoryImage()
    const amd64 = source.addManifest([
      { blob: tarA, tar: tarA },
      { blob: tarB, tar: tarB },
    ])
    const arm64 = source.addManifest(
      [
        { blob: tarA, tar: tarA },
        { blob: tarC, tar: tarC },
      ],
      'arm64',
    )
    const attestation = {
      ...source.addManifest([{ blob: tarB, tar: tarB }], 'unknown'),
      annotations: { 'vnd.docker.reference.digest': amd64.digest },
    }
    const manifests = [amd64, arm64, attestation]
    source.manifest = Buffer.from(JSON.stringify({ schemaVersion: 2, manifests }))
    return { source, amd64, arm64 }
  }

  test('all platforms are kept, and an attestation speaks of the new manifest', async () => {
    const { source } = twoPlatforms()
    const { pushed, image } = await push(source)
    const { bytes } = await image.manifest('latest', request)
    const index = parseManifest(bytes, 'index') as ImageIndex
    expect(index.mediaType).toBe(MEDIA_TYPES.ociIndex)
    expect(index.manifests.map(({ platform }) => platform?.architecture)).toEqual([
      'amd64',
      'arm64',
      'unknown',
    ])
    for (const [child, tars] of [
      [0, [tarA, tarB]],
      [1, [tarA, tarC]],
    ] as const) {
      const { digest = '' } = index.manifests[child] ?? {}
      await expectLayers(image, await manifestOf(image, digest), [...tars])
      // As an OCI layout would have it, too.
      expect(digestOf(await blobBytes(image, digest))).toBe(digest)
    }
    expect(index.manifests[2]?.annotations).toMatchObject({
      'vnd.docker.reference.digest': index.manifests[0]?.digest,
    })
    expect(pushed.layers).toHaveLength(3)
    expect(pushed.missingPlatforms).toEqual([])
  })

  test('platforms that the source lacks are left out and named', async () => {
    const { source, arm64 } = twoPlatforms()
    source.blobs.delete(arm64.digest)
    const { pushed, image } = await push(source)
    expect(pushed.missingPlatforms).toEqual(['linux/arm64'])
    const { bytes } = await image.manifest('latest', request)
    expect((parseManifest(bytes, 'index') as ImageIndex).manifests).toHaveLength(2)
  })
})

describe('an image that is not what it says is refused', () => {
  function oneLayer(blob: Uint8Array, tar: Uint8Array): MemoryImage {
    const source = new MemoryImage()
    source.addManifest([{ blob, tar }])
    return source
  }
  function spoil(image: MemoryImage, change: (blob: Buffer) => Buffer): MemoryImage {
    const { layers } = parseManifest(image.manifest, 'source') as ImageManifest
    const digest = layers[0]?.digest ?? digestOf(Buffer.alloc(0))
    image.blobs.set(digest, change(Buffer.from(image.blobs.get(digest) ?? [])))
    return image
  }
  const middle = (blob: Buffer): Buffer => {
    blob[blob.length >> 1] = (blob[blob.length >> 1] ?? 0) ^ 1
    return blob
  }
  test.each<[string, () => MemoryImage, string, RegExp]>([
    [
      'another diff ID',
      () => oneLayer(zlib.gzipSync(tarA), tarB),
      'DATA_LOSS',
      /its config says sha256/,
    ],
    [
      'another digest',
      () => spoil(oneLayer(tarA, tarA), (b) => Buffer.concat([b, Buffer.alloc(512)])),
      'DATA_LOSS',
      /asked for was/,
    ],
    [
      'truncated gzip',
      () => oneLayer(zlib.gzipSync(tarA).subarray(0, -9), tarA),
      'DATA_LOSS',
      /cut off/,
    ],
    [
      'damaged gzip',
      () => oneLayer(middle(zlib.gzipSync(tarA)), tarA),
      'DATA_LOSS',
      /damaged|incorrect|invalid/,
    ],
    [
      'truncated zstd',
      () => oneLayer(zlib.zstdCompressSync(tarA).subarray(0, -9), tarA),
      'DATA_LOSS',
      /cut off/,
    ],
    [
      'a truncated tar',
      () => oneLayer(tarA.subarray(0, 70_000), tarA.subarray(0, 70_000)),
      'DATA_LOSS',
      /cut off/,
    ],
  ])('%s', async (_, source, code, sentence) => {
    await expect(push(source())).rejects.toMatchObject({
      code,
      message: expect.stringMatching(sentence),
    })
  })

  test('as many layers as diff IDs', async () => {
    const source = oneLayer(tarA, tarA)
    const manifest = JSON.parse(Buffer.from(source.manifest).toString()) as { layers: object[] }
    manifest.layers.push(source.add(tarB, 'application/vnd.oci.image.layer.v1.tar'))
    source.manifest = Buffer.from(JSON.stringify(manifest))
    await expect(push(source)).rejects.toThrow(/has 2 layers, its config lists 1 diff IDs/)
  })

  test('an abort while a layer is written', async () => {
    const stop = new AbortController()
    const pushing = pushImage(
      oneLayer(tarA, tarA),
      { put: async () => {} },
      { signal: stop.signal, onProgress: () => stop.abort() },
    )
    await expect(pushing).rejects.toMatchObject({ code: 'CANCELLED' })
  })
})

describe('sources on disk', () => {
  let root: string
  const config = (...layers: Uint8Array[]): Buffer =>
    Buffer.from(
      JSON.stringify({
        architecture: 'amd64',
        os: 'linux',
        rootfs: { type: 'layers', diff_ids: layers.map((layer) => digestOf(layer)) },
      }),
    )
  const layoutFiles = new Map<string, Uint8Array>()

  beforeAll(() => {
    root = mkdtempSync(join(tmpdir(), 'push-image-'))
    const manifests = []
    for (const [name, tar] of [
      ['first', tarA],
      ['second', tarB],
    ] as const) {
      const source = new MemoryImage()
      const descriptor = source.addManifest([{ blob: zlib.gzipSync(tar), tar }])
      manifests.push({ ...descriptor, annotations: { 'org.opencontainers.image.ref.name': name } })
      for (const [digest, bytes] of source.blobs) {
        layoutFiles.set(`blobs/${digest.replace(':', '/')}`, bytes)
      }
    }
    layoutFiles.set('oci-layout', Buffer.from('{"imageLayoutVersion":"1.0.0"}'))
    layoutFiles.set('index.json', Buffer.from(JSON.stringify({ schemaVersion: 2, manifests })))
    mkdirSync(join(root, 'layout/blobs/sha256'), { recursive: true })
    for (const [path, bytes] of layoutFiles) writeFileSync(join(root, 'layout', path), bytes)
  })
  afterAll(() => rmSync(root, { recursive: true, force: true }))

  test('an OCI layout, by the name of one of its images', async () => {
    const layout = await layoutDirectory(join(root, 'layout'))
    const { image } = await push(await openOciLayout(layout, 'second'))
    await expectLayers(image, await manifestOf(image), [tarB])
    await expect(openOciLayout(layout)).rejects.toThrow(
      /2 images \(first, second\), which one to push/,
    )
    await expect(openOciLayout(layout, 'third')).rejects.toThrow(/not one named third/)
    await expect(layoutDirectory(join(root, 'nowhere'))).rejects.toMatchObject({
      code: 'NOT_FOUND',
    })
  })

  test('an OCI archive on stdin', async () => {
    const parts = [...layoutFiles].map(([name, content]): TarPart => ({ name, content }))
    const file = join(root, 'oci.tar')
    writeFileSync(file, makeTar(...parts))
    const options = { spoolDirectory: root, signal, name: 'first' }
    await using opened = await openTarStream(createReadStream(file), options)
    const { image } = await push(opened)
    const manifest = await manifestOf(image)
    expect(manifest.layers).toHaveLength(1)
    await expectLayers(image, manifest, [tarA])
  })

  test('a docker-archive with a layer twice by symlink, plain and compressed', async () => {
    const parts: TarPart[] = [
      { name: 'aa/layer.tar', content: tarA },
      { name: 'bb/layer.tar', typeflag: '2', linkName: '../aa/layer.tar' },
      { name: 'cfg.json', content: config(tarA, tarA, tarB) },
      { name: 'cc.tar', content: zlib.gzipSync(tarB) },
      {
        name: 'manifest.json',
        content: JSON.stringify([
          {
            Config: 'cfg.json',
            RepoTags: ['demo:1'],
            Layers: ['aa/layer.tar', 'bb/layer.tar', './cc.tar'],
          },
        ]),
      },
    ]
    const file = join(root, 'docker.tar')
    writeFileSync(file, makeTar(...parts))
    const roots: string[] = []
    {
      await using opened = await openTarFile(file, { signal, name: 'demo:1' })
      const { image, pushed } = await push(opened)
      await expectLayers(image, await manifestOf(image), [tarA, tarA, tarB])
      roots.push(pushed.root.toString())
    }
    writeFileSync(`${file}.gz`, zlib.gzipSync(makeTar(...parts)))
    {
      const options = { spoolDirectory: root, signal }
      await using opened = await openTarStream(createReadStream(`${file}.gz`), options)
      roots.push((await push(opened)).pushed.root.toString())
    }
    expect(roots[0]).toBe(roots[1])
    await expect(openTarFile(file, { signal, name: 'demo:2' })).rejects.toThrow(
      /not one named demo:2/,
    )
  })

  test('a root filesystem becomes an image of one layer, compressed or not, and leaves no spool behind', async () => {
    const roots: string[] = []
    for (const bytes of [tarC, zlib.gzipSync(tarC), zlib.zstdCompressSync(tarC)]) {
      const file = join(root, 'rootfs')
      writeFileSync(file, bytes)
      const options = { spoolDirectory: root, signal }
      await using opened = await openTarStream(createReadStream(file), options)
      const { pushed, image } = await push(opened)
      await expectLayers(image, await manifestOf(image), [tarC])
      roots.push(pushed.root.toString())
    }
    expect(new Set(roots).size).toBe(1)
    expect(readdirSync(root).filter((name) => name.startsWith('push-'))).toEqual([])
  })

  test('an archive that lacks what it names, or is no tar, is refused and leaves no spool behind', async () => {
    const lacking = makeTar({
      name: 'manifest.json',
      content: '[{"Config":"gone.json","Layers":[]}]',
    })
    const climbing = makeTar({
      name: 'manifest.json',
      content: '[{"Config":"../../etc/passwd","Layers":[]}]',
    })
    for (const [bytes, sentence] of [
      [lacking, /lacks "gone.json"/],
      [climbing, /climbs out/],
      [Buffer.alloc(5000, 'no tar'), /checksum/],
      [zlib.gzipSync(tarA).subarray(0, 5000), /cut off/],
    ] as const) {
      const file = join(root, 'bad')
      writeFileSync(file, bytes)
      const opening = openTarStream(createReadStream(file), { spoolDirectory: root, signal })
      await expect(opening).rejects.toThrow(sentence)
    }
    expect(readdirSync(root).filter((name) => name.startsWith('push-'))).toEqual([])
  })
})
