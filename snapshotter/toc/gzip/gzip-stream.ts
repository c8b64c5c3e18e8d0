import { crc32 } from 'node:zlib'
import { LayerError } from '../../errors.ts'
import { Inflater } from './inflate.ts'
import { memberHeader } from './member-header.ts'

/** A place in a gzip blob where decoding can be taken up again. */
export type GzipCheckpoint = {
  /** Bits of the blob before it. A multiple of 8 at the start of a member. */
  readonly bitOffset: number
  /** Bytes of output before it; all of them have been yielded. */
  readonly outputOffset: number
  /**
   * Inside a member: the output before it that later bytes may refer to, at most 32 KiB, valid during the call only.
   * Undefined at the start of a member, which refers to nothing.
   */
  readonly window: Uint8Array | undefined
}

export type GzipStreamOptions = {
  /** Bytes of output after which the blob is refused: the bound on a decompression bomb. */
  readonly outputBytesMax: number
  /** Told of each start of a member and of each start of a block, ascending. */
  readonly onCheckpoint: (checkpoint: GzipCheckpoint) => void
}

/** What is known once all of a gzip blob has been read. */
export type GzipEnd = {
  readonly blobSize: number
  /** Where the last member ends; zeros may follow it. */
  readonly dataEnd: number
  readonly outputSize: number
}

/** CRC-32 and size (RFC 1952, section 2.3.1). */
const TRAILER_BYTES = 8

type Phase = 'between members' | 'header' | 'body' | 'trailer' | 'padding'

/**
 * Decodes a gzip blob (RFC 1952) as it arrives and tells where decoding could be taken up again. The blob may have many
 * members, as pigz and eStargz write them, and zeros after the last one, as tape blocks leave them; all else is refused.
 */
export class GzipStream {
  readonly #outputBytesMax: number
  readonly #onCheckpoint: GzipStreamOptions['onCheckpoint']
  readonly #inflater: Inflater

  #phase: Phase = 'between members'
  #blobOffset = 0

  // Of the member that is being read, or of the last one.
  #memberStart = 0
  #header: Generator<undefined, void, number> | undefined
  #outputStart = 0
  #crc = 0
  readonly #trailer = new DataView(new ArrayBuffer(TRAILER_BYTES))
  #trailerBytes = 0
  #dataEnd = 0

  constructor({ outputBytesMax, onCheckpoint }: GzipStreamOptions) {
    this.#outputBytesMax = outputBytesMax
    this.#onCheckpoint = onCheckpoint
    this.#inflater = new Inflater({ onBlockStart: onCheckpoint })
  }

  /**
   * Decodes the next `chunk` of the blob and yields its output; each view is valid until the next step. Run it to its end.
   * Throws LayerError: DATA_LOSS with the place where the blob is not gzip, RESOURCE_EXHAUSTED if its output is too long.
   */
  *push(chunk: Uint8Array): Generator<Uint8Array, void> {
    let at = 0
    while (at < chunk.length) {
      if (this.#phase === 'body') {
        const taken = yield* this.#decode(chunk.subarray(at))
        this.#blobOffset += taken
        at += taken
      } else {
        this.#takeByte(chunk[at]!)
        this.#blobOffset++
        at++
      }
    }
  }

  /** Throws LayerError DATA_LOSS unless the blob ended with a whole member. */
  finish(): GzipEnd {
    const isWhole = this.#phase === 'padding' || this.#phase === 'between members'
    if (!isWhole || this.#dataEnd === 0) {
      throw new LayerError(
        'DATA_LOSS',
        `gzip blob is cut short: it ends after ${this.#blobOffset} bytes, in the ${this.#phase} of the member at byte ${this.#memberStart}`,
        { blobSize: this.#blobOffset, memberStart: this.#memberStart },
      )
    }
    return {
      blobSize: this.#blobOffset,
      dataEnd: this.#dataEnd,
      outputSize: this.#inflater.outputOffset,
    }
  }

  *#decode(bytes: Uint8Array): Generator<Uint8Array, number> {
    const steps = this.#inflater.push(bytes)
    for (;;) {
      const step = steps.next()
      if (step.done === true) {
        if (this.#inflater.isDone) this.#phase = 'trailer'
        return step.value
      }
      const output = step.value
      this.#crc = crc32(output, this.#crc)
      if (this.#inflater.outputOffset > this.#outputBytesMax) {
        throw new LayerError(
          'RESOURCE_EXHAUSTED',
          `gzip blob decompresses to more than the ${this.#outputBytesMax} bytes allowed, at byte ${this.#blobOffset} of it`,
          { outputBytesMax: this.#outputBytesMax, blobOffset: this.#blobOffset },
        )
      }
      yield output
    }
  }

  #takeByte(byte: number): void {
    if (this.#phase === 'between members') {
      if (byte === 0 && this.#dataEnd > 0) this.#phase = 'padding'
      else this.#startMember()
    }
    if (this.#phase === 'header') {
      if (this.#header?.next(byte).done === true) {
        this.#inflater.restart(this.#blobOffset + 1)
        this.#phase = 'body'
      }
    } else if (this.#phase === 'trailer') {
      this.#trailer.setUint8(this.#trailerBytes++, byte)
      if (this.#trailerBytes === TRAILER_BYTES) this.#endMember()
    } else if (byte !== 0) {
      throw this.#wrong(
        `byte ${this.#blobOffset} follows the last member and its padding, but is not zero`,
      )
    }
  }

  #startMember(): void {
    this.#memberStart = this.#blobOffset
    this.#outputStart = this.#inflater.outputOffset
    this.#onCheckpoint({
      bitOffset: this.#blobOffset * 8,
      outputOffset: this.#inflater.outputOffset,
      window: undefined,
    })
    this.#header = memberHeader(this.#memberStart)
    this.#header.next()
    this.#crc = 0
    this.#trailerBytes = 0
    this.#phase = 'header'
  }

  #endMember(): void {
    const size = (this.#inflater.outputOffset - this.#outputStart) % 2 ** 32
    if (this.#trailer.getUint32(0, true) !== this.#crc) throw this.#wrong('its CRC-32 differs')
    if (this.#trailer.getUint32(4, true) !== size) {
      throw this.#wrong(`it says ${this.#trailer.getUint32(4, true)} bytes and has ${size}`)
    }
    this.#dataEnd = this.#blobOffset + 1
    this.#phase = 'between members'
  }

  #wrong(what: string): LayerError {
    return new LayerError(
      'DATA_LOSS',
      `gzip member at byte ${this.#memberStart} of the blob is corrupt: ${what}`,
      { memberStart: this.#memberStart },
    )
  }
}
