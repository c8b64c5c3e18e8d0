import { createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import zlib from 'node:zlib'
import { describe, expect, test } from 'vitest'
import { openIpfsImage } from '../../../snapshotter/dag/open-ipfs-image.ts'
import {
  encryptionAnnotations,
  parseLayerEncryption,
} from '../../../snapshotter/encryption/layer-encryption.ts'
import { PrivateKeys } from '../../../snapshotter/encryption/private-keys.ts'
import type { PrivateOptions } from '../../../snapshotter/encryption/private-options.ts'
import { jweRecipient } from '../../../snapshotter/encryption/recipient.ts'
import { unwrapLayerKey } from '../../../snapshotter/encryption/unwrap-layer-key.ts'
import { ImageError, LayerError } from '../../../snapshotter/errors.ts'
import { indexImage } from '../../../snapshotter/index-image.ts'
import { inspectImage } from '../../../snapshotter/inspect.ts'
import { type Descriptor, MEDIA_TYPES } from '../../../snapshotter/oci/descriptor.ts'
import { type Digest, digestOf } from '../../../snapshotter/oci/digest.ts'
import {
  type ImageIndex,
  type ImageManifest,
  parseManifest,
} from '../../../snapshotter/oci/manifest.ts'
import { DEFAULT_TAG } from '../../../snapshotter/oci/reference.ts'
import { carryPrefetchLists } from '../../../snapshotter/optimize.ts'
import type { ImageToPush } from '../../../snapshotter/publish/image-to-push.ts'
import {
  type PushEncryption,
  type PushedImage,
  pushImage,
} from '../../../snapshotter/publish/push-image.ts'
import { readLayerIndex } from '../../../snapshotter/toc/read-layer-toc.ts'
import { failureOf } from '../../support/failure-of.ts'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomTreeTar } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'

const { signal } = new AbortController()
const request = { priority: 'foreground', signal } as const
const TAR_ZSTD = 'application/vnd.oci.image.layer.v1.tar+zstd'
const TAR_GZIP = 'application/vnd.oci.image.layer.v1.tar+gzip'

const keyPair = (): KeyObject => generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
const [alice, bob, stranger] = [keyPair(), keyPair(), keyPair()]
const forKeys = (...keys: KeyObject[]): PushEncryption['recipients'] =>
  keys.map((key) => jweRecipient(createPublicKey(key)))
const forAlice: PushEncryption = { recipients: forKeys(alice) }

const [base, middle, top] = [1, 2, 3].map((seed) => randomTreeTar(seeded(seed), 60)) as [
  Buffer,
  Buffer,
  Buffer,
]

/** A source of images in memory. */
class Source implements ImageToPush {
  readonly #blobs = new Map<Digest, Uint8Array>()
  manifest: Uint8Array = Buffer.alloc(0)

  async *blob(digest: Digest): AsyncGenerator<Uint8Array> {
    const bytes = this.#blobs.get(digest)
    if (bytes === undefined) throw new ImageError('NOT_FOUND', `no blob ${digest}`)
    yield bytes
  }

  add(bytes: Uint8Array, mediaType: string): Descriptor {
    const digest = digestOf(bytes)
    this.#blobs.set(digest, bytes)
    return { mediaType, digest, size: bytes.length }
  }

  /** An image of these tars, gzipped, and of other blobs as they are. */
  image(
    layers: readonly (Buffer | Descriptor)[],
    {
      architecture = 'amd64',
      config = MEDIA_TYPES.ociConfig,
    }: { architecture?: string; config?: string } = {},
  ): Descriptor {
    const isTar = (layer: Buffer | Descriptor): layer is Buffer => layer instanceof Buffer
    const diffIds = layers.map((layer) => (isTar(layer) ? digestOf(layer) : layer.digest))
    const platform = { architecture, os: 'linux' }
    const written = { ...platform, rootfs: { type: 'layers', diff_ids: diffIds } }
    this.manifest = Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: MEDIA_TYPES.ociManifest,
        config: this.add(Buffer.from(JSON.stringify(written)), config),
        layers: layers.map((layer) =>
          isTar(layer) ? this.add(zlib.gzipSync(layer), TAR_GZIP) : layer,
        ),
      }),
    )
    return { ...this.add(this.manifest, MEDIA_TYPES.ociManifest), platform }
  }

  index(manifests: readonly Descriptor[]): void {
    this.manifest = Buffer.from(JSON.stringify({ schemaVersion: 2, manifests }))
  }
}

type Pushed = {
  readonly pushed: PushedImage
  readonly blocks: MemoryBlocks
  readonly manifest: ImageManifest | ImageIndex
  readonly blob: (digest: Digest) => Promise<{ bytes: Buffer; leafStarts: number[] }>
}

async function push(source: ImageToPush, encryption?: PushEncryption): Promise<Pushed> {
  const blocks = new MemoryBlocks()
  const sink = {
    put: async (cid: { toString(): string }, block: Uint8Array): Promise<void> => {
      blocks.blocks.set(cid.toString(), block)
    },
  }
  const pushed = await pushImage(source, sink, {
    signal,
    ...(encryption === undefined ? {} : { encryption }),
  })
  const image = await openIpfsImage(pushed.root, blocks, request)
  const { bytes } = await image.manifest(DEFAULT_TAG, request)
  return {
    pushed,
    blocks,
    manifest: parseManifest(bytes, 'manifest'),
    blob: async (digest) => {
      const file = await image.blob(digest, request)
      const bytes = await file.readRange({ start: 0, end: file.size }, request)
      return { bytes: Buffer.from(bytes), leafStarts: [...file.leafStarts] }
    },
  }
}

function layersOf({ manifest }: Pushed): readonly Descriptor[] {
  if (manifest.kind === 'index') throw new Error('an index')
  return manifest.layers
}

function open(layer: Descriptor, key: KeyObject): Promise<PrivateOptions> {
  const encryption = parseLayerEncryption(layer.annotations ?? {}, layer.digest)
  return unwrapLayerKey(encryption, new PrivateKeys([key]), layer.digest, signal)
}

function singleImage(...layers: (Buffer | Descriptor)[]): Source {
  const source = new Source()
  source.image(layers)
  return source
}

describe('an encrypted push', () => {
  // Goal: nothing but the bytes of layers changes. Method: the same image is pushed in plain text, and each layer, decrypted,
  // is compared with its twin: bytes, leaves, annotations and the table of contents that they lead to.
  test('writes the very layers of a plain one, byte by byte and leaf by leaf, for each recipient and nobody else', async () => {
    const plain = await push(singleImage(base, top))
    const secret = await push(singleImage(base, top), { recipients: forKeys(alice, bob) })
    expect(layersOf(secret)).toHaveLength(2)
    for (const [at, layer] of layersOf(secret).entries()) {
      const twin = layersOf(plain)[at] as Descriptor
      expect(layer).toMatchObject({ mediaType: `${TAR_ZSTD}+encrypted`, size: twin.size })
      const [ciphertext, plaintext] = [
        await secret.blob(layer.digest),
        await plain.blob(twin.digest),
      ]
      expect(digestOf(ciphertext.bytes)).toBe(layer.digest)
      expect(ciphertext.leafStarts).toEqual(plaintext.leafStarts)
      for (const key of [alice, bob]) {
        const { key: opened, plainDigest } = await open(layer, key)
        const decrypted = Buffer.from(opened.apply(0, ciphertext.bytes))
        expect(decrypted.equals(plaintext.bytes)).toBe(true)
        expect(plainDigest).toBe(twin.digest)
        const hmac = opened.hmac()
        hmac.update(ciphertext.bytes)
        expect(hmac.matches(parseLayerEncryption(layer.annotations ?? {}, '').hmac)).toBe(true)
        const { annotations = {}, size } = layer
        const index = await readLayerIndex(
          annotations,
          async ({ start, end }) => decrypted.subarray(start, end),
          size,
          signal,
        )
        expect(index?.toc.entries.length).toBe(secret.pushed.layers[at]?.entries)
      }
      expect(await failureOf(() => open(layer, stranger))).toMatchObject({
        code: 'PERMISSION_DENIED',
      })
      const opening = Object.keys(encryptionAnnotations(layer.annotations ?? {}))
      const others = Object.entries(layer.annotations ?? {}).filter(
        ([name]) => !opening.includes(name),
      )
      expect(Object.fromEntries(others)).toEqual(twin.annotations)
    }
    expect(secret.pushed.layers).toMatchObject([
      { recipientKinds: ['jwe'] },
      { recipientKinds: ['jwe'] },
    ])
  })

  test('keeps the config to the byte, diff IDs and all: it is not encrypted', async () => {
    const [plain, secret] = [await push(singleImage(base)), await push(singleImage(base), forAlice)]
    const configOf = ({ manifest }: Pushed): string =>
      manifest.kind === 'index' ? '' : manifest.config.digest
    expect(configOf(secret)).toBe(configOf(plain))
  })

  test('has no block in common with itself pushed again: each layer has a fresh key', async () => {
    const [one, other] = [
      await push(singleImage(base), forAlice),
      await push(singleImage(base), forAlice),
    ]
    const leaves = ({ blocks }: Pushed): string[] =>
      [...blocks.blocks].filter(([, bytes]) => bytes.length > 4096).map(([cid]) => cid)
    expect(leaves(one).length).toBeGreaterThan(2)
    expect(leaves(one).filter((cid) => leaves(other).includes(cid))).toEqual([])
  })

  test('publishes a layer that an image has twice once', async () => {
    const secret = await push(singleImage(base, base), forAlice)
    expect(secret.pushed.layers).toHaveLength(1)
    const [one, other] = layersOf(secret)
    expect(one).toEqual(other)
  })

  test('leaves no file name and no content in plain text', async () => {
    const { blocks } = await push(singleImage(middle), forAlice)
    const plain = await push(singleImage(middle))
    // Whatever frame of a plain push is found again, at the granularity of 64 bytes, would be a leak.
    const [layer] = layersOf(plain)
    const { bytes } = await plain.blob(layer?.digest as Digest)
    const published = Buffer.concat([...blocks.blocks.values()])
    for (let at = 0; at + 64 <= bytes.length; at += 4099) {
      expect(published.includes(bytes.subarray(at, at + 64)), `byte ${at}`).toBe(false)
    }
  })

  test('that a provider does not serve fails, and nothing refers to what was put', async () => {
    const down = new LayerError('UNAVAILABLE', 'down')
    const recipients = [{ kind: 'provider.down', wrap: () => Promise.reject(down) }]
    const failure = await failureOf(() => push(singleImage(base), { recipients }))
    expect(failure).toMatchObject({ name: 'LayerError', code: 'UNAVAILABLE' })
  })

  test('whose manifest would be too long for nodes is refused', async () => {
    const tars = Array.from({ length: 90 }, (_, at) => makeTar({ name: `${at}` }))
    const bytes = Buffer.alloc(40 * 1024)
    const long = {
      kind: 'provider.long',
      wrap: async () => ({ kind: 'provider', provider: 'long', bytes }) as const,
    }
    const failure = await failureOf(() => push(singleImage(...tars), { recipients: [long] }))
    expect(failure).toMatchObject({
      name: 'ImageError',
      code: 'RESOURCE_EXHAUSTED',
      message: expect.stringMatching(/nodes read 4194304: encrypt for fewer recipients/) as string,
    })
  })

  test('for nobody is refused', async () => {
    const failure = await failureOf(() => push(singleImage(base), { recipients: [] }))
    expect(failure).toMatchObject({ code: 'INVALID_ARGUMENT', message: /for nobody/ })
  })
})

describe('the layers to encrypt', () => {
  const isLocked = (pushed: Pushed): boolean[] =>
    layersOf(pushed).map(({ mediaType }) => mediaType.endsWith('+encrypted'))

  test.each([
    [[0], [true, false, false]],
    [[-1], [false, false, true]],
    [
      [1, -3],
      [true, true, false],
    ],
  ])('are counted from the lowest, or from the highest down: %j', async (layers, expected) => {
    const secret = await push(singleImage(base, middle, top), { ...forAlice, layers })
    expect(isLocked(secret)).toEqual(expected)
  })

  test.each([3, -4])('exist: %i of three is refused', async (layer) => {
    const source = singleImage(base, middle, top)
    const failure = await failureOf(() => push(source, { ...forAlice, layers: [layer] }))
    expect(failure).toMatchObject({
      name: 'ImageError',
      code: 'OUT_OF_RANGE',
      message: expect.stringMatching(/has layers -3 to 2/) as string,
    })
  })

  test('are encrypted wherever they stand in the image', async () => {
    const secret = await push(singleImage(base, top, base), { ...forAlice, layers: [0] })
    expect(isLocked(secret)).toEqual([true, false, true])
  })

  test('are not public in another image of the same index', async () => {
    const source = new Source()
    source.index([source.image([base, top]), source.image([top, base], { architecture: 'arm64' })])
    const failure = await failureOf(() => push(source, { ...forAlice, layers: [0] }))
    expect(failure).toMatchObject({
      name: 'ImageError',
      code: 'FAILED_PRECONDITION',
      message: expect.stringMatching(/encrypted for one platform and in plain text for/) as string,
    })
  })
})

describe('what cannot be encrypted', () => {
  test('stops the push, if it would be published in plain text', async () => {
    const source = new Source()
    const odd = source.add(Buffer.from('not a layer'), 'application/vnd.test')
    source.image([base, odd])
    const failure = await failureOf(() => push(source, forAlice))
    expect(failure).toMatchObject({
      name: 'ImageError',
      code: 'FAILED_PRECONDITION',
      message: expect.stringMatching(
        /cannot be encrypted: its media type application\/vnd.test/,
      ) as string,
    })
    const other = await push(source, { ...forAlice, layers: [0] })
    expect(layersOf(other)[1]).toEqual(odd)
  })

  test('stops the push, if it is no image at all', async () => {
    const source = new Source()
    source.image([base], { config: 'application/vnd.test.config' })
    expect(await failureOf(() => push(source, forAlice))).toMatchObject({
      code: 'FAILED_PRECONDITION',
      message: expect.stringMatching(/is no container image/) as string,
    })
  })

  test('stays as it is, if it is encrypted already', async () => {
    const source = new Source()
    const locked = source.add(Buffer.alloc(5000, 'x'), `${TAR_GZIP}+encrypted`)
    source.image([locked, base])
    const secret = await push(source, forAlice)
    expect(layersOf(secret)[0]).toEqual(locked)
    expect(secret.pushed.layers[0]).toMatchObject({ keptBecause: 'it is encrypted' })
  })

  test('is left out, if it is an attestation: it lists what the layers hold', async () => {
    const source = new Source()
    const image = source.image([base])
    const attestation = {
      ...source.image([top], { architecture: 'unknown' }),
      annotations: { 'vnd.docker.reference.digest': image.digest },
    }
    source.index([image, attestation])
    const { pushed, manifest } = await push(source, forAlice)
    expect(manifest).toMatchObject({ kind: 'index', manifests: [{}] })
    expect(pushed.leftOut).toEqual([attestation.digest])
  })

  test('takes no encryption over from its source: stale annotations go', async () => {
    const source = new Source()
    source.image([base])
    const stale = { 'org.opencontainers.image.enc.keys.provider.old': 'AA==' }
    const written = JSON.parse(Buffer.from(source.manifest).toString()) as { layers: Descriptor[] }
    written.layers = written.layers.map((layer) => ({ ...layer, annotations: stale }))
    source.manifest = Buffer.from(JSON.stringify(written))
    const [layer] = layersOf(await push(source, forAlice))
    expect(Object.keys(layer?.annotations ?? {})).not.toContain(Object.keys(stale)[0])
  })
})

describe('an encrypted image', () => {
  test('is inspected without its ciphertext: kinds of recipients, cipher, and which table it has inside', async () => {
    const { pushed, blocks } = await push(singleImage(base, top), {
      recipients: forKeys(alice, bob),
      layers: [1],
    })
    const image = { root: pushed.root, selector: DEFAULT_TAG }
    const { manifests } = await inspectImage(image, { blocks, signal })
    expect(manifests).toMatchObject([
      {
        layers: [
          { format: 'tar+zstd', lazy: { kind: 'index', table: 'ipdr' } },
          {
            mediaType: `${TAR_ZSTD}+encrypted`,
            format: 'encrypted',
            lazy: {
              kind: 'encrypted',
              table: 'ipdr',
              cipher: 'AES_256_CTR_HMAC_SHA256',
              recipientKinds: ['jwe'],
              recipients: 2,
            },
          },
        ],
      },
    ])
  })

  test('whose annotations cannot be used is inspected with the reason', async () => {
    const source = new Source()
    source.image([source.add(Buffer.alloc(500, 'x'), `${TAR_GZIP}+encrypted`)])
    const { pushed, blocks } = await push(source)
    const image = { root: pushed.root, selector: DEFAULT_TAG }
    const { manifests } = await inspectImage(image, { blocks, signal })
    expect(manifests).toMatchObject([
      {
        layers: [
          {
            format: 'encrypted',
            lazy: { kind: 'none', because: expect.stringMatching(/has no annotation/) as string },
          },
        ],
      },
    ])
  })

  test('gets no index beside it; of one that is partly encrypted, the other layers do', async () => {
    const sink = { put: async (): Promise<void> => undefined }
    const all = await push(singleImage(base, top), forAlice)
    const image = { root: all.pushed.root, selector: DEFAULT_TAG }
    const refusal = await failureOf(() => indexImage(image, { blocks: all.blocks, sink, signal }))
    expect(refusal).toMatchObject({
      name: 'ImageError',
      code: 'FAILED_PRECONDITION',
      message: expect.stringMatching(
        /every layer of .* is encrypted.*ipdr push --encrypt-to/,
      ) as string,
    })
    const { pushed, blocks } = await push(singleImage(base, top), { ...forAlice, layers: [0] })
    const partly = { root: pushed.root, selector: DEFAULT_TAG }
    const { layers } = await indexImage(partly, { blocks, sink, signal })
    expect(layers).toMatchObject([
      { kind: 'impossible', because: expect.stringMatching(/it is encrypted/) as string },
      { kind: 'needs-none' },
    ])
  })

  test('takes no prefetch list over: it would name files in plain text', async () => {
    const { pushed, blocks } = await push(singleImage(base), forAlice)
    const sink = { put: async (): Promise<void> => undefined }
    const lists = new Map([['linux/amd64', { layers: [], files: [], ranges: [] }]])
    const image = { root: pushed.root, selector: DEFAULT_TAG }
    const failure = await failureOf(() =>
      carryPrefetchLists(lists, image, { blocks, sink, signal }),
    )
    expect(failure).toMatchObject({
      name: 'ImageError',
      code: 'FAILED_PRECONDITION',
      message: expect.stringMatching(/would name their files to everybody/) as string,
    })
  })
})
