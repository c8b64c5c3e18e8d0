import type { V1Secret, V1ServiceAccount } from '@kubernetes/client-node'
import type { PodIdentity, PodSpec } from '../pod-spec.ts'
import { ACCOUNT_NAME, LOGINS_NAME, metadataOf } from './object-names.ts'

/** The pod's logins as docker writes them; none where there are none. */
export function pullSecrets({ registryLogins }: PodSpec, identity: PodIdentity): V1Secret[] {
  if (registryLogins.length === 0) return []
  const auths = Object.fromEntries(
    registryLogins.map(({ server, username, password }) => [
      server,
      { username, password, auth: Buffer.from(`${username}:${password}`).toString('base64') },
    ]),
  )
  return [
    {
      apiVersion: 'v1',
      kind: 'Secret',
      metadata: metadataOf(identity, LOGINS_NAME),
      type: 'kubernetes.io/dockerconfigjson',
      data: {
        '.dockerconfigjson': Buffer.from(JSON.stringify({ auths })).toString('base64'),
      },
    },
  ]
}

/** May do nothing, and no token of it is to be had that the cluster's API takes. */
export function serviceAccount(
  { registryLogins }: PodSpec,
  identity: PodIdentity,
): V1ServiceAccount {
  return {
    apiVersion: 'v1',
    kind: 'ServiceAccount',
    metadata: metadataOf(identity, ACCOUNT_NAME),
    automountServiceAccountToken: false,
    ...(registryLogins.length > 0 && { imagePullSecrets: [{ name: LOGINS_NAME }] }),
  }
}
