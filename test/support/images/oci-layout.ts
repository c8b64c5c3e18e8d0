import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  createReadStream,
  createWriteStream,
  linkSync,
  mkdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { rename } from 'node:fs/promises'
import { join } from 'node:path'
import { PassThrough, Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'

/** How a layer is stored; its media type says so. */
export type Compression = 'none' | 'gzip' | 'zstd'

/** A layer as it lies in a registry. */
export type LayerBlob = {
  readonly path: string
  readonly mediaType: string
  /** sha256 of the blob, and its bytes. */
  readonly digest: string
  readonly size: number
  /** sha256 of the tar, and its bytes. */
  readonly diffId: string
  readonly tarSize: number
  /** Of its descriptor in the manifest. */
  readonly annotations?: Readonly<Record<string, string>>
}

/** What an image runs as; see the OCI image configuration. */
export type ImageProcess = {
  readonly Entrypoint?: readonly string[]
  readonly Cmd?: readonly string[]
  readonly Env?: readonly string[]
  readonly WorkingDir?: string
  readonly User?: string
}

/** An OCI image layout with one image, for linux on this machine's architecture. */
export type OciLayout = {
  readonly dir: string
  readonly tag: string
  readonly manifestDigest: string
  readonly layers: readonly LayerBlob[]
}

/** When all of our images were made: the same input gives the same digest. */
export const CREATED_AT: Date = new Date('2024-01-01T00:00:00Z')

/** Beside the files of the layout: what they do not tell, like the size of a layer's tar. */
const SUMMARY = 'summary.json'

const COMPRESSORS = {
  none: undefined,
  gzip: ['gzip', '--no-name', '-6'],
  zstd: ['zstd', '--quiet', '-3'],
} as const

const MEDIA_TYPES = {
  none: 'application/vnd.oci.image.layer.v1.tar',
  gzip: 'application/vnd.oci.image.layer.v1.tar+gzip',
  zstd: 'application/vnd.oci.image.layer.v1.tar+zstd',
} as const

/** Compresses a tar, given as a path or as a stream, into a layer blob in `dir`, named by its digest. */
export async function packLayer(
  tar: string | NodeJS.ReadableStream,
  compression: Compression,
  dir: string,
): Promise<LayerBlob> {
  mkdirSync(dir, { recursive: true })
  const source = typeof tar === 'string' ? createReadStream(tar) : tar
  const [plain, packed] = [digesting(), digesting()]
  const partial = join(dir, `partial-${crypto.randomUUID()}`)
  const compressor = compress(compression)
  await Promise.all([
    pipeline(source, plain.stream, compressor.input),
    pipeline(compressor.output, packed.stream, createWriteStream(partial)),
    compressor.ended,
  ])
  const [blob, layer] = [packed.result(), plain.result()]
  const path = join(dir, blob.digest.replace(':', '-'))
  await rename(partial, path)
  return {
    path,
    mediaType: MEDIA_TYPES[compression],
    ...blob,
    diffId: layer.digest,
    tarSize: layer.size,
  }
}

/** Writes a layout in `dir` with one image of these layers, lowest first; the blobs become hard links. */
export function writeOciLayout(
  dir: string,
  image: {
    readonly layers: readonly LayerBlob[]
    readonly process?: ImageProcess
    readonly tag?: string
  },
): OciLayout {
  const { layers, process: config = {}, tag = 'latest' } = image
  const blobs = join(dir, 'blobs/sha256')
  mkdirSync(blobs, { recursive: true })
  for (const { path, digest } of new Map(layers.map((layer) => [layer.digest, layer])).values()) {
    linkSync(path, join(blobs, digest.slice('sha256:'.length)))
  }
  const architecture = process.arch === 'x64' ? 'amd64' : process.arch
  const created = CREATED_AT.toISOString()
  const imageConfig = writeJsonBlob(blobs, {
    created,
    architecture,
    os: 'linux',
    config,
    rootfs: { type: 'layers', diff_ids: layers.map(({ diffId }) => diffId) },
    history: layers.map(() => ({ created, created_by: 'test/support/images' })),
  })
  const manifest = writeJsonBlob(blobs, {
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    config: { mediaType: 'application/vnd.oci.image.config.v1+json', ...imageConfig },
    layers: layers.map(({ mediaType, digest, size, annotations }) => ({
      mediaType,
      digest,
      size,
      ...(annotations && { annotations }),
    })),
  })
  const index = {
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.index.v1+json',
    manifests: [
      {
        mediaType: 'application/vnd.oci.image.manifest.v1+json',
        ...manifest,
        platform: { architecture, os: 'linux' },
        annotations: { 'org.opencontainers.image.ref.name': tag },
      },
    ],
  }
  writeFileSync(join(dir, 'index.json'), JSON.stringify(index))
  writeFileSync(join(dir, 'oci-layout'), JSON.stringify({ imageLayoutVersion: '1.0.0' }))
  const layout = { tag, manifestDigest: manifest.digest, layers }
  writeFileSync(join(dir, SUMMARY), JSON.stringify(layout))
  return openOciLayout(dir)
}

/** What writeOciLayout wrote to `dir`, also after the folder was renamed. */
export function openOciLayout(dir: string): OciLayout {
  const layout = JSON.parse(readFileSync(join(dir, SUMMARY), 'utf8')) as OciLayout
  const layers = layout.layers.map((layer) => ({
    ...layer,
    path: join(dir, 'blobs/sha256', layer.digest.slice('sha256:'.length)),
  }))
  return { ...layout, dir, layers }
}

function writeJsonBlob(blobs: string, value: unknown): { digest: string; size: number } {
  const text = JSON.stringify(value)
  const hex = createHash('sha256').update(text).digest('hex')
  const path = join(blobs, hex)
  writeFileSync(path, text)
  return { digest: `sha256:${hex}`, size: statSync(path).size }
}

function digesting(): { stream: Transform; result: () => { digest: string; size: number } } {
  const hash = createHash('sha256')
  let size = 0
  const stream = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      hash.update(chunk)
      size += chunk.length
      done(null, chunk)
    },
  })
  return { stream, result: () => ({ digest: `sha256:${hash.digest('hex')}`, size }) }
}

/** A process of its own, so that layers are compressed side by side and not in our event loop. */
function compress(compression: Compression): {
  input: NodeJS.WritableStream
  output: NodeJS.ReadableStream
  ended: Promise<void>
} {
  const command = COMPRESSORS[compression]
  if (command === undefined) {
    const through = new PassThrough()
    return { input: through, output: through, ended: Promise.resolve() }
  }
  const [file, ...args] = command
  const child = spawn(file, args, { stdio: ['pipe', 'pipe', 'inherit'] })
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  child.on('error', reject)
  child.on('close', (code) =>
    code === 0 ? resolve() : reject(new Error(`${file}: exit code ${code}`)),
  )
  return { input: child.stdin, output: child.stdout, ended: promise }
}
