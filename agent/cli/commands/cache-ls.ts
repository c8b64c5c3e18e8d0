import type { Image__Output } from '../../../proto/types/ipdr/v1/Image.ts'
import type { Layer__Output } from '../../../proto/types/ipdr/v1/Layer.ts'
import { type Command, defineCommand } from '../command.ts'
import type { Output } from '../output.ts'
import { count, formatBytes, formatMs } from '../quantity.ts'
import { shortDigest } from '../short-digest.ts'
import { table } from '../table.ts'
import { timestampMs, timestampText } from '../timestamp.ts'

/** `ipdr cache ls` */
export const cacheLs: Command = defineCommand({
  name: 'cache ls',
  usage: '',
  summary: 'List the layers, or images, that this node keeps',
  description: [
    'Lists every layer that the agent knows: what its blob is by content, how much of it is on this node, whether it is mounted, and when it was last used. A layer without a table of contents is marked: it had to be read whole before its first mount, and the reason is given.',
    'With --images, lists the images that were pulled, and their root CIDs.',
  ],
  args: {},
  options: {
    images: { type: 'boolean', default: false, describe: 'List images instead of layers' },
  },
  examples: [
    ['ipdr cache ls', 'layers, largest part on disk first'],
    ['ipdr cache ls --images', 'images and their root CIDs'],
    ["ipdr cache ls -o json | jq '.layers[].digest'", 'whole digests'],
  ],
  seeAlso: ['ipdr cache gc', 'ipdr cache rm', 'ipdr status'],
  async run({ images }, { output, agentSocket, signal }) {
    const { ask, connectAgent } = await import('../agent-connection.ts')
    using agent = await connectAgent(agentSocket)
    if (images) {
      const listed = await ask((call) => agent.calls.ListImages({}, call), signal)
      output.answer({ images: listed.images.map(imageDocument) }, () =>
        describeImages(listed.images, output),
      )
      return
    }
    const { layers } = await ask((call) => agent.calls.ListLayers({}, call), signal)
    const sorted = layers.toSorted((a, b) => Number(b.presentBytes) - Number(a.presentBytes))
    output.answer({ layers: sorted.map(layerDocument) }, () => describeLayers(sorted, output))
  },
})

function layerDocument(layer: Layer__Output): object {
  return {
    digest: layer.digest,
    cid: layer.cid,
    diffId: layer.diffId,
    mediaType: layer.mediaType,
    format: layer.format,
    layerBytes: Number(layer.layerSize),
    blobBytes: Number(layer.blobSize),
    presentBytes: Number(layer.presentBytes),
    complete: layer.complete,
    mounted: layer.mounted,
    lazilyReadable: layer.lazilyReadable,
    whyNot: layer.whyNot === '' ? null : layer.whyNot,
    lastUsedAt: timestampText(layer.lastUsedAt),
  }
}

function stateOf({ pinned, mounted, complete }: Layer__Output): string {
  const state = mounted ? 'mounted' : complete ? 'complete' : ''
  return pinned ? [state, 'pinned'].filter((word) => word !== '').join(', ') : state
}

function describeLayers(layers: readonly Layer__Output[], output: Output): string {
  if (layers.length === 0) return 'This node keeps no layers.'
  const rows = layers.map((layer) => [
    shortDigest(layer.digest),
    layer.format,
    `${formatBytes(Number(layer.presentBytes))} of ${formatBytes(Number(layer.layerSize))}`,
    stateOf(layer),
    ago(timestampMs(layer.lastUsedAt)),
    layer.lazilyReadable ? 'yes' : `no: ${layer.whyNot || 'for an unknown reason'}`,
  ])
  const columns = [
    { heading: 'LAYER' },
    { heading: 'FORMAT' },
    { heading: 'ON THIS NODE', align: 'right' },
    { heading: 'STATE' },
    { heading: 'LAST USED' },
    { heading: 'LAZY' },
  ] as const
  const present = layers.reduce((sum, { presentBytes }) => sum + Number(presentBytes), 0)
  const mounted = layers.filter((layer) => layer.mounted).length
  return `${table(columns, rows, output)}\n${count(layers.length, 'layer')}, ${mounted} mounted, ${formatBytes(present)} on this node`
}

function imageDocument(image: Image__Output): object {
  return {
    reference: image.reference,
    rootCid: image.rootCid,
    manifestDigest: image.manifestDigest,
    layers: image.layers,
    blobBytes: Number(image.size),
  }
}

function describeImages(images: readonly Image__Output[], output: Output): string {
  if (images.length === 0) return 'This node has seen no images.'
  const rows = images.map((image) => [
    image.reference || image.rootCid,
    shortDigest(image.manifestDigest),
    String(image.layers.length),
    formatBytes(Number(image.size)),
  ])
  const columns = [
    { heading: 'IMAGE' },
    { heading: 'MANIFEST' },
    { heading: 'LAYERS', align: 'right' },
    { heading: 'SIZE', align: 'right' },
  ] as const
  return table(columns, rows, output)
}

function ago(ms: number | undefined): string {
  return ms === undefined ? 'never' : `${formatMs(Math.max(0, Date.now() - ms))} ago`
}
