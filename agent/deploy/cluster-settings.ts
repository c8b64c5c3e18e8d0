import type { DeployConfig } from './deploy-config.ts'

/** What the objects of a pod depend on beside the pod: how its cluster routes, stores, and keeps pods apart. */
export type ClusterSettings = Pick<
  DeployConfig,
  | 'routes'
  | 'keda'
  | 'scaleDown'
  | 'namespace'
  | 'storageClass'
  | 'sharedStorageClass'
  | 'ingressNamespaces'
  | 'clusterCidrs'
  | 'userNamespaces'
>
