import type { KubernetesObject } from '@kubernetes/client-node'
import { CodedError } from '../../snapshotter/errors.ts'

/** What the cluster's API says no to, or that it cannot be asked: UNAVAILABLE, which may be tried again, and all else, which may not. */
export class ClusterError extends CodedError {}

/** A kind of object, as its first two lines name it. */
export type Kind = { readonly apiVersion: string; readonly kind: string }

/** One object. */
export type Ref = Kind & {
  readonly metadata: { readonly name: string; readonly namespace?: string }
}

export type LogOptions = {
  readonly container: string
  readonly follow: boolean
  readonly previous: boolean
  /** Undefined: all that are kept. */
  readonly tailLines?: number | undefined
  readonly sinceSeconds?: number | undefined
}

/** A Deployment as it was when it was read. */
export type DeploymentVersion = {
  readonly namespace: string
  readonly name: string
  readonly resourceVersion: string
}

/** Whose a token of a replica is. */
export type ReplicaToken = {
  readonly namespace: string
  /** The service account's name. */
  readonly account: string
  /** The replica's name. */
  readonly pod: string
}

/** What the deploy endpoint needs of Kubernetes. Everything rejects with ClusterError. */
export type Cluster = {
  /** Has the object's fields be what is given, as the one owner of them (server-side apply). */
  apply<T extends KubernetesObject>(object: T): Promise<T>
  /** Undefined: it is there already. */
  create<T extends KubernetesObject>(object: T): Promise<T | undefined>
  /** Undefined: somebody has changed or deleted it since its `resourceVersion`. */
  replace<T extends KubernetesObject>(object: T): Promise<T | undefined>
  /** Undefined: it is not there. */
  read<T extends KubernetesObject>(ref: Ref): Promise<T | undefined>
  /** Kinds that the cluster does not have have no objects. */
  list<T extends KubernetesObject>(
    kind: Kind,
    where: { readonly namespace?: string; readonly labels?: Readonly<Record<string, string>> },
  ): Promise<T[]>
  /** Begins to delete it, with what belongs to it; finalizers take their time. False: it is not there, or is another one than `uid`. */
  delete(ref: Ref, uid?: string): Promise<boolean>
  /**
   * Has a Deployment keep so many replicas until somebody else scales it. `apply` owns nothing of that: applied without a number of replicas, it
   * keeps as many. False: somebody has changed or deleted it since.
   */
  scale(deployment: DeploymentVersion, replicas: number): Promise<boolean>
  /** Undefined: it is not good for `audience`, or is not of a service account in a pod that is there. */
  reviewToken(token: string, audience: string): Promise<ReplicaToken | undefined>
  /** Lines of a container, each after its time in RFC 3339, as they come; until `signal` aborts, if they are followed. */
  logs(
    pod: { readonly namespace: string; readonly name: string },
    options: LogOptions,
    signal: AbortSignal,
  ): AsyncIterable<string>
}

/** On all that we make in the cluster, and what tells it from what others put beside it. */
export const OURS: Readonly<Record<string, string>> = {
  'app.kubernetes.io/managed-by': 'ipdr-agent',
}

export const NAMESPACE: Kind = { apiVersion: 'v1', kind: 'Namespace' }
export const SECRET: Kind = { apiVersion: 'v1', kind: 'Secret' }
export const POD: Kind = { apiVersion: 'v1', kind: 'Pod' }
export const SERVICE: Kind = { apiVersion: 'v1', kind: 'Service' }
export const EVENT: Kind = { apiVersion: 'v1', kind: 'Event' }
export const NODE: Kind = { apiVersion: 'v1', kind: 'Node' }
export const CONFIG_MAP: Kind = { apiVersion: 'v1', kind: 'ConfigMap' }
export const LEASE: Kind = { apiVersion: 'coordination.k8s.io/v1', kind: 'Lease' }
export const DEPLOYMENT: Kind = { apiVersion: 'apps/v1', kind: 'Deployment' }
export const STATEFUL_SET: Kind = { apiVersion: 'apps/v1', kind: 'StatefulSet' }
