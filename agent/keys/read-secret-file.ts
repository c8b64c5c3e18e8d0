import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { KeyError } from '../../snapshotter/encryption/key-file.ts'

/** Bits of a mode that let others than the owner read, write or execute (inode(7)). */
const OTHERS = 0o077

/**
 * The bytes of a file that only its owner may read. Rejects with KeyError: PERMISSION_DENIED if
 * others may read it, RESOURCE_EXHAUSTED beyond `bytesMax`, INVALID_ARGUMENT if it is no file; and as the file system does.
 */
export async function readSecretFile(path: string, bytesMax: number): Promise<Uint8Array> {
  // Without O_NONBLOCK the opening of a pipe would wait for whoever writes to it.
  await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  const found = await file.stat()
  if (!found.isFile()) throw new KeyError('INVALID_ARGUMENT', `${path} is not a file`)
  if ((found.mode & OTHERS) !== 0) {
    const octal = (found.mode & 0o777).toString(8)
    throw new KeyError(
      'PERMISSION_DENIED',
      `${path} holds a secret and has mode ${octal}, so others than its owner may read it: run chmod 600 ${path}`,
    )
  }
  const buffer = Buffer.alloc(bytesMax + 1)
  let size = 0
  while (size < buffer.length) {
    const { bytesRead } = await file.read(buffer, size, buffer.length - size)
    if (bytesRead === 0) break
    size += bytesRead
  }
  if (size > bytesMax) {
    throw new KeyError('RESOURCE_EXHAUSTED', `${path} has more than ${bytesMax} bytes`)
  }
  return buffer.subarray(0, size)
}
