import type { V1Deployment, V1DeploymentStrategy, V1StatefulSet } from '@kubernetes/client-node'
import type { ClusterSettings } from '../cluster-settings.ts'
import type { PodIdentity, PodSpec } from '../pod-spec.ts'
import { labelsOf, REPLICA_LABELS, workloadRef } from './object-names.ts'
import { podTemplate } from './pod-template.ts'
import { replicasOf } from './request-scaling.ts'
import { claimTemplates, sharesNodeDisk } from './volumes.ts'

/** What has the cluster keep replicas of a pod. */
export function workload(
  spec: PodSpec,
  identity: PodIdentity,
  { settings, isNew }: { readonly settings: ClusterSettings; readonly isNew: boolean },
): V1Deployment | V1StatefulSet {
  const { apiVersion, kind, name } = workloadRef(spec, identity)
  const metadata = {
    name,
    namespace: identity.namespace,
    labels: { ...labelsOf(identity), ...containersLabel(spec) },
  }
  const replicas = replicasOf(spec, settings, isNew)
  const common = {
    ...(replicas !== undefined && { replicas }),
    selector: { matchLabels: REPLICA_LABELS },
    template: podTemplate(spec, identity, settings),
    // Whoever wants to go back deploys what was before.
    revisionHistoryLimit: 1,
  }
  if (kind === 'Deployment') {
    return { apiVersion, kind, metadata, spec: { ...common, strategy: strategyOf(spec) } }
  }
  const templates = claimTemplates(spec, identity, settings)
  return {
    apiVersion,
    kind,
    metadata,
    spec: {
      ...common,
      serviceName: name,
      podManagementPolicy: 'OrderedReady',
      updateStrategy: { type: 'RollingUpdate' },
      ...(templates.length > 0 && { volumeClaimTemplates: templates }),
    },
  }
}

function strategyOf(spec: PodSpec): V1DeploymentStrategy {
  // The new replica could come to another node, and wait there for the disk of the old one, which waits for the new one.
  if (sharesNodeDisk(spec)) return { type: 'Recreate' }
  return { type: 'RollingUpdate', rollingUpdate: { maxSurge: 1, maxUnavailable: 0 } }
}

/** By which Trusted Pods knows whose logs there are; it does without where they are too many for a label. */
function containersLabel({ containers }: PodSpec): { containers?: string } {
  const names = containers.map(({ name }) => name).join('_')
  return names.length <= 63 ? { containers: names } : {}
}
