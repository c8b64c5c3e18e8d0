/**
 * CRC-64 with the ISO 3309 polynomial, as tar-split uses it (Go's hash/crc64, `crc64.ISO`): x^64 + x^4 + x^3 + x + 1, reflected.
 */
export class Crc64 {
  /** High halves of the table; the low ones are all 0, since the polynomial's bits reach no lower in eight steps. */
  readonly #table = Uint32Array.from({ length: 256 }, (_, byte) => {
    let high = 0
    let low = byte
    for (let bit = 0; bit < 8; bit++) {
      const odd = low & 1
      low = (low >>> 1) | (high << 31)
      high = (high >>> 1) ^ (odd === 0 ? 0 : 0xd8000000)
    }
    return high
  })
  #high = -1
  #low = -1

  update(bytes: Uint8Array): void {
    const table = this.#table
    let high = this.#high
    let low = this.#low
    // By index: for-of over a Buffer is three times slower.
    for (let at = 0; at < bytes.length; at++) {
      const entry = table[(low ^ (bytes[at] ?? 0)) & 0xff] ?? 0
      low = (low >>> 8) | (high << 24)
      high = (high >>> 8) ^ entry
    }
    this.#high = high
    this.#low = low
  }

  /** The sum of all bytes since the last call, big-endian, 8 bytes; starts anew. */
  digest(): Buffer {
    const sum = Buffer.alloc(8)
    sum.writeInt32BE(~this.#high)
    sum.writeInt32BE(~this.#low, 4)
    this.#high = -1
    this.#low = -1
    return sum
  }
}
