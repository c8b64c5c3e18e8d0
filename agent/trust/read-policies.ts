import { readFile } from 'node:fs/promises'
import { parseVerificationKey, type Signer, type TrustPolicy } from '../../snapshotter/trust.ts'
import { type Config, ConfigError } from '../config.ts'

/**
 * The policies of a configuration, with the keys that it names. Rejects with ConfigError or KeyError if one cannot be used: a node
 * with half of a policy must not start.
 */
export async function readPolicies({ policies }: Config['trust']): Promise<TrustPolicy[]> {
  return Promise.all(
    policies.map(async ({ keys, ...policy }) => ({
      ...policy,
      signers: distinct(policy.name, await Promise.all(keys.map(readSigner))),
    })),
  )
}

async function readSigner(path: string): Promise<Signer> {
  let bytes: Uint8Array
  try {
    bytes = await readFile(path)
  } catch (error) {
    throw new ConfigError(
      'NOT_FOUND',
      `cannot read the public key ${path} of a policy`,
      { path },
      error,
    )
  }
  return { name: path, key: parseVerificationKey(bytes, path) }
}

/** Two files with one key would let one signer count as two. */
function distinct(policy: string, signers: readonly Signer[]): readonly Signer[] {
  for (const [index, { name, key }] of signers.entries()) {
    const twin = signers.slice(0, index).find((other) => other.key.equals(key))
    if (twin === undefined) continue
    throw new ConfigError(
      'INVALID_ARGUMENT',
      `policy '${policy}': ${twin.name} and ${name} hold the same key`,
    )
  }
  return signers
}
