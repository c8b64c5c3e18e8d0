import { X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import type { Log } from '../../../snapshotter/log.ts'
import { readClusterTls } from '../../cluster/cluster-tls.ts'
import type { Config } from '../../config.ts'
import { KeyDirectory } from '../../keys/key-directory.ts'
import { readKeyProviderConfig } from '../../keys/key-provider-config.ts'
import { DockerAuths } from '../../registries/docker-auths.ts'
import { readPolicies } from '../../trust/read-policies.ts'
import { type Check, type Finding, failure, notChecked, ok, warning } from './finding.ts'

/** How long before its end a certificate is told of, in ms. 30 days: a month's round of maintenance. */
const EXPIRES_SOON_MS = 30 * 24 * 3_600_000

const SILENT: Pick<Log, 'warn'> = { warn: () => undefined }

/** Files that the configuration names: keys, signers, certificates, credentials. */
export function secretChecks(config: Config): readonly Check[] {
  return [
    { name: 'private keys', look: (signal) => privateKeys(config, signal) },
    { name: 'key providers', look: () => keyProviders(config) },
    { name: 'trust policies', look: () => policies(config) },
    { name: 'cluster certificate', look: () => certificate(config) },
    { name: 'registry logins', look: () => dockerConfigs(config) },
  ]
}

async function privateKeys({ decryption }: Config, signal: AbortSignal): Promise<Finding> {
  const { keysDir } = decryption
  if (keysDir === undefined) return notChecked('the configuration has no decryption.keysDir')
  const { keys, problems } = await new KeyDirectory(keysDir, { log: SILENT }).keys(signal)
  if (problems.length > 0) {
    return failure(
      problems.map(({ message }) => message).join('; '),
      'Images encrypted for these keys cannot be opened until that is mended; it needs no restart.',
    )
  }
  return ok(`${keysDir} has ${keys.length} keys for every pod`)
}

async function keyProviders({ decryption }: Config): Promise<Finding> {
  const path = decryption.keyProviders
  if (path === undefined) return notChecked('the configuration has no decryption.keyProviders')
  const places = await readKeyProviderConfig(path)
  return ok(`${path} names ${[...places.keys()].join(', ') || 'none'}`)
}

async function policies({ trust }: Config): Promise<Finding> {
  if (trust.policies.length === 0) {
    return notChecked('the configuration has no trust.policies: whatever image is named may run')
  }
  await readPolicies(trust)
  return ok(`${trust.policies.map(({ name }) => name).join(', ')}: their keys can be read`)
}

async function certificate({ cluster }: Config): Promise<Finding> {
  if (cluster.tls === undefined) return notChecked('the configuration has no cluster.tls')
  const { certFile } = cluster.tls
  const { cert } = await readClusterTls(cluster.tls)
  const ends = new X509Certificate(cert).validToDate
  const leftMs = ends.getTime() - Date.now()
  const day = ends.toISOString().slice(0, 10)
  if (leftMs <= 0) {
    return failure(`${certFile} has expired on ${day}`, 'Renew it, and restart the agent.')
  }
  if (leftMs < EXPIRES_SOON_MS) {
    return warning(`${certFile} expires on ${day}`, 'Renew it, and restart the agent.')
  }
  return ok(`${certFile} is good until ${day}`)
}

async function dockerConfigs({ registries }: Config): Promise<Finding> {
  const paths = registries.credentials.dockerConfigs
  if (paths.length === 0) {
    return notChecked('the configuration has no registries.credentials.dockerConfigs')
  }
  for (const path of paths) DockerAuths.ofConfig(await readFile(path), `docker config ${path}`)
  return ok(`${paths.join(', ')} can be read`)
}
