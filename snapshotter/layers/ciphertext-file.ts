import { open, rm } from 'node:fs/promises'

/**
 * The ciphertext of an encrypted layer that has not been checked whole: its HMAC goes over all of it in order, its bytes arrive in
 * the order in which they are read, and what they decrypt and decode to cannot be turned back. What is in it is a hint:
 * whoever reads it checks it, and fetches again what was lost. Nothing is kept once the file is gone.
 */
export class CiphertextFile {
  readonly #path: string

  constructor(path: string) {
    this.#path = path
  }

  /** Starts to keep what is given to `keep`. */
  async create(): Promise<void> {
    await using _file = await open(this.#path, 'a', 0o600)
  }

  /** Writes down bytes that start at `offset` of the blob. Returns at once: nobody waits for it, and nobody misses them. */
  keep(offset: number, bytes: Uint8Array): void {
    void this.#write(offset, bytes).catch(() => undefined)
  }

  /** As many bytes from `offset` on as were written; what lies between them is zeros. */
  async read(offset: number, length: number): Promise<Uint8Array> {
    try {
      await using file = await open(this.#path, 'r')
      const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, offset)
      return buffer.subarray(0, bytesRead)
    } catch {
      return new Uint8Array()
    }
  }

  async remove(): Promise<void> {
    await rm(this.#path, { force: true })
  }

  async #write(offset: number, bytes: Uint8Array): Promise<void> {
    // Without O_CREAT: after `remove` it stays away.
    await using file = await open(this.#path, 'r+')
    await file.write(bytes, 0, bytes.length, offset)
  }
}
