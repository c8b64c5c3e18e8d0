import type {
  ConfigSummary,
  ImageInspection,
  LayerInspection,
  ManifestInspection,
  PrefetchInspection,
} from '../../../snapshotter/inspect.ts'
import { type Command, defineCommand } from '../command.ts'
import { EXIT_CODES } from '../exit-codes.ts'
import { CommandFailure } from '../failure.ts'
import { IMAGE_ARGUMENT, imageReference } from '../image-argument.ts'
import { openInspectionBlocks } from '../inspection-blocks.ts'
import type { Output } from '../output.ts'
import { PLACES_OPTIONS } from '../places-options.ts'
import { count, formatBytes } from '../quantity.ts'
import { REPOSITORY_OPTION } from '../repository-option.ts'
import { shortDigest } from '../short-digest.ts'
import { fields, table } from '../table.ts'

/** How long it may take all in all, in ms, unless --timeout says otherwise: 60 s, some hundred blocks at half a second each. */
const TIMEOUT_SECONDS = 60

/** `ipdr inspect` */
export const inspect: Command = defineCommand({
  name: 'inspect',
  usage: '<image>',
  summary: 'Say what an image consists of, and which layers can be read lazily',
  description: [
    'Looks at an image without running it and without an agent: platforms, what it would run, and of each layer its digest, CID, size, number of blocks, its format by content (media types are known to lie), and whether it can be mounted before it is here, or why not; and whether a prefetch list says what its start reads. It reads manifests, tables of contents and the first bytes of layers, and checks all of them.',
    'Blocks come from your own repository, else from the gateways and peers that you name.',
  ],
  args: {
    image: IMAGE_ARGUMENT,
  },
  options: {
    repository: REPOSITORY_OPTION,
    ...PLACES_OPTIONS,
    timeout: {
      type: 'number',
      default: TIMEOUT_SECONDS,
      requiresArg: true,
      describe: 'Give up after this many seconds',
      valueName: 'SECONDS',
    },
  },
  examples: [
    ['ipdr inspect <cid>', 'an image that you published'],
    ['ipdr inspect <cid>:v2 --gateway http://10.0.0.7:8080', 'one that a gateway has'],
    ["ipdr inspect <cid> -o json | jq '.manifests[].layers[].lazy'", 'how its layers can be read'],
  ],
  seeAlso: ['ipdr push', 'ipdr pull', 'ipdr waited'],
  async run({ image, timeout, ...places }, { output, signal }) {
    const reference = imageReference(image)
    if (!(timeout > 0)) {
      throw new CommandFailure(EXIT_CODES.usage, '--timeout must be a number of seconds above 0')
    }
    await using opened = new AsyncDisposableStack()
    const blocks = await openInspectionBlocks(places, opened)
    const { inspectImage } = await import('../../../snapshotter/inspect.ts')
    const found = await inspectImage(reference, {
      blocks,
      signal: AbortSignal.any([signal, AbortSignal.timeout(timeout * 1000)]),
    })
    output.answer(found, () => describe(found, output))
  },
})

function describe(image: ImageInspection, output: Output): string {
  const head = fields([
    ['Root CID', image.root],
    ['Tags', image.tags.join(', ') || 'none'],
    ['Digest', `${image.digest} (${image.mediaType})`],
  ])
  const manifests = image.manifests.map((manifest) => {
    const platform = output.style('bold', manifest.platform)
    // Of an index, each entry has a digest of its own.
    const title = manifest.digest === image.digest ? platform : `${platform}  ${manifest.digest}`
    return `${title}\n${describeManifest(manifest, output)}`
  })
  return [head, ...manifests].join('\n\n')
}

function describeManifest(manifest: ManifestInspection, output: Output): string {
  if (manifest.kind === 'none') return `No image: ${manifest.because}`
  const { layers } = manifest
  const columns = [
    { heading: 'LAYER' },
    { heading: 'FORMAT' },
    { heading: 'SIZE', align: 'right' },
    { heading: 'BLOCKS', align: 'right' },
    { heading: 'CID' },
    { heading: 'LAZY' },
  ] as const
  const rows = layers.map((layer) => [
    shortDigest(layer.digest),
    layer.format,
    formatBytes(layer.blobBytes),
    layer.leaves.toLocaleString('en'),
    layer.cid,
    describeLazy(layer),
  ])
  const lazy = layers.filter(({ lazy }) => lazy.kind !== 'none').length
  const locked = layers.filter(({ format }) => format === 'encrypted').length
  return [
    describeConfig(manifest.config),
    table(columns, rows, output),
    `${count(layers.length, 'layer')}, ${formatBytes(manifest.totalBytes)}; ${lazy === layers.length ? 'all' : lazy} can be read lazily${locked === 0 ? '' : `; ${locked === layers.length ? 'all' : locked} encrypted`}`,
    describePrefetch(manifest.prefetch),
  ].join('\n')
}

function describePrefetch(prefetch: PrefetchInspection): string {
  if (prefetch.kind === 'none') return 'No prefetch list: ipdr optimize makes one'
  if (prefetch.kind === 'refused') return `Its prefetch list is not used: ${prefetch.because}`
  const { ranges, files, bytes } = prefetch
  return `Prefetch list: ${count(ranges, 'range')} of ${count(files, 'file')}, ${formatBytes(bytes)} unpacked`
}

function describeLazy({ lazy }: LayerInspection): string {
  if (lazy.kind === 'none') return `no: ${lazy.because}`
  if (lazy.kind === 'encrypted') {
    const { table, cipher, recipientKinds, recipients } = lazy
    const by = table === undefined ? '' : ` by its ${table === 'ipdr' ? '' : `${table} `}table`
    return `with its key${by}: ${count(recipients, 'recipient')} (${recipientKinds.join(', ')}), ${cipher}`
  }
  if (lazy.kind === 'headers') return 'yes: by its tar headers'
  const table =
    lazy.table === 'ipdr'
      ? ''
      : ` by its ${lazy.table}${lazy.table === 'side index' ? '' : ' table'}`
  return `yes${table}: ${count(lazy.entries, 'file')}, ${formatBytes(lazy.layerBytes)} unpacked`
}

function describeConfig(config: ConfigSummary): string {
  const command = [...config.entrypoint, ...config.cmd]
  const pairs: [string, string | undefined][] = [
    ['Created', config.created],
    ['Runs', command.length === 0 ? 'nothing by itself' : JSON.stringify(command)],
    ['User', config.user],
    ['Directory', config.workingDir],
    ['Ports', config.exposedPorts.join(', ') || undefined],
    ['Environment', config.env.join(' ') || undefined],
  ]
  return fields(pairs.flatMap(([name, value]) => (value === undefined ? [] : [[name, value]])))
}
