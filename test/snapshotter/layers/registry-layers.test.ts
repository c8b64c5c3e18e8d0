import { generateKeyPairSync } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { AgentRegistries } from '../../../agent/registries/agent-registries.ts'
import { RegistryLogin } from '../../../agent/registries/registry-login.ts'
import { type Digest, digestOf } from '../../../snapshotter/oci/digest.ts'
import { layerChainIds } from '../../../snapshotter/oci/layer-chain-id.ts'
import type { Prepared } from '../../../snapshotter/snapshots/snapshots.ts'
import { signMessage } from '../../../snapshotter/trust/signing-key.ts'
import {
  PAYLOAD_MEDIA_TYPE,
  payloadBytes,
  SIGNATURE_ANNOTATION,
  signatureTag,
} from '../../../snapshotter/trust/simple-signing.ts'
import type { TrustPolicy } from '../../../snapshotter/trust.ts'
import { compareTrees } from '../../support/compare-trees.ts'
import { failureOf } from '../../support/failure-of.ts'
import { layoutOfBlobs } from '../../support/images/layout-of-blobs.ts'
import type { OciLayout } from '../../support/images/oci-layout.ts'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { type Login, type OciRegistry, startOciRegistry } from '../../support/oci-registry.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { runCommand } from '../../support/run-command.ts'
import { Scratch } from '../../support/scratch.ts'
import { seeded } from '../../support/seeded.ts'
import { LazyNode } from './lazy-node.ts'
import {
  chunkedLayer,
  estargzLayer,
  gzipLayer,
  indexedLayer,
  publishImage,
  type TestLayer,
} from './published-image.ts'

// Images in Debian's docker-registry, which wants a password, pulled as containerd tells a snapshotter of it.

const opened = new AsyncDisposableStack()
const right = { username: 'reader', password: 'right' }
let scratch: Scratch
let registry: OciRegistry
let images = 0

beforeAll(async () => {
  scratch = opened.use(Scratch.open('registry-layers'))
  const auth = { kind: 'htpasswd', logins: [right] } as const
  registry = opened.use(await startOciRegistry(scratch, { auth }))
}, 60_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

/** An image in the registry, and what containerd would know of it. */
type RegistryImage = {
  readonly name: string
  readonly layout: OciLayout
  readonly chainIds: readonly string[]
}

async function push(...layers: readonly TestLayer[]): Promise<RegistryImage> {
  const layout = layoutOfBlobs(join(scratch.dir, `image-${images}`), layers)
  const name = await registry.push(layout, `team/app-${images++}`)
  const chainIds = layerChainIds(layers.map(({ diffId }) => diffId)).map(String)
  return { name, layout, chainIds }
}

type Node = LazyNode & {
  /** What the node shows to the registry; may be changed. */
  logins: readonly Login[]
  received: number
  refused: number
}

async function openNode(options: Parameters<typeof LazyNode.open>[1] = {}): Promise<Node> {
  const counts = { logins: [right] as readonly Login[], received: 0, refused: 0 }
  const registries = new AgentRegistries(
    { hosts: {} },
    {
      logins: [
        {
          loginsFor: async () =>
            node.logins.map(({ username, password }) =>
              RegistryLogin.password(`test ${username}`, username, password),
            ),
        },
      ],
      log: {
        info: (facts, sentence) => node.log.info(facts, sentence),
        warn: (facts, sentence) => node.log.warn(facts, sentence),
      },
      metrics: {
        registryReceived: (bytes) => (node.received += bytes),
        registryLoginRefused: () => (node.refused += 1),
      },
    },
  )
  onTestFinished(() => registries[Symbol.asyncDispose]())
  const node: Node = Object.assign(
    await LazyNode.open(new MemoryBlocks(), { registries, ...options }),
    counts,
  )
  onTestFinished(() => node[Symbol.asyncDispose]())
  return node
}

const prefix = 'containerd.io/snapshot/cri.'

/** The labels of layer `index` as containerd sets them. */
function labelsOf(image: RegistryImage, index: number): Map<string, string> {
  const digests = image.layout.layers.map(({ digest }) => digest)
  return new Map([
    ['containerd.io/snapshot.ref', image.chainIds[index] ?? ''],
    [`${prefix}image-ref`, image.name],
    [`${prefix}manifest-digest`, image.layout.manifestDigest],
    [`${prefix}layer-digest`, digests[index] ?? ''],
    [`${prefix}image-layers`, digests.slice(index).join(',')],
  ])
}

let prepared = 0

/** Asks for each layer, bottom first, up to the first that containerd has to download; `change` has the last word on labels. */
async function pull(
  node: LazyNode,
  image: RegistryImage,
  change: (labels: Map<string, string>) => void = () => {},
): Promise<Prepared['kind'][]> {
  const kinds: Prepared['kind'][] = []
  let parent: string | undefined
  for (const [index, chainId] of image.chainIds.entries()) {
    const labels = labelsOf(image, index)
    change(labels)
    const key = `extract-${prepared++} ${chainId}`
    const { signal } = new AbortController()
    const { kind } = await node.snapshotter.snapshots.prepare({ key, parent, labels }, signal)
    kinds.push(kind)
    if (kind !== 'committed') break
    parent = chainId
  }
  return kinds
}

const mount = (node: LazyNode, image: RegistryImage) =>
  node.mount({ chainIds: image.chainIds } as Parameters<LazyNode['mount']>[0])

const sentences = (node: LazyNode, text: string): string[] =>
  node.log.sentences.filter((sentence) => sentence.includes(text))

/** Files of one kind of content, so that a changed byte can be found in the blob. */
function treeTar(seed: number): Buffer {
  const random = seeded(seed)
  return makeTar(
    { name: './', typeflag: '5', mode: 0o755 },
    { name: `d${seed}/`, typeflag: '5', mode: 0o755 },
    ...Array.from({ length: 40 }, (_, index) => ({
      name: `d${seed}/file-${index}`,
      content: randomContent(random, 20_000 + random(60_000)),
    })),
    { name: `d${seed}/large`, content: randomContent(random, 3_000_000) },
  )
}

/** The tree of tars, one over the other, as GNU tar unpacks them. */
async function unpacked(node: LazyNode, ...tars: readonly Uint8Array[]): Promise<string> {
  const dir = join(node.scratch.dir, 'unpacked')
  await mkdir(dir)
  for (const tar of tars) {
    const flags = ['-xp', '--delay-directory-restore', '--numeric-owner', '--directory', dir]
    await runCommand('tar', flags, { input: tar })
  }
  return dir
}

describe('an image in a registry', () => {
  const [base, top] = [treeTar(1), treeTar(2)]

  test.each([
    ['eStargz', async (tar: Buffer) => estargzLayer(tar)],
    ['zstd:chunked', chunkedLayer],
    ['ipdr push', indexedLayer],
  ])(
    'of %s is mounted from a part of its bytes, and shows the tree of its tars',
    async (_, layerOf) => {
      const image = await push(await layerOf(base), await layerOf(top))
      const size = image.layout.layers.reduce((sum, layer) => sum + layer.size, 0)
      const node = await openNode()
      expect(await pull(node, image)).toEqual(['committed', 'committed'])
      const toMount = node.received
      expect(toMount).toBeLessThan(size / 4)
      await using mounted = await mount(node, image)
      expect(await compareTrees(mounted.path, await unpacked(node, base, top))).toEqual([])
      expect(sentences(node, 'EIO')).toEqual([])
      expect(node.snapshotter.images()[0]?.reference).toBe(image.name)
    },
    60_000,
  )

  test('is found by its tag where the manifest digest is not told', async () => {
    const image = await push(estargzLayer(base), estargzLayer(top))
    const node = await openNode()
    const withoutDigest = (labels: Map<string, string>): void =>
      void labels.delete(`${prefix}manifest-digest`)
    expect(await pull(node, image, withoutDigest)).toEqual(['committed', 'committed'])
  })

  test('is not lazy without labels, and nobody is asked', async () => {
    const image = await push(estargzLayer(base))
    const node = await openNode()
    const bare = (labels: Map<string, string>): void => {
      for (const name of labels.keys()) if (name.startsWith(prefix)) labels.delete(name)
    }
    expect(await pull(node, image, bare)).toEqual(['active'])
    expect(node.received).toBe(0)
  })

  test('is left to containerd if one of its layers has no table of contents, and that is said once', async () => {
    const image = await push(estargzLayer(base), gzipLayer(top))
    const node = await openNode()
    expect(await pull(node, image)).toEqual(['active'])
    expect(await pull(node, image)).toEqual(['active'])
    const said = sentences(node, image.name)
    expect(said).toHaveLength(1)
    expect(said[0]).toContain(
      `its layer ${image.layout.layers[1]?.digest} has no table of contents`,
    )
    expect(node.snapshotter.images()).toEqual([])
  })

  test('is left to containerd if a table is not what its manifest says', async () => {
    const layer = estargzLayer(base)
    const lie = { 'containerd.io/snapshot/stargz/toc.digest': digestOf(Buffer.from('another')) }
    const image = await push(layer, { ...estargzLayer(top), annotations: lie })
    const node = await openNode()
    expect(await pull(node, image)).toEqual(['active'])
    expect(sentences(node, 'its table of contents has the digest')).toHaveLength(1)
    expect(node.snapshotter.images()).toEqual([])
  })

  test('is left to containerd and not tried again for a while, also where only its tag is told', async () => {
    const lie = { 'containerd.io/snapshot/stargz/toc.digest': digestOf(Buffer.from('another')) }
    const image = await push({ ...estargzLayer(base), annotations: lie })
    const node = await openNode()
    const withoutDigest = (labels: Map<string, string>): void =>
      void labels.delete(`${prefix}manifest-digest`)
    for (let time = 0; time < 2; time++) {
      expect(await pull(node, image, withoutDigest)).toEqual(['active'])
    }
    expect(sentences(node, 'its table of contents has the digest')).toHaveLength(1)
  })

  test('is lazy again after garbage collection has forgotten it', async () => {
    const image = await push(estargzLayer(base))
    const node = await openNode()
    const [chainId = ''] = image.chainIds
    expect(await pull(node, image)).toEqual(['committed'])
    node.snapshotter.snapshots.remove(chainId)
    await node.snapshotter.collectGarbage(0)
    expect(node.snapshotter.images()).toEqual([])
    expect(await pull(node, image)).toEqual(['committed'])
  })

  test('is left to containerd if the registry does not let us in', async () => {
    const image = await push(estargzLayer(base))
    const node = await openNode()
    node.logins = [{ username: 'reader', password: 'wr0ng' }]
    expect(await pull(node, image)).toEqual(['active'])
    expect(sentences(node, 'it does not take the credentials of test reader')).toHaveLength(1)
    expect(node.refused).toBe(1)
    expect(node.log.sentences.join()).not.toContain('wr0ng')
  })

  test.each([
    ['another layer', `${prefix}layer-digest`, digestOf(Buffer.from('x')), /name other layers/],
    ['other layers', `${prefix}image-layers`, digestOf(Buffer.from('x')), /name other layers/],
    [
      'a chain ID of no image',
      'containerd.io/snapshot.ref',
      digestOf(Buffer.from('x')),
      /another image by that name/,
    ],
    ['no name', `${prefix}image-ref`, 'host.example/../x', /not a repository name/],
    ['a name without end', `${prefix}image-ref`, `h.example/${'a'.repeat(3_000)}`, /characters/],
  ])('is left to containerd if its labels say %s', async (_, label, value, problem) => {
    const image = await push(estargzLayer(base))
    const node = await openNode()
    expect(await pull(node, image, (labels) => labels.set(label, value))).toEqual(['active'])
    expect(node.log.sentences.filter((sentence) => problem.test(sentence))).toHaveLength(1)
  })
})

test('labels beyond what containerd itself allows are refused, and no registry is asked', async () => {
  const image = await push(estargzLayer(treeTar(1)))
  const node = await openNode()
  const long = (labels: Map<string, string>): void =>
    void labels.set(`${prefix}image-layers`, 'a'.repeat(5_000))
  expect(await failureOf(() => pull(node, image, long))).toMatchObject({ code: 'INVALID_ARGUMENT' })
  expect(node.received).toBe(0)
})

describe('of a layer in a registry', () => {
  const tar = treeTar(3)

  /** Changes bytes of the blob in the registry's own files; gives back what undoes it. */
  function spoil(image: RegistryImage, at: (size: number) => number): () => void {
    const path = registry.blobPath(image.layout.layers[0]?.digest ?? '')
    const honest = readFileSync(path)
    const bytes = Buffer.from(honest)
    const start = at(bytes.length)
    for (let index = start; index < start + 16; index++) bytes[index] = (bytes[index] ?? 0) ^ 0xff
    writeFileSync(path, bytes)
    return () => writeFileSync(path, honest)
  }

  test.each([
    ['eStargz', async () => estargzLayer(tar)],
    ['zstd:chunked', () => chunkedLayer(tar)],
  ])(
    '%s, a wrong byte is EIO and never shown, and can be read once it is right',
    async (_, layerOf) => {
      const image = await push(await layerOf())
      const node = await openNode()
      await pull(node, image)
      await using mounted = await mount(node, image)
      // In the middle of the largest file, which is the last.
      const mend = spoil(image, (size) => Math.floor(size * 0.75))
      const path = join(mounted.path, 'd3/large')
      expect(await failureOf(() => readFile(path))).toMatchObject({ code: 'EIO' })
      expect(sentences(node, 'sha256').length).toBeGreaterThan(0)
      mend()
      const dir = await unpacked(node, tar)
      expect((await readFile(path)).equals(await readFile(join(dir, 'd3/large')))).toBe(true)
    },
  )

  test('a restart needs no registry, what is here is served, and what is not fails after its deadline with one sentence', async () => {
    const image = await push(estargzLayer(tar))
    const node = await openNode({ foregroundDeadlineMs: 1_500 })
    await pull(node, image)
    {
      await using mounted = await mount(node, image)
      await readFile(join(mounted.path, 'd3/file-0'))
    }
    await node.stop()
    await registry.stop()
    try {
      await node.start(new MemoryBlocks())
      await using mounted = await mount(node, image)
      expect(await readFile(join(mounted.path, 'd3/file-0'))).not.toHaveLength(0)
      const started = performance.now()
      expect(await failureOf(() => readFile(join(mounted.path, 'd3/large')))).toMatchObject({
        code: 'EIO',
      })
      expect(performance.now() - started).toBeGreaterThan(700)
      expect(sentences(node, `layers cannot be read from ${registry.host}/team/app-`)).toHaveLength(
        1,
      )
    } finally {
      await registry.start()
    }
  })

  test('a read that waits is served when the registry is back', async () => {
    const image = await push(estargzLayer(tar))
    const node = await openNode()
    await pull(node, image)
    await using mounted = await mount(node, image)
    await registry.stop()
    const outage = node.log.said('layers cannot be read from')
    const reading = readFile(join(mounted.path, 'd3/large'))
    await outage
    await registry.start()
    const dir = await unpacked(node, tar)
    expect((await reading).equals(await readFile(join(dir, 'd3/large')))).toBe(true)
    expect(sentences(node, 'layers are read from')).toHaveLength(1)
  })

  test('a read that waits is served when credentials are renewed', async () => {
    const image = await push(estargzLayer(tar))
    const node = await openNode()
    await pull(node, image)
    await using mounted = await mount(node, image)
    node.logins = [{ username: 'reader', password: 'expired' }]
    const outage = node.log.said('layers cannot be read from')
    const reading = readFile(join(mounted.path, 'd3/large'))
    expect(await outage).toContain('it does not take the credentials of test reader: renew them')
    node.logins = [right]
    expect(await reading).toHaveLength(3_000_000)
  })

  test('all is fetched and found to be its diff ID', async () => {
    const image = await push(await chunkedLayer(tar), await indexedLayer(treeTar(4)))
    const node = await openNode()
    await pull(node, image)
    await using mounted = await mount(node, image)
    await runCommand('sh', ['-c', `find ${mounted.path} -type f -exec cat {} + >/dev/null`])
    await expect
      .poll(() => node.snapshotter.layers().map(({ verified }) => verified), { timeout: 20_000 })
      .toEqual([true, true])
  })
})

describe('another image', () => {
  const tar = treeTar(5)

  test('in another repository with the same layer takes it as it is here', async () => {
    const layer = await chunkedLayer(tar)
    const [first, second] = [await push(layer), await push(layer, estargzLayer(treeTar(6)))]
    const node = await openNode()
    await pull(node, first)
    await using mounted = await mount(node, first)
    await readFile(join(mounted.path, 'd5/large'))
    const before = node.received
    expect(await pull(node, second)).toEqual(['committed', 'committed'])
    expect(node.received - before).toBeLessThan(100_000)
    expect(node.snapshotter.layers()).toHaveLength(2)
  })

  test('that is not lazy takes a layer that is here whole and checked, and containerd downloads the rest', async () => {
    const lazy = await push(await chunkedLayer(tar))
    const plain = await push(gzipLayer(tar), gzipLayer(treeTar(12)))
    const node = await openNode()
    await pull(node, lazy)
    expect(await pull(node, plain)).toEqual(['active'])
    await node.snapshotter.pullBegins(plain.name, new AbortController().signal)
    expect(node.snapshotter.layers().map(({ verified }) => verified)).toEqual([true])
    node.snapshotter.snapshots.remove(lazy.chainIds[0] ?? '')
    expect(await pull(node, plain)).toEqual(['committed', 'active'])
  })

  test('on IPFS that claims the diff ID of one in a registry for bytes of its own does not pass for it', async () => {
    const blocks = new MemoryBlocks()
    const node = await openNode()
    const lying = { ...(await indexedLayer(treeTar(7))), diffId: digestOf(tar) }
    const lie = await publishImage(blocks, [lying])
    await node.stop()
    await node.start(blocks)
    await node.serve(lie)
    const honest = await push(gzipLayer(tar))
    expect(honest.chainIds).toEqual(lie.chainIds)
    // The chain ID is known, but nothing of that layer was checked: containerd must download the registry's own.
    expect(await pull(node, honest)).toEqual(['active'])
  })
})

describe('before containerd pulls by itself', () => {
  const tar = treeTar(10)
  const { signal } = new AbortController()
  const states = (node: Node): string[] =>
    node.snapshotter.layers().map(({ state, verified }) => (verified ? 'verified' : state))

  test('a layer that passes for one of its layers is checked whole, and one that lied fails', async () => {
    const lie = await push({ ...(await chunkedLayer(treeTar(11))), diffId: digestOf(tar) })
    const honest = await push(gzipLayer(tar))
    expect(honest.chainIds).toEqual(lie.chainIds)
    const node = await openNode()
    expect(await pull(node, lie)).toEqual(['committed'])
    await node.snapshotter.pullBegins(honest.name, signal)
    expect(states(node)).toEqual(['corrupt'])
    expect(await failureOf(() => mount(node, honest))).toMatchObject({ code: 'DATA_LOSS' })
  })

  test('one that told the truth is found to', async () => {
    const [lazy, plain] = [await push(await chunkedLayer(tar)), await push(gzipLayer(tar))]
    const node = await openNode()
    await pull(node, lazy)
    await node.snapshotter.pullBegins(plain.name, signal)
    expect(states(node)).toEqual(['verified'])
  })

  test('nothing is asked where every layer is checked, or none is lazy', async () => {
    const plain = await push(gzipLayer(tar))
    const node = await openNode()
    await node.snapshotter.pullBegins(plain.name, signal)
    expect(node.received).toBe(0)
  })

  test('an image of which nothing can be told is let pass', async () => {
    const node = await openNode()
    await pull(node, await push(await chunkedLayer(tar)))
    for (const name of ['127.0.0.1:1/app', 'ipdr.internal/x', 'no image//']) {
      await node.snapshotter.pullBegins(name, signal)
    }
    expect(states(node)).toEqual(['ready'])
  })
})

describe('a policy', () => {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const layer = estargzLayer(treeTar(8))
  const policyFor = (images: string): TrustPolicy => ({
    name: 'signed',
    images: [images],
    roots: [],
    signers: [{ name: 'publisher', key: publicKey }],
    signaturesMin: 1,
  })

  async function nodeWith(policy: TrustPolicy): Promise<Node> {
    const node = await openNode()
    node.policies = [policy]
    await node.stop()
    await node.start(new MemoryBlocks())
    return node
  }

  /** Puts a signature beside the image, as cosign does. */
  async function sign({ layout, name }: RegistryImage): Promise<void> {
    const manifestDigest = layout.manifestDigest as Digest
    const payload = payloadBytes({ manifestDigest, reference: name })
    const signature = Buffer.from(signMessage(payload, privateKey)).toString('base64')
    const annotations = { [SIGNATURE_ANNOTATION]: signature }
    const signatures = layoutOfBlobs(
      join(scratch.dir, `signatures-${images++}`),
      [{ blob: payload, diffId: digestOf(payload), mediaType: PAYLOAD_MEDIA_TYPE, annotations }],
      { tag: signatureTag(manifestDigest) },
    )
    await registry.push(signatures, name.replace(/^[^/]*\//, '').replace(/:latest$/, ''))
  }

  test('fails the pull of an image that nobody trusted has signed, lazy or not', async () => {
    const node = await nodeWith(policyFor('127.0.0.1:*/team/*'))
    for (const each of [layer, gzipLayer(treeTar(9))]) {
      const image = await push(each)
      expect(await failureOf(() => pull(node, image))).toMatchObject({
        code: 'PERMISSION_DENIED',
        message: expect.stringContaining(`is refused by policy 'signed'`),
      })
    }
    expect(node.snapshotter.images()).toEqual([])
  })

  test('lets an image run once it is signed', async () => {
    const node = await nodeWith(policyFor('*'))
    const image = await push(layer)
    expect(await failureOf(() => pull(node, image))).toMatchObject({ code: 'PERMISSION_DENIED' })
    await sign(image)
    expect(await pull(node, image)).toEqual(['committed'])
  })

  test('that cannot be asked fails the pull', async () => {
    const node = await nodeWith(policyFor('*'))
    const image = await push(layer)
    node.logins = []
    expect(await failureOf(() => pull(node, image))).toMatchObject({
      code: 'FAILED_PRECONDITION',
      message: expect.stringContaining(`since policy 'signed' could not be asked: registry`),
    })
  })

  test('for other images changes nothing', async () => {
    const node = await nodeWith(policyFor('ipdr.internal/*'))
    expect(await pull(node, await push(layer))).toEqual(['committed'])
  })
})
