import type { IndexedImage, IndexedLayer, LayerIndexing } from '../../../snapshotter/index-image.ts'
import { DEFAULT_TAG, IMAGE_HOST } from '../../../snapshotter/oci/reference.ts'
import type { Agent } from '../agent-connection.ts'
import { type Command, defineCommand } from '../command.ts'
import { asUsageFailure } from '../failure.ts'
import { imageReference } from '../image-argument.ts'
import { openInspectionBlocks } from '../inspection-blocks.ts'
import type { Output } from '../output.ts'
import { PLACES_OPTIONS, type Places } from '../places-options.ts'
import { openOrMakeRepository, openPublishingSink } from '../publishing-sink.ts'
import { count, formatBytes, formatMs, formatRate } from '../quantity.ts'
import { parsePlatform, REGISTRY_OPTIONS } from '../registry-options.ts'
import { REPOSITORY_OPTION } from '../repository-option.ts'
import { shortDigest } from '../short-digest.ts'
import { fields, table } from '../table.ts'

/** grpc.status of @grpc/grpc-js: the agent has not read this layer. */
const GRPC_NOT_FOUND = 5

/** `ipdr index` */
export const indexLayers: Command = defineCommand({
  name: 'index',
  usage: '<image>',
  summary: 'Make the gzip layers of an image lazily readable, without uploading them again',
  description: [
    'Reads each gzip layer that has no table of contents once, finds out where it can be decoded from and which files it holds, and publishes an image directory that leads to the very same manifests and blobs and has this index beside them. The digest of the image stays what it was; its CID is a new one. Nodes that pull by the new CID mount such layers at once; other readers of images on IPFS do not look at the index.',
    'Only the new blocks go into the repository, about a hundredth of what the layers have. The blocks of the image stay with whoever has them: serve both. Blocks come from your own repository, else from the gateways and peers that you name.',
    'docker://IMAGE is an image in a registry, which stays there: what is published is a directory with the indexes alone. Nodes whose configuration lists its CID in registries.indexes then mount such layers from the registry at once; whoever runs them vouches for the indexes.',
    'With --from-agent the agent on this node is asked first: what it has read whole and checked, it does not have to read again. zstd layers of other publishers cannot be indexed: push such an image again.',
  ],
  args: {
    image: {
      type: 'string',
      demandOption: true,
      describe: 'A CID, or ipdr.internal/<cid>[:tag|@digest], or docker://IMAGE in a registry',
    },
  },
  options: {
    repository: REPOSITORY_OPTION,
    ...PLACES_OPTIONS,
    platform: {
      type: 'string',
      requiresArg: true,
      describe: 'Which platform of an index in a registry, like linux/arm64; all unless given',
      valueName: 'PLATFORM',
    },
    ...REGISTRY_OPTIONS,
    'from-agent': {
      type: 'boolean',
      default: false,
      describe: 'Take the index of a layer that the agent on this node has read',
    },
  },
  examples: [
    ['ipdr index <cid>', 'an image that lies in your repository'],
    ['ipdr index <cid> --gateway http://10.0.0.7:8080', 'one that somebody else publishes'],
    ['ipdr index docker://registry.example/app:v1', 'one that stays in its registry'],
    ['image=$(ipdr index -q <cid>)', 'the new reference, in a script'],
  ],
  seeAlso: ['ipdr push', 'ipdr serve', 'ipdr inspect'],
  async run({ image, 'from-agent': fromAgent, authfile, insecure, platform, ...places }, session) {
    const { output, progress, agentSocket, signal } = session
    const registry = REGISTRY_SOURCE.exec(image)?.[1]
    if (registry !== undefined)
      return indexInRegistry(registry, { ...places, authfile, insecure, platform }, session)
    const reference = imageReference(image)
    await using opened = new AsyncDisposableStack()
    const sink = opened.use(await openPublishingSink(places))
    const blocks = await openInspectionBlocks(places, opened)
    const agent = fromAgent ? opened.use(await connectTo(agentSocket)) : undefined
    const { indexImage } = await import('../../../snapshotter/index-image.ts')
    const startedAt = performance.now()
    const indexed = await indexImage(reference, {
      blocks,
      sink,
      signal,
      ...(agent === undefined ? {} : { known: (layer) => askAgent(agent, layer, signal) }),
      onProgress: ({ digest, doneBytes, totalBytes }) => {
        const step = doneBytes === totalBytes ? 'done' : 'indexing'
        progress.update({ item: shortDigest(digest), doneBytes, totalBytes, step })
      },
    })
    progress.finish()
    const isNew = indexed.root.toString() !== reference.root.toString()
    if (isNew) await sink.addRoot(indexed.root, `index of ${reference.root.toString()}`)
    const elapsedMs = performance.now() - startedAt
    const document = documentOf(indexed, { selector: reference.selector, isNew, elapsedMs })
    output.answer(document, () => {
      if (output.quiet) return document.reference
      return describe(indexed, document, output)
    })
  },
})

/** `docker://<image>`, as push has it. */
const REGISTRY_SOURCE = /^docker:\/\/(.+)$/s

type RegistryValues = Places & {
  readonly authfile: string | undefined
  readonly insecure: boolean
  readonly platform: string | undefined
}

async function indexInRegistry(
  image: string,
  { authfile, insecure, platform: platformText, ...places }: RegistryValues,
  { output, progress, signal }: Parameters<Command['run']>[1],
): Promise<void> {
  const { parseRegistryReference } = await import('../../../snapshotter/oci/registry-reference.ts')
  const { RegistryImage } = await import('../registry-image.ts')
  const { indexForeignImage } = await import('../../../snapshotter/index-foreign-image.ts')
  const platform = platformText === undefined ? undefined : parsePlatform(platformText)
  const reference = asUsage(() => parseRegistryReference(image))
  await using opened = new AsyncDisposableStack()
  const sink = opened.use(await openOrMakeRepository(places.repository))
  const startedAt = performance.now()
  const wanted = { platform, authfile, insecure }
  const found = opened.use(await RegistryImage.open(reference, wanted, signal))
  const indexed = await indexForeignImage(found, {
    sink,
    signal,
    onProgress: ({ digest, doneBytes, totalBytes }) => {
      const step = doneBytes === totalBytes ? 'done' : 'indexing'
      progress.update({ item: shortDigest(digest), doneBytes, totalBytes, step })
    },
  })
  progress.finish()
  await sink.addRoot(indexed.root, `index of docker://${image}`)
  const elapsedMs = performance.now() - startedAt
  const document = documentOf(indexed, { selector: DEFAULT_TAG, isNew: true, elapsedMs })
  output.answer(document, () => {
    if (output.quiet) return document.root
    return describe(indexed, document, output)
  })
}

function asUsage<T>(parse: () => T): T {
  try {
    return parse()
  } catch (error) {
    throw asUsageFailure(error)
  }
}

async function connectTo(socketPath: string): Promise<Agent> {
  const { connectAgent } = await import('../agent-connection.ts')
  return connectAgent(socketPath)
}

/** What the agent has learnt about a layer; undefined if it has not read it whole. */
async function askAgent(
  agent: Agent,
  { blobCid }: IndexedLayer & { readonly blobCid: { toV1(): { toString(): string } } },
  signal: AbortSignal,
): Promise<Uint8Array | undefined> {
  const parts: Uint8Array[] = []
  try {
    const request = { blobCid: blobCid.toV1().toString() }
    for await (const { bytes } of agent.calls.LayerIndex(request, { signal })) parts.push(bytes)
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === GRPC_NOT_FOUND) return undefined
    throw error
  }
  return Buffer.concat(parts)
}

type IndexDocument = ReturnType<typeof documentOf>

function documentOf(
  { root, layers }: IndexedImage,
  facts: { readonly selector: string; readonly isNew: boolean; readonly elapsedMs: number },
) {
  const { selector, isNew, elapsedMs } = facts
  const joint = selector.includes(':') ? '@' : ':'
  const suffix = selector === DEFAULT_TAG ? '' : `${joint}${selector}`
  return {
    root: root.toString(),
    reference: `${IMAGE_HOST}/${root.toString()}${suffix}`,
    isNew,
    layers: layers.map((layer) => ({
      digest: layer.digest,
      cid: layer.cid?.toString() ?? null,
      blobBytes: layer.blobBytes,
      outcome: layer.kind,
      indexBytes: 'indexBytes' in layer ? layer.indexBytes : null,
      indexShare: 'indexBytes' in layer ? layer.indexBytes / layer.blobBytes : null,
      by: layer.kind === 'indexed' ? layer.by : null,
      elapsedMs: layer.kind === 'indexed' ? Math.round(layer.elapsedMs) : null,
      because: 'because' in layer ? layer.because : null,
    })),
    elapsedMs: Math.round(elapsedMs),
  }
}

function describe({ layers }: IndexedImage, document: IndexDocument, output: Output): string {
  const columns = [
    { heading: 'LAYER' },
    { heading: 'SIZE', align: 'right' },
    { heading: 'INDEX', align: 'right' },
    { heading: 'SHARE', align: 'right' },
    { heading: 'NOTE' },
  ] as const
  const rows = layers.map((layer) => [
    shortDigest(layer.digest),
    formatBytes(layer.blobBytes),
    'indexBytes' in layer ? formatBytes(layer.indexBytes) : '-',
    'indexBytes' in layer ? `${((layer.indexBytes / layer.blobBytes) * 100).toFixed(2)} %` : '-',
    noteOn(layer),
  ])
  const added = layers.filter(({ kind }) => kind === 'indexed').length
  const next = document.isNew
    ? 'Offer it to others: ipdr serve, beside whoever serves the image'
    : 'Nothing was added: the image is as it was'
  return [
    table(columns, rows, output),
    `${count(added, 'layer')} of ${layers.length} indexed in ${formatMs(document.elapsedMs)}`,
    fields([
      ['Root CID', document.root],
      ['Reference', document.reference],
    ]),
    next,
  ].join('\n')
}

function noteOn(layer: LayerIndexing): string {
  switch (layer.kind) {
    case 'indexed':
      return layer.by === 'known'
        ? 'indexed: the agent had read it'
        : `indexed in ${formatMs(layer.elapsedMs)} (${formatRate(layer.blobBytes, layer.elapsedMs)})`
    case 'had-index':
      return 'was indexed before'
    case 'needs-none':
      return `needs none: ${layer.because}`
    default:
      return `cannot be indexed: ${layer.because}`
  }
}
