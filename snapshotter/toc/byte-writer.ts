/** Grows a byte array by whole numbers, strings and bytes; `ByteReader` reads them back in the same order. */
export class ByteWriter {
  #bytes: Buffer = Buffer.allocUnsafe(4096)
  #length = 0

  /** A whole number 0 to 2^53 − 1 as LEB128: seven bits a byte, low ones first. */
  uint(value: number): void {
    this.#room(8)
    let rest = value
    // Numbers above 2^31 do not survive bitwise operators.
    while (rest >= 0x80) {
      this.#bytes[this.#length++] = (rest % 0x80) + 0x80
      rest = Math.floor(rest / 0x80)
    }
    this.#bytes[this.#length++] = rest
  }

  /** A whole number within ±2^52, zigzag: 0, −1, 1, −2 … become 0, 1, 2, 3 …. */
  int(value: number): void {
    this.uint(value < 0 ? -2 * value - 1 : 2 * value)
  }

  /** A latin1 string: its length, then one byte a char. */
  latin1(value: string): void {
    this.uint(value.length)
    this.#room(value.length)
    this.#length += this.#bytes.write(value, this.#length, 'latin1')
  }

  /** Bytes: how many, then they themselves. */
  bytes(value: Uint8Array): void {
    this.uint(value.length)
    this.raw(value)
  }

  /** Bytes without their number. */
  raw(value: Uint8Array): void {
    this.#room(value.length)
    this.#bytes.set(value, this.#length)
    this.#length += value.length
  }

  /** What was written so far. */
  written(): Uint8Array {
    return this.#bytes.subarray(0, this.#length)
  }

  #room(bytes: number): void {
    if (this.#length + bytes <= this.#bytes.length) return
    const larger = Buffer.allocUnsafe(Math.max(2 * this.#bytes.length, this.#length + bytes))
    this.#bytes.copy(larger, 0, 0, this.#length)
    this.#bytes = larger
  }
}
