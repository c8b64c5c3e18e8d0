import { randomUUID } from 'node:crypto'
import { link, mkdir, open, readFile, rm, stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { generateKeyPair, privateKeyFromProtobuf, privateKeyToProtobuf } from '@libp2p/crypto/keys'
import type { PrivateKey } from '@libp2p/interface'
import { CodedError } from '../../snapshotter/errors.ts'

/**
 * The node's private key, by which peers know it: read from `path`, or made and kept there (libp2p's protobuf form, mode 0600).
 * Rejects with CodedError FAILED_PRECONDITION if others may read the file or it holds no key.
 */
export async function readOrCreateNodeKey(path: string): Promise<PrivateKey> {
  const existing = await readNodeKey(path)
  if (existing !== undefined) return existing
  const key = await generateKeyPair('Ed25519')
  await mkdir(dirname(path), { recursive: true, mode: 0o700 })
  const written = `${path}.${randomUUID()}`
  try {
    const file = await open(written, 'wx', 0o600)
    try {
      await file.writeFile(privateKeyToProtobuf(key))
      await file.sync()
    } finally {
      await file.close()
    }
    // A link, not a rename: two processes that start at once must end up with one key.
    await link(written, path).catch((error: unknown) => {
      if (!hasCode(error, 'EEXIST')) throw error
    })
  } finally {
    await rm(written, { force: true })
  }
  return (await readNodeKey(path)) ?? key
}

async function readNodeKey(path: string): Promise<PrivateKey | undefined> {
  try {
    const { mode } = await stat(path)
    if ((mode & 0o077) !== 0) {
      const octal = (mode & 0o777).toString(8)
      throw new CodedError(
        'FAILED_PRECONDITION',
        `${path} holds the node's private key and has mode ${octal}; run chmod 600 ${path}`,
        { path },
      )
    }
    return privateKeyFromProtobuf(await readFile(path))
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined
    if (error instanceof CodedError) throw error
    throw new CodedError(
      'FAILED_PRECONDITION',
      `${path} does not hold a private key of libp2p; put the right one back, or remove it to become a new node`,
      { path },
      error,
    )
  }
}

function hasCode(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code
}
