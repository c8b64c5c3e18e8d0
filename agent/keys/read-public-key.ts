import type { KeyObject } from 'node:crypto'
import {
  KEY_FILE_BYTES_MAX,
  KeyError,
  parsePublicKey,
} from '../../snapshotter/encryption/key-file.ts'
import { openShortFile, readShortFile } from './read-short-file.ts'

/** The public key in a JWK or PEM file, of a private key its public half. Rejects with KeyError, NOT_FOUND if it cannot be read. */
export async function readPublicKey(path: string): Promise<KeyObject> {
  try {
    await using file = await openShortFile(path)
    return parsePublicKey(await readShortFile(file, path, KEY_FILE_BYTES_MAX), path)
  } catch (error) {
    if (error instanceof KeyError) throw error
    const why = error instanceof Error ? error.message : String(error)
    throw new KeyError('NOT_FOUND', `the public key ${path} cannot be read: ${why}`, {}, error)
  }
}
