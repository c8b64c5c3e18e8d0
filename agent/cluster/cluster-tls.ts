import { readFile } from 'node:fs/promises'
import type { buildConnector } from 'undici'
import { KEY_FILE_BYTES_MAX } from '../../snapshotter/encryption/key-file.ts'
import { type Config, ConfigError } from '../config.ts'
import { readSecretFile } from '../keys/read-secret-file.ts'

/** A certificate of this node, its key, and the authority that signed those of all nodes; in PEM. */
export type ClusterTls = {
  readonly cert: Uint8Array
  readonly key: Uint8Array
  readonly ca: Uint8Array
}

/** Reads the files. Rejects with ConfigError, and as `readSecretFile`. */
export async function readClusterTls(
  files: NonNullable<Config['cluster']['tls']>,
): Promise<ClusterTls> {
  const read = async (field: string, path: string): Promise<Uint8Array> => {
    try {
      return await (field === 'keyFile' ? readSecretFile(path, KEY_FILE_BYTES_MAX) : readFile(path))
    } catch (error) {
      const isMissing = error instanceof Error && 'code' in error && error.code === 'ENOENT'
      if (!isMissing) throw error
      throw new ConfigError('NOT_FOUND', `cluster.tls.${field}: there is no file ${path}`, { path })
    }
  }
  const [cert, key, ca] = await Promise.all([
    read('certFile', files.certFile),
    read('keyFile', files.keyFile),
    read('caFile', files.caFile),
  ])
  return { cert, key, ca }
}

/** How to connect to another node, as one that it knows, within so many ms. */
export function connectOptions(
  { cert, key, ca }: ClusterTls,
  timeout: number,
): buildConnector.BuildOptions {
  return {
    cert: Buffer.from(cert),
    key: Buffer.from(key),
    ca: Buffer.from(ca),
    timeout,
    // Whoever the cluster's own authority signed is a peer; nodes come and go, and are named by their addresses.
    checkServerIdentity: () => undefined,
  }
}
