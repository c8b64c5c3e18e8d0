import { createHash } from 'node:crypto'
import zlib from 'node:zlib'

/** A piece of the stream that is compressed at once, in bytes. 1 MiB: bounds memory, costs nothing in ratio. */
const BATCH_BYTES = 1024 * 1024

/** Raw tar bytes in one record, in bytes. 1 MiB, as Base64 in one line of JSON. */
const SEGMENT_BYTES_MAX = 1024 * 1024

/** tar-split compressed, its digest, and its length uncompressed. */
export type TarSplit = {
  readonly compressed: Uint8Array
  readonly digest: string
  readonly uncompressedBytes: number
}

/**
 * Writes tar-split (github.com/vbatts/tar-split): one JSON object a line, with all of a tar but its contents, so that
 * containers/storage can make the tar again, to the byte, from the files it fetched. Record types: 1 is a file (name, size and
 * CRC-64 of its content), 2 a segment of raw bytes.
 * containers/storage wants one segment for all headers of a file, the padding of the file before it at its start.
 */
export class TarSplitWriter {
  #lines: string[] = []
  #lineBytes = 0
  #position = 0
  #uncompressedBytes = 0
  readonly #compressed: Uint8Array[] = []

  /** The bytes between the content before and that of `name`; and the content, of which only length and sum are kept. */
  file(segment: Uint8Array, name: string, size: number, crc64: Uint8Array | undefined): void {
    this.#record(`{"type":2,"payload":"${base64(segment)}","position":${this.#position}}`)
    const sized = size > 0 ? `"size":${size},` : ''
    const payload = crc64 === undefined ? 'null' : `"${base64(crc64)}"`
    const named = `"type":1,"name":${JSON.stringify(name)},${sized}"payload":${payload}`
    this.#record(`{${named},"position":${this.#position}}`)
  }

  /** What follows the last content. */
  trailer(segment: Uint8Array): void {
    for (let start = 0; start === 0 || start < segment.length; start += SEGMENT_BYTES_MAX) {
      const part = segment.subarray(start, start + SEGMENT_BYTES_MAX)
      this.#record(`{"type":2,"payload":"${base64(part)}","position":${this.#position}}`)
    }
  }

  finish(): TarSplit {
    this.#compress()
    const compressed = Buffer.concat(this.#compressed)
    const digest = `sha256:${createHash('sha256').update(compressed).digest('hex')}`
    return { compressed, digest, uncompressedBytes: this.#uncompressedBytes }
  }

  #record(line: string): void {
    this.#lines.push(line)
    this.#lineBytes += line.length
    this.#position++
    if (this.#lineBytes >= BATCH_BYTES) this.#compress()
  }

  #compress(): void {
    const batch = Buffer.from(this.#lines.map((line) => `${line}\n`).join(''))
    this.#lines = []
    this.#lineBytes = 0
    this.#uncompressedBytes += batch.length
    if (batch.length > 0) this.#compressed.push(zlib.zstdCompressSync(batch))
  }
}

function base64(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('base64')
}
