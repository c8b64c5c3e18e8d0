import { createHash, createPublicKey, generateKeyPairSync } from 'node:crypto'
import { CarBufferWriter } from '@ipld/car'
import { encode } from '@ipld/dag-pb'
import { UnixFS } from 'ipfs-unixfs'
import { parseConfig } from '../../agent/config.ts'
import { readCar } from '../../agent/ipfs/read-car.ts'
import { RegistryBlob } from '../../snapshotter/blobs/registry-blob.ts'
import { parseFilters } from '../../snapshotter/containerd/filters.ts'
import { openIpfsImage } from '../../snapshotter/dag/open-ipfs-image.ts'
import { UnixfsFile } from '../../snapshotter/dag/unixfs-file.ts'
import { decodeUnixfsNode } from '../../snapshotter/dag/unixfs-node.ts'
import { encryptJwe } from '../../snapshotter/encryption/jwe.ts'
import { parsePrivateKey, parsePublicKey } from '../../snapshotter/encryption/key-file.ts'
import { parseLayerEncryption } from '../../snapshotter/encryption/layer-encryption.ts'
import { PrivateKeys } from '../../snapshotter/encryption/private-keys.ts'
import { unwrapLayerKey } from '../../snapshotter/encryption/unwrap-layer-key.ts'
import { readKeptBlob } from '../../snapshotter/layers/kept-blob.ts'
import { MEDIA_TYPES } from '../../snapshotter/oci/descriptor.ts'
import { digestOf, parseDigest } from '../../snapshotter/oci/digest.ts'
import { parseImageConfig } from '../../snapshotter/oci/image-config.ts'
import { layerChainIds } from '../../snapshotter/oci/layer-chain-id.ts'
import { checkRunnable, chooseManifest, parseManifest } from '../../snapshotter/oci/manifest.ts'
import { parseCid } from '../../snapshotter/oci/parse-cid.ts'
import { nodePlatform } from '../../snapshotter/oci/platform.ts'
import { parseImageReference, resolveReference } from '../../snapshotter/oci/reference.ts'
import { parseVerificationKey } from '../../snapshotter/trust/signing-key.ts'
import { parsePayload, payloadBytes } from '../../snapshotter/trust/simple-signing.ts'
import { encryptedLayer, plainLayer } from '../snapshotter/layers/published-image.ts'
import { makeTar } from '../support/make-tar.ts'
import { cidOf, MemoryBlocks } from '../support/memory-blocks.ts'
import { fuzz, reportTotal } from './fuzz.ts'
import { mutateBytes, mutateJson, mutateText } from './mutate.ts'

// Everything around layers that somebody else wrote: documents of images, blocks, names, keys, and what containerd and an
// operator say.

reportTotal()

const request = { priority: 'foreground', signal: AbortSignal.timeout(600_000) } as const
const bytesOf = (document: unknown): Buffer => Buffer.from(JSON.stringify(document))
const digests = ['a', 'b', 'c'].map((text) => digestOf(Buffer.from(text)))

const manifest = {
  schemaVersion: 2,
  mediaType: MEDIA_TYPES.ociManifest,
  config: { mediaType: MEDIA_TYPES.ociConfig, digest: digests[0], size: 10 },
  layers: [
    {
      mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip',
      digest: digests[1],
      size: 7,
      annotations: { 'containerd.io/snapshot/stargz/toc.digest': digests[2] },
    },
  ],
  annotations: { 'org.opencontainers.image.ref.name': 'v1' },
}
const index = {
  schemaVersion: 2,
  mediaType: MEDIA_TYPES.ociIndex,
  manifests: [
    {
      mediaType: MEDIA_TYPES.ociManifest,
      digest: digests[0],
      size: 400,
      platform: { os: 'linux', architecture: 'amd64', variant: 'v1', 'os.features': ['a'] },
      annotations: { 'org.opencontainers.image.ref.name': 'v1' },
      urls: [`ipfs://${cidOf(Buffer.from('x')).toString()}`],
    },
    { mediaType: MEDIA_TYPES.ociManifest, digest: digests[1], size: 400 },
  ],
}

fuzz('a manifest or index', {
  cases: 15_000,
  inputs: () => [bytesOf(manifest), bytesOf(index)],
  mutate: mutateJson,
  read: (bytes) => {
    const parsed = parseManifest(bytes, 'it')
    if (parsed.kind === 'manifest') checkRunnable(parsed, 'it')
    else chooseManifest(parsed, { ...nodePlatform(), architecture: 'amd64', os: 'linux' }, 'it')
  },
})

fuzz('the config of an image', {
  cases: 8000,
  inputs: () => [
    bytesOf({
      architecture: 'amd64',
      os: 'linux',
      config: { Env: ['PATH=/bin'], Cmd: ['sh'], Labels: { a: 'b' } },
      rootfs: { type: 'layers', diff_ids: digests },
      history: [{ created_by: 'x', empty_layer: true }],
    }),
  ],
  mutate: mutateJson,
  read: (bytes) => layerChainIds(parseImageConfig(bytes, 'it').diffIds),
})

fuzz<Readonly<Record<string, Buffer>>>(
  'an image under a CID, as an IPDR directory, an OCI layout, or a descriptor',
  {
    cases: 2500,
    inputs: async () => {
      const bytes = bytesOf(manifest)
      const urls = [`ipfs://${(await new MemoryBlocks().addFile(bytes)).toString()}`]
      const digest = digestOf(bytes)
      const descriptor = { ...index.manifests[0], digest, size: bytes.length, urls }
      return [
        { 'manifests/latest': bytes, [`blobs/${digests[1]}`]: Buffer.from('b') },
        {
          'oci-layout': bytesOf({ imageLayoutVersion: '1.0.0' }),
          'index.json': bytesOf({ schemaVersion: 2, manifests: [descriptor] }),
          [`blobs/sha256/${digest.slice(7)}`]: bytes,
        },
        { '': bytesOf(descriptor) },
      ]
    },
    mutate: (random, input, other) => {
      const names = Object.keys(input)
      const name = names[random(names.length)] ?? ''
      const foreign = Object.values(other)[0] ?? Buffer.alloc(0)
      return { ...input, [name]: mutateJson(random, json(input[name]), foreign) }
    },
    read: async (files) => {
      const blocks = new MemoryBlocks()
      await blocks.addFile(bytesOf(manifest))
      const only = files['']
      const root = await (only === undefined ? blocks.addDirectory(files) : blocks.addFile(only))
      const image = await openIpfsImage(root, blocks, request)
      const [tag = 'latest'] = await image.tags(request)
      await image.manifest(tag, request)
    },
  },
)

/** What is no JSON is changed as a string of it. */
function json(bytes: Buffer | undefined): Buffer {
  const text = bytes?.toString() ?? ''
  return text.startsWith('{') ? Buffer.from(text) : bytesOf(text)
}

const leaf = cidOf(Buffer.from('leaf'))
fuzz('a node of UnixFS', {
  cases: 15_000,
  inputs: () => {
    const file = new UnixFS({ type: 'file', blockSizes: [4n, 4n] })
    const directory = new UnixFS({ type: 'directory', mode: 0o755, mtime: { secs: 1n } })
    const links = [
      { Hash: leaf, Name: '', Tsize: 4 },
      { Hash: leaf, Name: '', Tsize: 4 },
    ]
    return [
      encode({ Data: file.marshal(), Links: links }),
      encode({ Data: directory.marshal(), Links: [{ Hash: leaf, Name: 'name', Tsize: 4 }] }),
      encode({ Data: new UnixFS({ type: 'file', data: Buffer.from('x') }).marshal(), Links: [] }),
    ]
  },
  mutate: mutateBytes,
  read: (block) => decodeUnixfsNode(cidOf(block, 0x70), block),
})

fuzz('a CAR', {
  cases: 5000,
  inputs: () => {
    const [one, two] = [Buffer.from('one'), Buffer.from('the second block')]
    const writer = CarBufferWriter.createWriter(new ArrayBuffer(1000), { roots: [cidOf(one)] })
    for (const bytes of [one, two]) writer.write({ cid: cidOf(bytes), bytes })
    return [writer.close({ resize: true })]
  },
  mutate: mutateBytes,
  read: async (bytes) => {
    const source = (async function* () {
      yield bytes
    })()
    const { blocks } = await readCar(source)
    for await (const { cid, bytes: block } of blocks) {
      if (cid.code === 0x55 && cidOf(block).toString() !== cid.toString()) {
        throw new Error('a wrong block passed')
      }
    }
  },
})

fuzz('what was kept of a blob, with a checksum that fits', {
  cases: 8000,
  inputs: async () => {
    const blocks = new MemoryBlocks()
    const cid = await blocks.addFile(Buffer.alloc(700_000, 3))
    const file = await UnixfsFile.open(cid, blocks, request)
    const name = { digest: digestOf(Buffer.from('blob')), size: 700_000 }
    const inRegistry = new RegistryBlob(name, async () => new Uint8Array())
    return [file, inRegistry].map((blob) => Buffer.from(blob.toBytes()).subarray(0, -32))
  },
  mutate: mutateBytes,
  read: (body) => {
    const bytes = Buffer.concat([body, createHash('sha256').update(body).digest()])
    readKeptBlob(bytes, {
      blocks: new MemoryBlocks(),
      inRegistry: (name) => new RegistryBlob(name, async () => new Uint8Array()),
    })
  },
})

const cid = cidOf(Buffer.from('image')).toString()
fuzz('a name of an image', {
  cases: 15_000,
  inputs: () => [
    cid,
    `ipfs://${cid}`,
    `ipdr.internal/${cid}:v1`,
    `ipdr.internal/app:${cid}@${digests[0]}`,
    'QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n',
    String(digests[1]),
  ],
  mutate: mutateText,
  read: (text) => {
    parseCid(text)
    try {
      parseDigest(text)
      return
    } catch {
      // Most are no digest.
    }
    resolveReference('app', parseImageReference(text).selector)
  },
})

fuzz('a filter of containerd', {
  cases: 10_000,
  inputs: () => [
    'name==sha256:0',
    'labels."containerd.io/gc.root"==x,kind!=committed',
    'labels.a~=|^[a-z]+$|,parent==""',
    String.raw`name=="a\x20\u00e4\n"`,
  ],
  mutate: mutateText,
  read: (text) => {
    const passes = parseFilters([text])
    passes((path) => path.join('.'))
  },
})

const key = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
fuzz('a key file', {
  cases: 6000,
  inputs: () => [
    Buffer.from(key.export({ type: 'pkcs8', format: 'pem' })),
    Buffer.from(createPublicKey(key).export({ type: 'spki', format: 'pem' })),
    bytesOf(key.export({ format: 'jwk' })),
  ],
  mutate: mutateBytes,
  read: (bytes) => {
    const readers = [parsePrivateKey, parsePublicKey, parseVerificationKey]
    const failures: unknown[] = []
    for (const read of readers) {
      try {
        read(bytes, 'key')
      } catch (error) {
        failures.push(error)
      }
    }
    const strange = failures.find((error) => (error as Error).name !== 'KeyError')
    if (strange !== undefined || failures.length === readers.length) throw strange ?? failures[0]
  },
})

fuzz('the annotations of an encrypted layer', {
  cases: 4000,
  inputs: async () => {
    const layer = await encryptedLayer(plainLayer(makeTar({ name: 'a' })), [key])
    const content = Buffer.from(JSON.stringify({ symkey: 'x' }))
    const broken = Buffer.from(await encryptJwe(content, createPublicKey(key)))
    const annotations = layer.annotations ?? {}
    const name = 'org.opencontainers.image.enc.keys.provider.vault'
    return [bytesOf(annotations), bytesOf({ ...annotations, [name]: broken.toString('base64') })]
  },
  mutate: mutateJson,
  read: async (bytes) => {
    let annotations: Record<string, string>
    try {
      annotations = JSON.parse(bytes.toString()) as Record<string, string>
    } catch {
      return
    }
    // The manifest's schema lets only strings through.
    if (Object.values(annotations ?? {}).some((value) => typeof value !== 'string')) return
    const encryption = parseLayerEncryption(annotations ?? {}, 'sha256:1')
    await unwrapLayerKey(encryption, new PrivateKeys([key]), 'sha256:1', request.signal)
  },
})

fuzz('the payload of a signature', {
  cases: 8000,
  inputs: () => [payloadBytes({ manifestDigest: digestOf(Buffer.from('m')), reference: 'a/b' })],
  mutate: mutateJson,
  read: (bytes) => parsePayload(bytes, 'it'),
})

fuzz('the configuration of an agent', {
  cases: 8000,
  inputs: () => [
    bytesOf({
      root: '/var/lib/x',
      log: { level: 'info', format: 'text' },
      registry: { listen: '127.0.0.1:5080' },
      ipfs: { gateways: ['http://10.0.0.1'], peers: ['/ip4/10.0.0.1/tcp/1'], bitswap: false },
      fetch: { concurrency: 4 },
      store: { bytesMax: 2 ** 30 },
      decryption: { keysDir: '/k' },
      trust: {
        policies: [{ name: 'a', images: ['*'], roots: [cid], keys: ['/k'], signaturesMin: 1 }],
      },
    }),
  ],
  mutate: mutateJson,
  read: (bytes) => {
    let value: unknown
    try {
      value = JSON.parse(bytes.toString())
    } catch {
      return
    }
    parseConfig(value)
  },
})
