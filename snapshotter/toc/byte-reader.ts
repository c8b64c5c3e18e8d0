import { LayerError } from '../errors.ts'

/** Reads what `ByteWriter` wrote. Every call throws LayerError DATA_LOSS when the bytes end early or make no sense. */
export class ByteReader {
  readonly #bytes: Buffer
  readonly #subject: string
  #at = 0

  /** `subject` names the bytes in errors: 'layer index'. */
  constructor(bytes: Uint8Array, subject: string) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.#subject = subject
  }

  /** Bytes not read yet. */
  get left(): number {
    return this.#bytes.length - this.#at
  }

  uint(): number {
    let value = 0
    let scale = 1
    for (let index = 0; index < 8; index++) {
      const byte = this.#bytes[this.#at++]
      if (byte === undefined) throw this.broken('it ends early')
      value += (byte & 0x7f) * scale
      if (byte < 0x80) {
        if (Number.isSafeInteger(value)) return value
        break
      }
      scale *= 0x80
    }
    throw this.broken('a number in it is beyond 2^53')
  }

  int(): number {
    const value = this.uint()
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2
  }

  latin1(): string {
    const length = this.uint()
    return this.#slice(length).toString('latin1')
  }

  /** A view of the bytes, not a copy. */
  bytes(): Uint8Array {
    return this.#slice(this.uint())
  }

  raw(length: number): Uint8Array {
    return this.#slice(length)
  }

  /** A count of things that take at least `bytesEach` bytes each, so that no lie makes us allocate for it. */
  count(max: number, bytesEach: number): number {
    const count = this.uint()
    if (count > max) throw this.broken(`it counts ${count} of something, the limit is ${max}`)
    if (count * bytesEach > this.left) throw this.broken(`it counts ${count} and ends before`)
    return count
  }

  /** Throws unless all bytes are read. */
  end(): void {
    if (this.left > 0) throw this.broken(`${this.left} bytes are left over`)
  }

  broken(what: string): LayerError {
    const message = `${this.#subject}, byte ${this.#at}: ${what}`
    return new LayerError('DATA_LOSS', message, { offset: this.#at })
  }

  #slice(length: number): Buffer {
    if (length > this.left) throw this.broken('it ends early')
    this.#at += length
    return this.#bytes.subarray(this.#at - length, this.#at)
  }
}
