import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { createGunzip } from 'node:zlib'
import { buildDebianImage, type DebianRecipe } from '../support/images/debian-image.ts'
import { PYTHON } from '../support/images/demo-image.ts'
import type { LayerBlob, OciLayout } from '../support/images/oci-layout.ts'
import type { BenchContext, Measurement } from './bench-context.ts'
import { BenchNode } from './bench-node.ts'
import type { Figure } from './figure.ts'

/** What IPFS cuts files into unless told otherwise. */
const FIXED_BLOCK_BYTES = 256 * 1024

const MINBASE = { variant: 'minbase' } as const
const SCIENCE = ['python3', 'python3-numpy', 'python3-pandas']

/** An app in one layer on its base, as a Dockerfile with one RUN makes it. */
const app = (name: string, packages: readonly string[], script: string): DebianRecipe => ({
  name,
  root: MINBASE,
  steps: [{ name, packages, script: `mkdir /app; ${script}` }],
})

/** Two related images, of which the first is on the node when the second is pulled. */
const PAIRS: readonly {
  readonly name: string
  readonly what: string
  readonly images: readonly [DebianRecipe, DebianRecipe]
}[] = [
  {
    name: 'dedup-python',
    what: 'python3 with numpy after python3, on the same base',
    images: [
      { name: 'python', root: MINBASE, steps: [PYTHON] },
      app('python-numpy', ['python3', 'python3-numpy'], 'echo numpy >/app/name'),
    ],
  },
  {
    name: 'dedup-version',
    what: 'the same app with one package more and a changed file',
    images: [
      app('app-1', SCIENCE, 'echo 1 >/app/version'),
      app('app-2', [...SCIENCE, 'python3-requests'], 'echo 2 >/app/version'),
    ],
  },
]

/** What is fetched of an image of which a relative is here, beside what other ways of sharing would fetch. */
export const dedup: Measurement = { names: PAIRS.map(({ name }) => name), measure }

async function measure(context: BenchContext): Promise<Figure[]> {
  const figures: Figure[] = []
  for (const { name, what, images } of PAIRS) {
    context.say(`making two images: ${what}`)
    const [first, second] = [await buildDebianImage(images[0]), await buildDebianImage(images[1])]
    const [before, after] = [
      await context.publisher.push(first),
      await context.publisher.push(second),
    ]
    context.say('pulling one after the other')
    await using node = await BenchNode.start(context.publisher)
    await node.pull(before.reference, { all: true })
    const had = await fetchedBytes(node)
    await node.pull(after.reference, { all: true })
    const fetched = (await fetchedBytes(node)) - had
    const [ofGzip, ofTar] = [
      await newBlocks(first, second, 'gzip'),
      await newBlocks(first, second, 'tar'),
    ]
    figures.push({
      name,
      value: (fetched / after.publishedBytes) * 100,
      unit: '%',
      detail: `${what}: ${megabytes(fetched)} of ${megabytes(after.publishedBytes)} MB fetched; whole layers would be ${percent(newLayers(first, second))}, blocks of 256 KiB of the gzip blobs ${percent(ofGzip)}, of the tars ${percent(ofTar)}`,
    })
  }
  return figures
}

async function fetchedBytes(node: BenchNode): Promise<number> {
  const samples = [...(await node.agent.metrics())]
  return samples
    .filter(([name]) => name.startsWith('ipdr_fetched_bytes_total'))
    .reduce((sum, [, value]) => sum + value, 0)
}

/** The share of the second image's gzip bytes in layers that the first does not have. */
function newLayers(first: OciLayout, second: OciLayout): number {
  const here = new Set(first.layers.map(({ digest }) => digest))
  const missing = second.layers.filter(({ digest }) => !here.has(digest))
  return bytesOf(missing) / bytesOf(second.layers)
}

/** The share of the second image's bytes in blocks, cut every 256 KiB from the start of a layer, that the first does not have. */
async function newBlocks(first: OciLayout, second: OciLayout, of: 'gzip' | 'tar'): Promise<number> {
  const here = new Set<string>()
  for (const layer of first.layers) {
    for await (const { digest } of blocksOf(layer, of)) here.add(digest)
  }
  let [missing, total] = [0, 0]
  for (const layer of second.layers) {
    for await (const { digest, bytes } of blocksOf(layer, of)) {
      total += bytes
      if (!here.has(digest)) missing += bytes
      here.add(digest)
    }
  }
  return missing / total
}

async function* blocksOf(
  { path }: LayerBlob,
  of: 'gzip' | 'tar',
): AsyncGenerator<{ digest: string; bytes: number }> {
  const file = createReadStream(path)
  let rest = Buffer.alloc(0)
  const block = (bytes: Buffer) => ({
    digest: createHash('sha256').update(bytes).digest('base64'),
    bytes: bytes.length,
  })
  for await (const piece of of === 'gzip' ? file : file.pipe(createGunzip())) {
    rest = Buffer.concat([rest, piece as Buffer])
    let at = 0
    for (; rest.length - at >= FIXED_BLOCK_BYTES; at += FIXED_BLOCK_BYTES) {
      yield block(rest.subarray(at, at + FIXED_BLOCK_BYTES))
    }
    rest = rest.subarray(at)
  }
  if (rest.length > 0) yield block(rest)
}

function bytesOf(layers: readonly LayerBlob[]): number {
  return layers.reduce((sum, { size }) => sum + size, 0)
}

function percent(share: number): string {
  return `${(share * 100).toFixed(0)} %`
}

function megabytes(bytes: number): string {
  return (bytes / 1e6).toFixed(1)
}
