import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import zlib from 'node:zlib'
import { CodedError, LayerError } from '../errors.ts'
import { decodeZstdStream } from '../toc/decode-zstd-stream.ts'
import { SNIFF_BYTES, sniffCompression } from '../toc/sniff-compression.ts'

/** A layer decompressed, in bytes. 1 TiB: ten times the largest public images; a bomb of 1 GiB makes as much. */
export const LAYER_BYTES_MAX: number = 2 ** 40

/**
 * The tar inside a layer that is plain, gzip (any number of members) or zstd (any number of frames), told by its first bytes.
 * Throws LayerError: DATA_LOSS (truncated or damaged), RESOURCE_EXHAUSTED (decompression bomb), CANCELLED; passes on what
 * `layer` throws.
 */
export async function* decompressLayer(
  layer: AsyncIterable<Uint8Array>,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array, void> {
  const source = layer[Symbol.asyncIterator]()
  try {
    const start: Uint8Array[] = []
    let startBytes = 0
    while (startBytes < SNIFF_BYTES) {
      const next = await source.next()
      if (next.done === true) break
      start.push(next.value)
      startBytes += next.value.length
    }
    const whole = (async function* () {
      yield* start
      yield* { [Symbol.asyncIterator]: () => source }
    })()
    const compression = sniffCompression(Buffer.concat(start))
    if (compression === 'zstd')
      yield* decodeZstdStream(whole, { outputBytesMax: LAYER_BYTES_MAX, signal })
    else if (compression === 'gzip') yield* gunzip(whole, signal)
    else yield* whole
  } finally {
    await source.return?.()
  }
}

async function* gunzip(
  layer: AsyncIterable<Uint8Array>,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array, void> {
  const decoder = zlib.createGunzip({ chunkSize: 256 * 1024 })
  const feeding = pipeline(Readable.from(layer), decoder)
  // The same failure also ends the loop below, which reports it.
  feeding.catch(() => {})
  let produced = 0
  try {
    for await (const piece of decoder) {
      produced += (piece as Buffer).length
      if (produced > LAYER_BYTES_MAX) {
        const message = `gzip layer: it decodes to more than ${LAYER_BYTES_MAX} bytes, the limit for a layer`
        throw new LayerError('RESOURCE_EXHAUSTED', message)
      }
      if (signal.aborted) throw new LayerError('CANCELLED', 'decoding a layer was cancelled')
      yield piece as Buffer
    }
    await feeding
  } catch (cause) {
    if (cause instanceof CodedError || !isZlibError(cause)) throw cause
    const message = `gzip layer: damaged or cut off after ${produced} decoded bytes: ${cause.message}`
    throw new LayerError('DATA_LOSS', message, {}, cause)
  }
}

function isZlibError(cause: unknown): cause is Error {
  return (
    cause instanceof Error &&
    'code' in cause &&
    typeof cause.code === 'string' &&
    cause.code.startsWith('Z_')
  )
}
