import { mkdir } from 'node:fs/promises'
import { nodePlatform } from '../../../snapshotter/oci/platform.ts'
import {
  DEFAULT_TAG,
  IMAGE_HOST,
  type ImageReference,
  resolveReference,
} from '../../../snapshotter/oci/reference.ts'
import type { CarriedList, PrefetchList } from '../../../snapshotter/optimize.ts'
import type { ImageToPush, PushEncryption, PushedImage } from '../../../snapshotter/publish.ts'
import type { BlockRepository } from '../../ipfs/repository.ts'
import { type Command, defineCommand } from '../command.ts'
import { EXIT_CODES } from '../exit-codes.ts'
import { asUsageFailure, CommandFailure } from '../failure.ts'
import { imageReference } from '../image-argument.ts'
import { blocksOf } from '../inspection-blocks.ts'
import type { Output } from '../output.ts'
import {
  describeAddresses,
  PUBLISHING_OPTIONS,
  type PublisherAddresses,
  publish,
} from '../publishing.ts'
import { type PushSource, parsePushSource } from '../push-source.ts'
import { count, formatBytes, formatMs, formatRate, megabytesPerSecond } from '../quantity.ts'
import { ENCRYPTION_OPTIONS, encryptionOf } from '../recipients.ts'
import { parsePlatform, REGISTRY_OPTIONS } from '../registry-options.ts'
import { repositoryBlocks } from '../repository-blocks.ts'
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
    'The source is one of oci:DIR[:TAG] (an OCI layout), docker-archive:FILE[:NAME] (of docker save or podman save), containerd:IMAGE (an image in containerd, every platform that it has), docker://IMAGE[:TAG|@DIGEST] (an image in a registry, read without a daemon), ipfs:CID[:TAG|@DIGEST] (an image on IPFS, in any layout, to be written anew), - (a tar on standard input), or a path, which is recognised by what it holds. A tar is an OCI archive, a docker-archive or else a root filesystem, plain or compressed.',
    'From a registry, what this machine would run is taken, unless --platform names another platform or --all-platforms takes the whole index. Credentials are those of docker login. A registry is asked by HTTPS; by plain HTTP if it is on loopback, or with --insecure.',
    'With --optimize, the lists that ipdr optimize made for an earlier build are put beside the new one, as far as their files are unchanged, and what they name gets blocks of its own, so that a start fetches nothing else with it. Such layers share fewer blocks with those that were pushed without. To have that of an image that is published already, push it from ipfs:.',
    'With --compact, files share frames of some 4 MiB: the image is about a fifth smaller and has a tenth of the blocks, so that all of it is fetched sooner; a first read fetches more around what it wants, images share less with each other, and podman, CRI-O and registries read it whole.',
    'With --encrypt-to, layers are encrypted as ocicrypt, skopeo and containerd know it, under a fresh key each, and stay lazily readable for whoever holds a key; the image config stays plain, and with it commands, environment, history and the digests of the layers. Equal files are no longer equal blocks. Attestations of the source are left out, and prefetch lists refused: both name files in plain text.',
    'Layers that are encrypted, or no tar at all, are published as they are, and said so. With --quiet it prints the image reference alone.',
  ],
  args: {
    source: {
      type: 'string',
      demandOption: true,
      describe:
        'oci:DIR[:TAG], docker-archive:FILE[:NAME], containerd:IMAGE, docker://IMAGE, ipfs:CID, - or a path',
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
    platform: {
      type: 'string',
      requiresArg: true,
      describe: 'Which platform of a registry’s image to take, like linux/arm64 or linux/arm/v7',
      valueName: 'OS/ARCH',
    },
    'all-platforms': {
      type: 'boolean',
      default: false,
      describe: 'Take every platform of a registry’s image',
    },
    ...REGISTRY_OPTIONS,
    from: {
      type: 'string',
      array: true,
      requiresArg: true,
      default: [] as string[],
      describe:
        'Where an ipfs: image is, beside the repository: a gateway’s URL, or a peer’s address with /p2p/; may be repeated',
      valueName: 'PLACE',
    },
    optimize: {
      type: 'string',
      requiresArg: true,
      describe:
        'Take over the prefetch lists of this image, published before into the same repository: a CID or reference',
      valueName: 'IMAGE',
    },
    compact: {
      type: 'boolean',
      default: false,
      describe:
        'Compress files together: smaller, but read in larger parts, and lazily by ipdr-agent alone',
    },
    ...ENCRYPTION_OPTIONS,
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
    ['ipdr push docker://registry.example/app:v2', 'what a registry has, without docker'],
    [
      'ipdr push ipfs:<cid> --from http://10.0.0.7:8080',
      'what others published as gzip, or nerdctl did',
    ],
    ['ipdr push oci:image:v3 --optimize <cid of v2>', 'with what is known of the starts of v2'],
    ['ipdr push oci:image --compact', 'for little room, or an app that reads most of its image'],
    ['ipdr push oci:image --encrypt-to node.pub.pem', 'for those who hold the private key'],
    ['image=$(ipdr push -q rootfs.tar.zst)', 'a root filesystem, in a script'],
  ],
  seeAlso: ['ipdr serve', 'ipdr optimize', 'ipdr inspect', 'ipdr repository ls'],
  async run(values, session) {
    const { output, signal } = session
    checkTag(values.tag)
    const encryption = await encryptionOf(values)
    if (encryption !== undefined && values.optimize !== undefined) {
      throw new CommandFailure(
        EXIT_CODES.usage,
        'a prefetch list would name the files of encrypted layers to everybody',
        'Leave out --optimize: nodes learn their own lists, which stay on the node.',
      )
    }
    const source = await parsePushSource(values.source)
    checkSourceOptions(source, values)
    const directory = repositoryDirectory(values.repository)
    const startedAt = performance.now()
    const pushed = await pushInto(directory, source, { ...values, encryption }, session)
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

/** An image as it was pushed, with the lists that it was given. */
type Published = PushedImage & { readonly carried: readonly CarriedList[] }

type PushValues = {
  readonly tag: string
  readonly optimize: string | undefined
  readonly source: string
  readonly namespace: string
  readonly address: string
  readonly platform: string | undefined
  readonly 'all-platforms': boolean
  readonly authfile: string | undefined
  readonly insecure: boolean
  readonly from: readonly string[]
  readonly encryption: PushEncryption | undefined
  readonly compact: boolean
}

async function pushInto(
  directory: string,
  source: PushSource,
  values: PushValues,
  { progress, signal }: Parameters<Command['run']>[1],
): Promise<Published> {
  const { tag, source: name, optimize, encryption, compact } = values
  const { BlockRepository } = await import('../../ipfs/repository.ts')
  const { pushImage } = await import('../../../snapshotter/publish.ts')
  await mkdir(directory, { recursive: true, mode: 0o755 })
  await using repository = await BlockRepository.open(directory)
  // Before the work: a list that is not there is found out at once.
  const lists = optimize === undefined ? undefined : await listsOf(optimize, repository, signal)
  await using opened = new AsyncDisposableStack()
  const image = await openSource(source, { ...values, directory, repository }, opened, signal)
  const pushed = await pushImage(image, repository, {
    signal,
    tag,
    compact,
    startReads: lists && (await import('../../../snapshotter/optimize.ts')).startReadsOf(lists),
    ...(encryption === undefined ? {} : { encryption }),
    onProgress: ({ digest, doneBytes, totalBytes }) => {
      if (totalBytes < SHOWN_BYTES_MIN) return
      const step = doneBytes === totalBytes ? 'done' : 'publishing'
      progress.update({ item: shortDigest(digest), doneBytes, totalBytes, step })
    },
  })
  progress.finish()
  const { root, carried } = await withLists({ root: pushed.root, selector: tag }, lists, {
    repository,
    signal,
  })
  await repository.addRoot(root, name === '-' ? 'standard input' : name)
  return { ...pushed, root, carried }
}

/** The lists of an image in the repository. Rejects with CommandFailure if it has none. */
async function listsOf(
  image: string,
  repository: BlockRepository,
  signal: AbortSignal,
): Promise<ReadonlyMap<string, PrefetchList>> {
  const { prefetchListsOf } = await import('../../../snapshotter/optimize.ts')
  const blocks = repositoryBlocks(repository)
  const lists = await prefetchListsOf(imageReference(image), { blocks, signal })
  if (lists.size > 0) return lists
  throw new CommandFailure(
    EXIT_CODES.notFound,
    `image ${image} has no prefetch list to take over`,
    'ipdr optimize makes one, and prints the CID of the image that has it.',
  )
}

async function withLists(
  image: ImageReference,
  lists: ReadonlyMap<string, PrefetchList> | undefined,
  { repository, signal }: { repository: BlockRepository; signal: AbortSignal },
): Promise<{ root: ImageReference['root']; carried: readonly CarriedList[] }> {
  if (lists === undefined) return { root: image.root, carried: [] }
  const { carryPrefetchLists } = await import('../../../snapshotter/optimize.ts')
  const blocks = repositoryBlocks(repository)
  return carryPrefetchLists(lists, image, { blocks, sink: repository, signal })
}

async function openSource(
  source: PushSource,
  values: PushValues & { readonly directory: string; readonly repository: BlockRepository },
  opened: AsyncDisposableStack,
  signal: AbortSignal,
): Promise<ImageToPush> {
  // Beside the blocks: room is needed there anyway, and /tmp may be memory.
  const options = { spoolDirectory: values.directory, signal }
  const { openImage, openTarStream } = await import('../../../snapshotter/publish.ts')
  if (source.kind === 'stdin') return opened.use(await openTarStream(process.stdin, options))
  if (source.kind === 'path') {
    const named = source.name === undefined ? options : { ...options, name: source.name }
    return opened.use(await openImage(source.path, named))
  }
  if (source.kind === 'registry') {
    const { RegistryImage } = await import('../registry-image.ts')
    const { authfile, insecure } = values
    const platform = values['all-platforms']
      ? undefined
      : values.platform === undefined
        ? nodePlatform()
        : parsePlatform(values.platform)
    const wanted = { platform, authfile, insecure }
    return opened.use(await RegistryImage.open(source.reference, wanted, signal))
  }
  if (source.kind === 'ipfs') {
    const { openIpfsSource } = await import('../../../snapshotter/publish.ts')
    const places = {
      gateway: values.from.filter((place) => !place.startsWith('/')),
      peer: values.from.filter((place) => place.startsWith('/')),
    }
    const blocks = await blocksOf(values.repository, places, opened)
    return openIpfsSource(source.reference, blocks, signal)
  }
  const { ContainerdImage } = await import('../containerd-image.ts')
  const { namespace, address: socketPath } = values
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

/** Said of another source they would be ignored, and something else be published than was meant. */
function checkSourceOptions(source: PushSource, values: Omit<PushValues, 'encryption'>): void {
  const { platform, authfile, insecure, 'all-platforms': all } = values
  if (platform !== undefined && all) {
    throw new CommandFailure(EXIT_CODES.usage, '--platform and --all-platforms exclude each other')
  }
  if (source.kind !== 'ipfs' && values.from.length > 0) {
    throw new CommandFailure(EXIT_CODES.usage, '--from: for ipfs: sources only')
  }
  if (source.kind === 'registry') return
  const wrong = [
    ...(platform === undefined ? [] : ['--platform']),
    ...(all ? ['--all-platforms'] : []),
    ...(authfile === undefined || authfile === process.env['REGISTRY_AUTH_FILE']
      ? []
      : ['--authfile']),
    ...(insecure ? ['--insecure'] : []),
  ]
  if (wrong.length === 0) return
  throw new CommandFailure(EXIT_CODES.usage, `${wrong.join(', ')}: for docker:// sources only`)
}

type PushDocument = {
  readonly reference: string
  readonly sourceBytes: number
  readonly bytes: number
  readonly elapsedMs: number
}

function documentOf(pushed: Published, tag: string, elapsedMs: number): PushDocument {
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
      recipientKinds: layer.recipientKinds ?? null,
    })),
    missingPlatforms: pushed.missingPlatforms,
    leftOut: pushed.leftOut,
    prefetchLists: pushed.carried,
    sourceBytes,
    bytes: pushed.layers.reduce((sum, layer) => sum + layer.bytes, 0),
    elapsedMs: Math.round(elapsedMs),
    megabytesPerSecond: Number(megabytesPerSecond(sourceBytes, elapsedMs).toFixed(1)),
  }
  return document
}

function describe(pushed: Published, document: PushDocument, output: Output): string {
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
    ...(pushed.leftOut.length === 0
      ? []
      : [
          `Left out, since it would be in plain text: ${count(pushed.leftOut.length, 'attestation')}`,
        ]),
    ...pushed.carried.map(
      ({ platform, ranges, bytes, dropped }) =>
        `Prefetch list for ${platform}: ${count(ranges, 'range')}, ${formatBytes(bytes)}; ${count(dropped, 'range')} of changed files left out`,
    ),
    fields([
      ['Root CID', pushed.root.toString()],
      ['Reference', reference],
    ]),
  ].join('\n')
}

function noteOn(layer: PushedImage['layers'][number]): string {
  const { keptBecause, chunkedObstacle, recipientKinds } = layer
  if (keptBecause !== undefined) return `as it was: ${keptBecause}`
  return [
    ...(recipientKinds === undefined ? [] : [`encrypted for ${recipientKinds.join(', ')}`]),
    ...(chunkedObstacle === undefined ? [] : [`lazy here only: ${chunkedObstacle}`]),
  ].join('; ')
}
