import { createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { decryptJwe, encryptJwe } from '../../../snapshotter/encryption/jwe.ts'
import { encryptionAnnotations } from '../../../snapshotter/encryption/layer-encryption.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { failureOf } from '../../support/failure-of.ts'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { LazyNode } from './lazy-node.ts'
import {
  encryptedLayer,
  estargzLayer,
  gzipLayer,
  indexedLayer,
  type PublishedImage,
  plainLayer,
  publishImage,
  type TestLayer,
  zstdLayer,
} from './published-image.ts'

const deadlineMs = 60_000
const MARKER = Buffer.from('the publisher keeps this to himself')
const newKey = (): KeyObject => generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
const [key, stranger] = [newKey(), newKey()]
const secret = randomContent(seeded(5), 3_000_000)
MARKER.copy(secret, 2_000_000)
const tar = makeTar(
  { name: 'secret', content: secret },
  { name: 'readme', content: Buffer.from('hello') },
)

async function openNode(blocks: MemoryBlocks, keys: readonly KeyObject[]): Promise<LazyNode> {
  const node = await LazyNode.open(blocks, { keys, foregroundDeadlineMs: 2_000 })
  onTestFinished(() => node[Symbol.asyncDispose]())
  return node
}

/** Reads all of `secret` from a fresh mount. */
async function readSecret(node: LazyNode, image: PublishedImage): Promise<Buffer> {
  await using mounted = await node.mount(image)
  return await readFile(join(mounted.path, 'secret'))
}

/** Fetches what is missing of the image, so that it is checked whole. */
async function pullWhole(node: LazyNode, { root }: PublishedImage): Promise<void> {
  const signal = AbortSignal.timeout(10_000)
  const options = { all: true, signal, onProgress: () => {} }
  await node.snapshotter.pull(`ipdr.internal/${root.toString()}`, options)
}

const formats: readonly [string, () => TestLayer | Promise<TestLayer>][] = [
  ['what ipdr push writes', () => indexedLayer(tar)],
  ['plain tar, called gzip by its manifest', () => plainLayer(tar)],
  ['eStargz', () => estargzLayer(tar)],
  ['gzip without a table of contents', () => gzipLayer(tar)],
  ['zstd without a table of contents', () => zstdLayer(tar)],
]

describe.each(formats)('an encrypted layer that is %s', (_, layerOf) => {
  test(
    'is read with the private key of its recipient, and checked whole: HMAC, digest and diff ID',
    async () => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [await encryptedLayer(await layerOf(), [key])])
      const node = await openNode(blocks, [stranger, key])
      await node.pull(image)
      expect((await readSecret(node, image)).equals(secret)).toBe(true)
      const [layer] = node.snapshotter.layers()
      if (layer === undefined) throw new Error('no layer')
      await pullWhole(node, image)
      expect(node.snapshotter.layers()[0]).toMatchObject({ verified: true, isComplete: true })
      expect(readdirSync(join(node.root, 'layers', String(layer.id)))).not.toContain('ciphertext')
    },
    deadlineMs,
  )

  test(
    'whose HMAC is another one is never read to its end',
    async () => {
      const blocks = new MemoryBlocks()
      const layer = await encryptedLayer(await layerOf(), [key])
      const name = 'org.opencontainers.image.enc.pubopts'
      const options = JSON.parse(
        Buffer.from(layer.annotations?.[name] ?? '', 'base64').toString(),
      ) as { hmac: string }
      options.hmac = Buffer.alloc(32, 7).toString('base64')
      const changed = Buffer.from(JSON.stringify(options)).toString('base64')
      const annotations = { ...layer.annotations, [name]: changed }
      const image = await publishImage(blocks, [{ ...layer, annotations }])
      const node = await openNode(blocks, [key])
      const failure = await failureOf(() => pullWhole(node, image))
      expect(failure).toMatchObject({ code: 'DATA_LOSS' })
      const said = [failure.message, ...node.log.sentences].join('\n')
      expect(said).toMatch(/another HMAC than its manifest says/)
    },
    deadlineMs,
  )
})

test(
  'only what is read of an encrypted layer is fetched and decrypted',
  async () => {
    const blocks = new MemoryBlocks()
    const layer = await encryptedLayer(await indexedLayer(tar), [key])
    const image = await publishImage(blocks, [layer])
    const node = await openNode(blocks, [key])
    await node.pull(image)
    await using mounted = await node.mount(image)
    expect(await readFile(join(mounted.path, 'readme'), 'utf8')).toBe('hello')
    expect(node.snapshotter.layers()[0]).toMatchObject({ isComplete: false, verified: false })
    expect(node.snapshotter.layers()[0]?.presentBytes).toBeLessThan(1_000_000)
  },
  deadlineMs,
)

test('without a key an image is refused with the kinds of its recipients, before a byte of the layer is fetched', async () => {
  const blocks = new MemoryBlocks()
  const layer = await encryptedLayer(plainLayer(tar), [key])
  const image = await publishImage(blocks, [layer])
  const node = await openNode(blocks, [stranger])
  await node.serve(image)
  const askedBefore = blocks.asked.length
  const failure = await failureOf(() => node.pull(image))
  expect(failure).toMatchObject({ code: 'PERMISSION_DENIED' })
  expect(failure.message).toContain(`layer ${digestOf(layer.blob)} is encrypted for jwe`)
  expect(failure.message).toContain('decryption.keysDir')
  // `pull` serves the manifest again, and looks for a prefetch list where the manifest was: blocks that were asked for before.
  const [before, after] = [blocks.asked.slice(0, askedBefore), blocks.asked.slice(askedBefore)]
  expect([...new Set(after)].toSorted()).toEqual([...new Set(before)].toSorted())
})

test.each(formats)(
  "layers that were given each other's keys are refused: %s",
  async (_, layerOf) => {
    const blocks = new MemoryBlocks()
    const one = await encryptedLayer(await layerOf(), [key])
    const other = await encryptedLayer(plainLayer(makeTar({ name: 'other' })), [key])
    const swapped = [
      { ...one, annotations: { ...one.annotations, ...keysOf(other) } },
      { ...other, annotations: { ...other.annotations, ...keysOf(one) } },
    ]
    const image = await publishImage(blocks, swapped)
    const node = await openNode(blocks, [key])
    const failure = await failureOf(() => node.pull(image))
    expect(failure).toMatchObject({ name: 'LayerError' })
    expect(node.snapshotter.mounts()).toEqual([])
  },
  deadlineMs,
)

test(
  'after a restart the key is asked for again when bytes are missing, and was written down nowhere',
  async () => {
    const blocks = new MemoryBlocks()
    const layer = await encryptedLayer(await indexedLayer(tar), [key])
    const image = await publishImage(blocks, [layer])
    const node = await openNode(blocks, [key])
    await node.pull(image)
    await node.stop()
    node.keys.length = 0
    await node.start(blocks)
    await using mounted = await node.mount(image)
    await expect(readFile(join(mounted.path, 'secret'))).rejects.toThrow(/EIO/)
    // The answer to the kernel comes before the sentence.
    await expect
      .poll(() => node.log.sentences.join('\n'))
      .toMatch(/secret.*no key of this node opens it/s)
    node.keys.push(key)
    expect((await readFile(join(mounted.path, 'secret'))).equals(secret)).toBe(true)
  },
  deadlineMs,
)

test(
  'what was encrypted anew for other recipients, its blob unchanged, is opened by their keys once the first ones are gone',
  async () => {
    const blocks = new MemoryBlocks()
    const layer = await encryptedLayer(await indexedLayer(tar), [key])
    const first = await publishImage(blocks, [layer])
    const node = await openNode(blocks, [key])
    await node.pull(first)
    const wrapped = await rewrapped(layer, key, stranger)
    const second = await publishImage(blocks, [wrapped])
    node.keys.splice(0, 1, stranger)
    await node.pull(second)
    await node.stop()
    await node.start(blocks)
    expect((await readSecret(node, second)).equals(secret)).toBe(true)
  },
  deadlineMs,
)

describe('an image that claims the diff ID of an encrypted layer that is here', () => {
  const claims: readonly [string, (layer: TestLayer) => TestLayer | Promise<TestLayer>][] = [
    [
      'and the same blob, said not to be encrypted',
      ({ annotations: _annotations, mediaType: _mediaType, ...layer }) => layer,
    ],
    [
      'and the same blob, with a key of its own',
      async (layer) => {
        const other = await encryptedLayer(plainLayer(layer.blob), [key])
        return { ...layer, annotations: other.annotations ?? {} }
      },
    ],
    [
      'and the same blob, for a recipient whose key is not here',
      (layer) => rewrapped(layer, key, stranger),
    ],
    [
      'for a blob of its own',
      ({ diffId }) => ({
        ...plainLayer(makeTar({ name: 'x', content: Buffer.from('x') })),
        diffId,
      }),
    ],
  ]
  test.each(claims)(
    '%s, is not handed out',
    async (_, claim) => {
      const blocks = new MemoryBlocks()
      const layer = await encryptedLayer(await indexedLayer(tar), [key])
      const image = await publishImage(blocks, [layer])
      const thief = await publishImage(blocks, [await claim(layer)])
      expect(thief.chainIds).toEqual(image.chainIds)
      const node = await openNode(blocks, [key])
      await node.pull(image)
      const failure = await failureOf(() => node.serve(thief))
      expect(failure.code).toMatch(/^(PERMISSION_DENIED|DATA_LOSS)$/)
      expect(node.snapshotter.images()).toHaveLength(1)
      expect((await readSecret(node, image)).equals(secret)).toBe(true)
    },
    deadlineMs,
  )

  test(
    'is handed out if it has the same layer in plain text, all of it fetched and checked',
    async () => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [
        await encryptedLayer(await indexedLayer(tar), [key]),
      ])
      const twin = await publishImage(blocks, [plainLayer(tar)])
      const node = await openNode(blocks, [key])
      await node.pull(image)
      await node.pull(twin)
      const twins = node.snapshotter
        .layers()
        .filter(({ mediaType }) => !mediaType.endsWith('encrypted'))
      expect(twins).toMatchObject([{ verified: true }])
      expect((await readSecret(node, twin)).equals(secret)).toBe(true)
    },
    deadlineMs,
  )
})

describe('a container on an encrypted layer', () => {
  /** A node where team-a alone has the key, and the container `c1` of the image, whoever started it. */
  async function withContainer(): Promise<{ node: LazyNode; blocks: MemoryBlocks }> {
    const blocks = new MemoryBlocks()
    const layers = [
      plainLayer(makeTar({ name: 'base' })),
      await encryptedLayer(plainLayer(tar), [key]),
    ]
    const image = await publishImage(blocks, layers)
    const node = await openNode(blocks, [key])
    node.namespaceKeys.set('team-a', [key]).set('team-b', [stranger])
    await node.pull(image)
    const snapshot = { key: 'k8s.io/7/c1', parent: image.chainIds.at(-1), labels: new Map() }
    await node.snapshotter.snapshots.prepare(snapshot, AbortSignal.timeout(10_000))
    return { node, blocks }
  }

  test('may be started by pods of a namespace that has a key for it, and of no other, though its bytes are here', async () => {
    const { node } = await withContainer()
    await node.snapshotter.authorize('c1', 'team-a')
    for (const namespace of ['team-b', 'team-c']) {
      const failure = await failureOf(() => node.snapshotter.authorize('c1', namespace))
      expect(failure).toMatchObject({ code: 'PERMISSION_DENIED' })
      expect(failure.message).toMatch(`pods of namespace ${namespace} may not see layer sha256:`)
    }
    node.namespaceKeys.delete('team-a')
    const failure = await failureOf(() => node.snapshotter.authorize('c1', 'team-a'))
    expect(failure).toMatchObject({ code: 'PERMISSION_DENIED' })
  })

  test('may be started by all once the same layer was published in plain text and checked', async () => {
    const { node, blocks } = await withContainer()
    await node.pull(
      await publishImage(blocks, [plainLayer(makeTar({ name: 'base' })), plainLayer(tar)]),
    )
    await expect(node.snapshotter.authorize('c1', 'team-b')).resolves.toBeUndefined()
  })

  test('of another image, or with no snapshot here, needs no key', async () => {
    const { node, blocks } = await withContainer()
    const image = await publishImage(blocks, [plainLayer(makeTar({ name: 'base' }))])
    await node.pull(image)
    const snapshot = { key: 'k8s.io/8/c2', parent: image.chainIds.at(-1), labels: new Map() }
    await node.snapshotter.snapshots.prepare(snapshot, AbortSignal.timeout(10_000))
    await expect(node.snapshotter.authorize('c2', 'team-b')).resolves.toBeUndefined()
    await expect(node.snapshotter.authorize('c3', 'team-b')).resolves.toBeUndefined()
  })
})

test(
  'the bytes of an encrypted layer are no source for another layer',
  async () => {
    const blocks = new MemoryBlocks()
    const image = await publishImage(blocks, [await encryptedLayer(await indexedLayer(tar), [key])])
    const node = await openNode(blocks, [key])
    await node.pull(image)
    await readSecret(node, image)
    const plain = await publishImage(blocks, [
      await indexedLayer(makeTar({ name: 'secret', content: secret })),
    ])
    await node.pull(plain)
    await readSecret(node, plain)
    expect(node.reusedBytes).toBe(0)
  },
  deadlineMs,
)

test(
  'an index beside an encrypted layer is not used, and none is given away of one that was read whole',
  async () => {
    const blocks = new MemoryBlocks()
    const layer = await encryptedLayer(gzipLayer(tar), [key])
    const image = await publishImage(blocks, [{ ...layer, sideIndex: Buffer.from('anything') }])
    const node = await openNode(blocks, [key])
    await node.pull(image)
    const [record] = node.snapshotter.layers()
    expect(record).toMatchObject({ format: 'tar+gzip', verified: true, indexCid: undefined })
    const failure = await failureOf(() => node.snapshotter.sideIndex(record?.blobCid ?? ''))
    expect(failure).toMatchObject({ code: 'NOT_FOUND' })
    expect(failure.message).toContain('it is encrypted')
  },
  deadlineMs,
)

test(
  'ciphertext that was lost on this node before the layer was checked is fetched again, and what is damaged is not believed',
  async () => {
    const blocks = new MemoryBlocks()
    const image = await publishImage(blocks, [await encryptedLayer(await indexedLayer(tar), [key])])
    const node = await openNode(blocks, [key])
    await node.pull(image)
    await using mounted = await node.mount(image)
    await readFile(join(mounted.path, 'readme'))
    const path = join(node.root, 'layers', '1', 'ciphertext')
    expect(existsSync(path)).toBe(true)
    const kept = readFileSync(path)
    writeFileSync(path, Buffer.alloc(kept.length, 9))
    await pullWhole(node, image)
    expect(node.snapshotter.layers()[0]).toMatchObject({ verified: true })
    expect(existsSync(path)).toBe(false)
    expect(node.verificationFailures).toEqual([])
  },
  deadlineMs,
)

test(
  'what is kept of an encrypted layer is damaged: the layer is fetched again',
  async () => {
    const blocks = new MemoryBlocks()
    const image = await publishImage(blocks, [await encryptedLayer(await indexedLayer(tar), [key])])
    const node = await openNode(blocks, [key])
    await node.pull(image)
    await node.stop()
    const path = join(node.root, 'layers', '1', 'leaves')
    const bytes = readFileSync(path)
    bytes[20] = (bytes[20] ?? 0) ^ 1
    rmSync(path)
    writeFileSync(path, bytes)
    await node.start(blocks)
    expect((await readSecret(node, image)).equals(secret)).toBe(true)
  },
  deadlineMs,
)

function keysOf({ annotations = {} }: TestLayer): Record<string, string> {
  return encryptionAnnotations(annotations)
}

/** The layer with its key wrapped for `to` instead of `from`. */
async function rewrapped(layer: TestLayer, from: KeyObject, to: KeyObject): Promise<TestLayer> {
  const name = 'org.opencontainers.image.enc.keys.jwe'
  const wrapped = Buffer.from(layer.annotations?.[name] ?? '', 'base64')
  const content = await decryptJwe(wrapped, from, 'the test layer')
  if (content === undefined) throw new Error('not for this key')
  const again = await encryptJwe(content, createPublicKey(to))
  const annotations = { ...layer.annotations, [name]: Buffer.from(again).toString('base64') }
  return { ...layer, annotations }
}
