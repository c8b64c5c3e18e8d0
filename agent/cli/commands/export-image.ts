import { randomUUID } from 'node:crypto'
import { createWriteStream } from 'node:fs'
import { rename, rm } from 'node:fs/promises'
import { resolve } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type { BlockSource } from '../../../snapshotter/block-source.ts'
import type { ImageReference } from '../../../snapshotter/oci/reference.ts'
import { isUnixfsCodec } from '../../ipfs/dag-links.ts'
import type { DagBlock } from '../../ipfs/walk-dag.ts'
import { type Command, defineCommand } from '../command.ts'
import { EXIT_CODES } from '../exit-codes.ts'
import { CommandFailure } from '../failure.ts'
import { imageReference } from '../image-argument.ts'
import { openInspectionBlocks } from '../inspection-blocks.ts'
import { PLACES_OPTIONS } from '../places-options.ts'
import { count, formatBytes } from '../quantity.ts'
import { REPOSITORY_OPTION } from '../repository-option.ts'

/** `ipdr export` */
export const exportCommand: Command = defineCommand({
  name: 'export',
  usage: '<image>',
  summary: 'Write an image as a CAR file or an OCI archive',
  description: [
    'Writes every block of an image, all tags and platforms, as a CAR (version 1) with the image as its root: in depth-first order, each block once, so that one image is always the same file. Other IPFS tools read it, and ipdr import.',
    'With --format oci the file is an OCI image layout in a tar instead, which containerd, skopeo and podman read: the manifest of the tag or digest that you name (latest unless given), the images of all its platforms, and every blob as it was published, checked by its digest. ctr images export writes no layers of an image that was mounted lazily; this does.',
    'Blocks come from your own repository, else from the gateways and peers that you name; each is checked. A file is there under its name only when it is whole. An image that is a file with an OCI descriptor (as nerdctl writes) cannot be a CAR: ipdr push ipfs:CID writes it anew.',
  ],
  args: {
    image: {
      type: 'string',
      demandOption: true,
      describe: 'A CID, or ipdr.internal/<cid>; with a tag or digest for --format oci',
    },
  },
  options: {
    to: {
      type: 'string',
      requiresArg: true,
      describe: 'Write this file; standard output unless given',
      valueName: 'FILE',
    },
    format: {
      choices: ['car', 'oci'] as const,
      default: 'car',
      describe: 'A CAR of all its blocks, or an OCI archive of what is named',
    },
    repository: REPOSITORY_OPTION,
    ...PLACES_OPTIONS,
  },
  examples: [
    ['ipdr export <cid> --to app.car', 'an image that you published'],
    ['ipdr export <cid> --gateway http://10.0.0.7:8080 > app.car', 'one that a gateway has'],
    ['ipdr export <cid> --format oci | ctr images import -', 'into a containerd without the agent'],
  ],
  seeAlso: ['ipdr import', 'ipdr push', 'ipdr inspect'],
  async run({ image, to, format, ...places }, { output, progress, signal }) {
    const reference = imageReference(image)
    if (to === undefined && process.stdout.isTTY) {
      const next = 'Name a file with --to, or send standard output to one.'
      const what = format === 'oci' ? 'an OCI archive' : 'a CAR'
      throw new CommandFailure(EXIT_CODES.usage, `${what} is not written to a terminal`, next)
    }
    await using opened = new AsyncDisposableStack()
    const blocks = await openInspectionBlocks(places, opened)
    const told = (doneBytes: number, totalBytes?: number): void =>
      progress.update({ item: to ?? 'export', doneBytes, totalBytes, step: 'exporting' })
    const write = format === 'oci' ? ociExport : carExport
    const { content, answer, sentence } = await write(reference, { blocks, signal, told })
    if (to === undefined) return pipeline(content, process.stdout, { end: false, signal })
    await writeWhole(content, resolve(to), signal)
    progress.finish()
    output.answer({ ...answer(), file: resolve(to) }, () =>
      output.quiet ? to : `Wrote ${to}: ${sentence()}`,
    )
  },
})

type Export = {
  readonly content: Readable
  /** Of what was written, once it was. */
  readonly answer: () => object
  readonly sentence: () => string
}

type ExportWith = {
  readonly blocks: BlockSource
  readonly signal: AbortSignal
  readonly told: (doneBytes: number, totalBytes?: number) => void
}

async function carExport(
  { root }: ImageReference,
  { blocks, signal, told }: ExportWith,
): Promise<Export> {
  const { imageOutline } = await import('../../../snapshotter/image-outline.ts')
  const { isLinked } = await imageOutline(root, { blocks, signal })
  if (!isLinked || !isUnixfsCodec(root)) {
    throw new CommandFailure(
      EXIT_CODES.failure,
      `image ${root.toString()} is an OCI descriptor that names its blobs by URL; a CAR of it would not hold them`,
      `ipdr push ipfs:${root.toString()} writes it anew: that image can be exported. --format oci can export it as it is.`,
    )
  }
  const { walkDag } = await import('../../ipfs/walk-dag.ts')
  const { writeCar } = await import('../../ipfs/write-car.ts')
  const request = { priority: 'background', signal } as const
  const exported = { blocks: 0, bytes: 0 }
  const walk = walkDag(root, (cid) => blocks.get(cid, request), signal)
  return {
    content: Readable.from(writeCar(root, countBlocks(walk, exported, told))),
    answer: () => ({ root: root.toString(), ...exported }),
    sentence: () => `${count(exported.blocks, 'block')}, ${formatBytes(exported.bytes)}`,
  }
}

async function ociExport(
  reference: ImageReference,
  { blocks, signal, told }: ExportWith,
): Promise<Export> {
  const { ociArchive } = await import('../../../snapshotter/export-image.ts')
  const archive = await ociArchive(reference, { blocks, signal })
  const { digest, blobs, bytes } = archive
  return {
    content: archive.content((doneBytes) => told(doneBytes, bytes)),
    answer: () => ({ root: reference.root.toString(), digest, blobs, bytes }),
    sentence: () => `${digest}, ${count(blobs, 'blob')}, ${formatBytes(bytes)}`,
  }
}

async function* countBlocks(
  blocks: AsyncIterable<DagBlock>,
  exported: { blocks: number; bytes: number },
  onBytes: (doneBytes: number) => void,
): AsyncGenerator<DagBlock, void, void> {
  for await (const block of blocks) {
    exported.blocks++
    exported.bytes += block.bytes.length
    onBytes(exported.bytes)
    yield block
  }
}

/** Writes a file that has its name only once it is whole and on disk. */
async function writeWhole(content: Readable, path: string, signal: AbortSignal): Promise<void> {
  const written = `${path}.${randomUUID()}.tmp`
  try {
    await pipeline(content, createWriteStream(written, { flags: 'wx', flush: true }), { signal })
    await rename(written, path)
  } catch (error) {
    await rm(written, { force: true })
    throw error
  }
}
