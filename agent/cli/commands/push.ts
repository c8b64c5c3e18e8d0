import { mkdir } from 'node:fs/promises'
import { DEFAULT_TAG, IMAGE_HOST, resolveReference } from '../../../snapshotter/oci/reference.ts'
import type { ImageToPush, PushedImage } from '../../../snapshotter/publish.ts'
import { type Command, defineCommand } from '../command.ts'
import { asUsageFailure } from '../failure.ts'
import type { Output } from '../output.ts'
import {
  describeAddresses,
  PUBLISHING_OPTIONS,
  type PublisherAddresses,
  publish,
} from '../publishing.ts'
import { type PushSource, parsePushSource } from '../push-source.ts'
import { count, formatBytes, formatMs, formatRate, megabytesPerSecond } from '../quantity.ts'
import { REPOSITORY_OPTION, repositoryDirectory } from '../repository-option.ts'
import { shortDigest } from '../short-digest.ts'
import { fields, table } from '../table.ts'

/** Blobs below it get no progress, in bytes: configs and manifests are done before a bar is drawn. */
const SHOWN_BYTES_MIN = 64 * 1024

/** `ipdr push` */
export const push: Command = defineCommand({
  name: 'push',
  usage: '<source>',
  summary: 'Publish an image: write it as lazily readable IPFS blocks, and print its CID',
  description: [
    'Reads an image and writes its layers anew as zstd frames that start at file boundaries, with a table of contents, so that every block can be fetched, verified and unpacked alone, and equal files are equal blocks. Configs stay as they are, and so do diff IDs: containers cannot tell the difference. Every digest of the source is checked. The blocks go into the repository, a directory on this machine; ipdr serve offers them to others, and --serve does that right after.',
    'The source is one of oci:DIR[:TAG] (an OCI layout), docker-archive:FILE[:NAME] (of docker save or podman save), containerd:IMAGE (an image in containerd, every platform that it has), - (a tar on standard input), or a path, which is recognised by what it holds. A tar is an OCI archive, a docker-archive or else a root filesystem, plain or compressed.',
    'Layers that are encrypted, or no tar at all, are published as they are, and said so. With --quiet it prints the image reference alone.',
  ],
  args: {
    source: {
      type: 'string',
      demandOption: true,
      describe: 'oci:DIR[:TAG], docker-archive:FILE[:NAME], containerd:IMAGE, - or a path',
    },
  },
  options: {
    tag: {
      type: 'string',
      default: DEFAULT_TAG,
      requiresArg: true,
      describe: 'Tag under the root CID',
      valueName: 'TAG',
    },
    repository: REPOSITORY_OPTION,
    namespace: {
      type: 'string',
      default: 'default',
      requiresArg: true,
      describe: 'Namespace in containerd; k8s.io is the kubelet’s',
      valueName: 'NAME',
      env: 'CONTAINERD_NAMESPACE',
    },
    address: {
      type: 'string',
      default: '/run/containerd/containerd.sock',
      requiresArg: true,
      describe: 'Socket of containerd',
      valueName: 'SOCKET',
      env: 'CONTAINERD_ADDRESS',
    },
    serve: { type: 'boolean', default: false, describe: 'Go on as ipdr serve' },
    ...PUBLISHING_OPTIONS,
  },
  examples: [
    ['ipdr push oci:build/image:v2 --tag v2', 'an image of an OCI layout'],
    ['docker save app | ipdr push - --serve', 'publish and offer what docker built'],
    [
      'ipdr push containerd:docker.io/library/debian:12 --namespace k8s.io',
      'what the kubelet pulled',
    ],
    ['image=$(ipdr push -q rootfs.tar.zst)', 'a root filesystem, in a script'],
  ],
  seeAlso: ['ipdr serve', 'ipdr inspect', 'ipdr repository ls'],
  async run(values, session) {
    const { output, signal } = session
    checkTag(values.tag)
    const source = await parsePushSource(values.source)
    const directory = repositoryDirectory(values.repository)
    const startedAt = performance.now()
    const pushed = await pushInto(directory, source, values, session)
    const document = documentOf(pushed, values.tag, performance.now() - startedAt)
    const answer = (serving?: PublisherAddresses): void =>
      output.answer({ ...document, ...(serving === undefined ? {} : { serving }) }, () => {
        if (output.quiet) return document.reference
        const next =
          serving === undefined ? 'Offer it to others: ipdr serve' : describeAddresses(serving)
        return `${describe(pushed, document, output)}\n${next}`
      })
    if (values.serve) {
      const { listen, gateway } = values
      await publish({ directory, listen, gateway }, answer, signal)
    } else answer()
  },
})

type PushValues = {
  readonly tag: string
  readonly source: string
  readonly namespace: string
  readonly address: string
}

async function pushInto(
  directory: string,
  source: PushSource,
  { tag, source: name, namespace, address }: PushValues,
  { progress, signal }: Parameters<Command['run']>[1],
): Promise<PushedImage> {
  const { BlockRepository } = await import('../../ipfs/repository.ts')
  const { pushImage } = await import('../../../snapshotter/publish.ts')
  await mkdir(directory, { recursive: true, mode: 0o755 })
  await using repository = await BlockRepository.open(directory)
  await using opened = new AsyncDisposableStack()
  const image = await openSource(source, { namespace, address, directory }, opened, signal)
  const pushed = await pushImage(image, repository, {
    signal,
    tag,
    onProgress: ({ digest, doneBytes, totalBytes }) => {
      if (totalBytes < SHOWN_BYTES_MIN) return
      const step = doneBytes === totalBytes ? 'done' : 'publishing'
      progress.update({ item: shortDigest(digest), doneBytes, totalBytes, step })
    },
  })
  progress.finish()
  await repository.addRoot(pushed.root, name === '-' ? 'standard input' : name)
  return pushed
}

async function openSource(
  source: PushSource,
  places: { readonly namespace: string; readonly address: string; readonly directory: string },
  opened: AsyncDisposableStack,
  signal: AbortSignal,
): Promise<ImageToPush> {
  // Beside the blocks: room is needed there anyway, and /tmp may be memory.
  const options = { spoolDirectory: places.directory, signal }
  const { openImage, openTarStream } = await import('../../../snapshotter/publish.ts')
  if (source.kind === 'stdin') return opened.use(await openTarStream(process.stdin, options))
  if (source.kind === 'path') {
    const named = source.name === undefined ? options : { ...options, name: source.name }
    return opened.use(await openImage(source.path, named))
  }
  const { ContainerdImage } = await import('../containerd-image.ts')
  const { namespace, address: socketPath } = places
  return opened.use(
    await ContainerdImage.open({ name: source.name, namespace, socketPath }, signal),
  )
}

function checkTag(tag: string): void {
  try {
    resolveReference('app', tag)
  } catch (error) {
    throw asUsageFailure(error)
  }
}

type PushDocument = {
  readonly reference: string
  readonly sourceBytes: number
  readonly bytes: number
  readonly elapsedMs: number
}

function documentOf(pushed: PushedImage, tag: string, elapsedMs: number): PushDocument {
  const root = pushed.root.toString()
  const sourceBytes = pushed.layers.reduce((sum, layer) => sum + layer.sourceBytes, 0)
  const document = {
    root,
    reference: `${IMAGE_HOST}/${root}${tag === DEFAULT_TAG ? '' : `:${tag}`}`,
    tag,
    digest: pushed.digest,
    layers: pushed.layers.map((layer) => ({
      sourceDigest: layer.sourceDigest,
      sourceBytes: layer.sourceBytes,
      digest: layer.digest,
      bytes: layer.bytes,
      layerBytes: layer.layerBytes ?? null,
      entries: layer.entries ?? null,
      leaves: layer.leaves ?? null,
      cid: layer.cid.toString(),
      keptBecause: layer.keptBecause ?? null,
      chunkedObstacle: layer.chunkedObstacle ?? null,
    })),
    missingPlatforms: pushed.missingPlatforms,
    sourceBytes,
    bytes: pushed.layers.reduce((sum, layer) => sum + layer.bytes, 0),
    elapsedMs: Math.round(elapsedMs),
    megabytesPerSecond: Number(megabytesPerSecond(sourceBytes, elapsedMs).toFixed(1)),
  }
  return document
}

function describe(pushed: PushedImage, document: PushDocument, output: Output): string {
  const columns = [
    { heading: 'LAYER' },
    { heading: 'BEFORE', align: 'right' },
    { heading: 'AFTER', align: 'right' },
    { heading: 'FILES', align: 'right' },
    { heading: 'BLOCKS', align: 'right' },
    { heading: 'NOTE' },
  ] as const
  const rows = pushed.layers.map((layer) => [
    shortDigest(layer.digest),
    formatBytes(layer.sourceBytes),
    formatBytes(layer.bytes),
    layer.entries?.toLocaleString('en') ?? '-',
    layer.leaves?.toLocaleString('en') ?? '-',
    noteOn(layer),
  ])
  const lacking = pushed.missingPlatforms
  const { sourceBytes, bytes, elapsedMs, reference } = document
  return [
    table(columns, rows, output),
    `${count(pushed.layers.length, 'layer')}: ${formatBytes(sourceBytes)} before, ${formatBytes(bytes)} after, in ${formatMs(elapsedMs)} (${formatRate(sourceBytes, elapsedMs)})`,
    ...(lacking.length === 0 ? [] : [`Not in the source, so not published: ${lacking.join(', ')}`]),
    fields([
      ['Root CID', pushed.root.toString()],
      ['Reference', reference],
    ]),
  ].join('\n')
}

function noteOn({ keptBecause, chunkedObstacle }: PushedImage['layers'][number]): string {
  if (keptBecause !== undefined) return `as it was: ${keptBecause}`
  return chunkedObstacle === undefined ? '' : `lazy here only: ${chunkedObstacle}`
}
