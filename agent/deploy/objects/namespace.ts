import type { V1Namespace } from '@kubernetes/client-node'
import type { PodIdentity, PodSpec } from '../pod-spec.ts'
import { labelsOf } from './object-names.ts'

/** Kubernetes itself refuses what could reach its node from in there, whoever asks. */
const POD_SECURITY = Object.fromEntries(
  ['enforce', 'audit', 'warn'].flatMap((mode) => [
    [`pod-security.kubernetes.io/${mode}`, 'restricted'],
    [`pod-security.kubernetes.io/${mode}-version`, 'latest'],
  ]),
)

export function podNamespace({ name }: PodSpec, identity: PodIdentity): V1Namespace {
  const { publisher, podId, namespace } = identity
  return {
    apiVersion: 'v1',
    kind: 'Namespace',
    metadata: {
      name: namespace,
      labels: {
        ...labelsOf(identity),
        ...POD_SECURITY,
        'coop.comrade/trusted-pods-namespace': 'true',
        // A label too, so that a publisher's pods can be listed; a pod ID is too long for one.
        'ipdr.dev/publisher': publisher,
      },
      annotations: {
        'ipdr.dev/publisher': publisher,
        'ipdr.dev/pod-id': podId,
        'ipdr.dev/name': name,
      },
    },
  }
}
