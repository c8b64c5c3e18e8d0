import { createCipheriv } from 'node:crypto'

/** Bytes that no compressor makes shorter, the same for the same seed. */
export function incompressible(seed: number, bytes: number): Buffer {
  const key = Buffer.alloc(16)
  key.writeUInt32BE(seed)
  return createCipheriv('aes-128-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(bytes))
}
