import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import zlib from 'node:zlib'
import { CodedError, LayerError } from '../errors.ts'
import type { ZstdFrameHeader } from './zstd-frames.ts'
import {
  BLOCK_HEADER_BYTES,
  decodeZstdFrame,
  parseBlockHeader,
  parseFrameHeader,
} from './zstd-frames.ts'

/** Frames up to this long, and decoding to at most eight times that, are decoded at once: a stream costs more than they do. */
const WHOLE_FRAME_BYTES = 256 * 1024

/**
 * Decodes a zstd stream of any number of frames as it arrives. Node's own decoder stops silently after the first one.
 * Throws LayerError: DATA_LOSS (truncated or damaged), RESOURCE_EXHAUSTED (more than `outputBytesMax` come out),
 * CANCELLED (`signal`); passes on what `source` throws.
 */
export async function* decodeZstdStream(
  source: AsyncIterable<Uint8Array>,
  limits: { readonly outputBytesMax: number; readonly signal: AbortSignal },
): AsyncGenerator<Uint8Array, void> {
  const input = new ByteQueue(source, limits.signal)
  let produced = 0
  try {
    for (;;) {
      const header = await nextFrame(input)
      if (header === undefined) return
      for await (const piece of decodeFrame(input, header)) {
        produced += piece.length
        if (produced > limits.outputBytesMax) throw bomb(limits.outputBytesMax)
        if (limits.signal.aborted) throw cancelled()
        yield piece
      }
    }
  } finally {
    await input.close()
  }
}

async function nextFrame(input: ByteQueue): Promise<ZstdFrameHeader | undefined> {
  for (let wanted = 5; ; wanted++) {
    const bytes = await input.peek(wanted)
    if (bytes.length === 0) return undefined
    const header = parseFrameHeader(bytes, input.offset)
    if (header !== undefined) return header
    if (bytes.length < wanted) throw cutOff(input.offset)
  }
}

async function* decodeFrame(
  input: ByteQueue,
  header: ZstdFrameHeader,
): AsyncGenerator<Uint8Array, void> {
  const start = input.offset
  const pieces = framePieces(input, header)
  if (header.kind === 'skippable') {
    for await (const _ of pieces) continue
    return
  }
  const { contentSize } = header
  if (contentSize !== undefined && contentSize <= 8 * WHOLE_FRAME_BYTES) {
    const held: Uint8Array[] = []
    let bytes = 0
    for (;;) {
      const next = await pieces.next()
      if (next.done === true) {
        if (contentSize > 0) yield decodeZstdFrame(Buffer.concat(held), contentSize, start)
        return
      }
      held.push(next.value)
      bytes += next.value.length
      if (bytes > WHOLE_FRAME_BYTES) break
    }
    yield* decodeInStream(held, pieces, start)
  } else {
    yield* decodeInStream([], pieces, start)
  }
}

async function* decodeInStream(
  first: Iterable<Uint8Array>,
  rest: AsyncIterable<Uint8Array>,
  start: number,
): AsyncGenerator<Uint8Array, void> {
  const decoder = zlib.createZstdDecompress()
  const compressed = Readable.from(
    (async function* () {
      yield* first
      yield* rest
    })(),
  )
  const feeding = pipeline(compressed, decoder)
  // The same failure also ends the loop below, which reports it.
  feeding.catch(() => {})
  try {
    for await (const piece of decoder) yield piece as Buffer
    await feeding
  } catch (cause) {
    if (cause instanceof CodedError) throw cause
    if (!isZlibError(cause)) throw cause
    const message = `zstd stream: the frame at byte ${start} does not decode; fetch the layer again`
    throw new LayerError('DATA_LOSS', message, { offset: start }, cause)
  }
}

/** The bytes of the frame that `input` stands before, header included, in pieces as they arrive. */
async function* framePieces(
  input: ByteQueue,
  header: ZstdFrameHeader,
): AsyncGenerator<Uint8Array, void> {
  yield* input.take(header.headerBytes)
  if (header.kind === 'skippable') {
    yield* input.take(header.dataBytes)
    return
  }
  for (;;) {
    const bytes = await input.peek(BLOCK_HEADER_BYTES)
    if (bytes.length < BLOCK_HEADER_BYTES) throw cutOff(input.offset)
    const block = parseBlockHeader(bytes, input.offset)
    yield* input.take(BLOCK_HEADER_BYTES + block.storedBytes)
    if (block.isLast) break
  }
  if (header.hasChecksum) yield* input.take(4)
}

/** Bytes in order from pieces of any size. */
class ByteQueue {
  /** Bytes taken so far. */
  offset = 0
  readonly #source: AsyncIterator<Uint8Array>
  readonly #signal: AbortSignal
  #held: Uint8Array = new Uint8Array(0)

  constructor(source: AsyncIterable<Uint8Array>, signal: AbortSignal) {
    this.#source = source[Symbol.asyncIterator]()
    this.#signal = signal
  }

  /** The next bytes without taking them: at least `count`, fewer only at the end of the source. */
  async peek(count: number): Promise<Uint8Array> {
    while (this.#held.length < count) {
      const next = await this.#pull()
      if (next === undefined) break
      this.#held = this.#held.length === 0 ? next : Buffer.concat([this.#held, next])
    }
    return this.#held
  }

  /** Takes exactly `count` bytes. Throws LayerError DATA_LOSS if there are not as many. */
  async *take(count: number): AsyncGenerator<Uint8Array, void> {
    let left = count
    while (left > 0) {
      if (this.#held.length === 0) {
        const next = await this.#pull()
        if (next === undefined) throw cutOff(this.offset)
        this.#held = next
      }
      const piece = this.#held.subarray(0, left)
      this.#held = this.#held.subarray(piece.length)
      this.offset += piece.length
      left -= piece.length
      yield piece
    }
  }

  /** Tells the source that no more will be taken. */
  async close(): Promise<void> {
    await this.#source.return?.()
  }

  async #pull(): Promise<Uint8Array | undefined> {
    if (this.#signal.aborted) throw cancelled()
    const next = await this.#source.next()
    return next.done === true ? undefined : next.value
  }
}

function isZlibError(cause: unknown): boolean {
  return (
    cause instanceof Error &&
    'code' in cause &&
    typeof cause.code === 'string' &&
    /^(ZSTD_|Z_|ERR_ZSTD|ERR_BUFFER)/.test(cause.code)
  )
}

function cutOff(offset: number): LayerError {
  const message = `zstd stream: it is cut off at byte ${offset}; fetch the layer again`
  return new LayerError('DATA_LOSS', message, { offset })
}

function bomb(limit: number): LayerError {
  const message = `zstd stream: it decodes to more than ${limit} bytes, the limit for a layer`
  return new LayerError('RESOURCE_EXHAUSTED', message, { limit })
}

function cancelled(): LayerError {
  return new LayerError('CANCELLED', 'decoding a zstd stream was cancelled')
}
