import { KeyError } from '../../snapshotter/encryption/key-file.ts'
import { openShortFile, readShortFile } from './read-short-file.ts'

/** Bits of a mode that let others than the owner read, write or execute (inode(7)). */
const OTHERS = 0o077

/**
 * The bytes of a file that only its owner may read. Rejects with KeyError: PERMISSION_DENIED if others may read it,
 * RESOURCE_EXHAUSTED beyond `bytesMax`, INVALID_ARGUMENT if it is no file; and as the file system does.
 */
export async function readSecretFile(path: string, bytesMax: number): Promise<Uint8Array> {
  await using file = await openShortFile(path)
  const { mode } = await file.stat()
  if ((mode & OTHERS) === 0) return await readShortFile(file, path, bytesMax)
  throw new KeyError(
    'PERMISSION_DENIED',
    `${path} holds a secret and has mode ${(mode & 0o777).toString(8)}, so others than its owner may read it: run chmod 600 ${path}`,
  )
}
