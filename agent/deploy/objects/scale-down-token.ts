import { posix } from 'node:path'
import type { V1EnvVar, V1Volume, V1VolumeMount } from '@kubernetes/client-node'
import type { ClusterSettings } from '../cluster-settings.ts'
import type { ContainerSpec, PodSpec } from '../pod-spec.ts'
import { maySleep } from './request-scaling.ts'

/** Whom the token is for: nobody else takes it, the cluster's API least of all. */
export const SCALE_DOWN_AUDIENCE = 'ipdr-scale-down'

export const SCALE_DOWN_TOKEN_FILE = '/var/run/secrets/ipdr.dev/scale-down/token'

export const SCALE_DOWN_URL_VARIABLE = 'IPDR_SCALE_DOWN_URL'

/** 1 h: the kubelet renews it after 48 min, and one that leaked is of no use for long. Kubernetes gives none for less than 10 min. */
const TOKEN_SECONDS = 3_600

/** No publisher's volume has that name: they begin with tpod-scratch-, tpod-secret- and tpod-pvc-. */
const VOLUME_NAME = 'tpod-scale-down-token'

/** What is ours of a container's files; /var/run is a link to /run in most images. */
const RESERVED_DIRS = ['/var/run/secrets/ipdr.dev', '/run/secrets/ipdr.dev']

/** What is around it. */
const PARENT_DIRS = ['/var', '/var/run', '/var/run/secrets', '/run', '/run/secrets']

/** Whether replicas get a token by which they can ask to sleep. */
export function mayAskToSleep(spec: PodSpec, settings: ClusterSettings): boolean {
  return settings.scaleDown !== undefined && maySleep(spec, settings)
}

/** Whether something may not be mounted at `path`, since it is kept for ours. */
export function isReservedPath(path: string): boolean {
  const normal = `${posix.normalize(path)}/`
  return RESERVED_DIRS.some((dir) => normal.startsWith(`${dir}/`))
}

export function scaleDownVolumes(spec: PodSpec, settings: ClusterSettings): V1Volume[] {
  if (!mayAskToSleep(spec, settings)) return []
  const path = posix.basename(SCALE_DOWN_TOKEN_FILE)
  const serviceAccountToken = {
    audience: SCALE_DOWN_AUDIENCE,
    expirationSeconds: TOKEN_SECONDS,
    path,
  }
  return [{ name: VOLUME_NAME, projected: { sources: [{ serviceAccountToken }] } }]
}

/** What a container has of it; nothing where it could not be mounted. */
export function scaleDownAccess(
  spec: PodSpec,
  container: ContainerSpec,
  settings: ClusterSettings,
): { readonly env: readonly V1EnvVar[]; readonly mounts: readonly V1VolumeMount[] } {
  const { scaleDown } = settings
  const isCovered = coversOurs(spec, container)
  if (scaleDown === undefined || isCovered || !mayAskToSleep(spec, settings)) {
    return { env: [], mounts: [] }
  }
  const mountPath = posix.dirname(SCALE_DOWN_TOKEN_FILE)
  return {
    env: [{ name: SCALE_DOWN_URL_VARIABLE, value: scaleDown.url }],
    mounts: [{ name: VOLUME_NAME, mountPath, readOnly: true }],
  }
}

/** Below a file, or what cannot be written to, there is no place for another mount: the container would not start. */
function coversOurs({ volumes }: PodSpec, { mounts }: ContainerSpec): boolean {
  const files = new Set(volumes.filter(({ kind }) => kind === 'secret').map(({ name }) => name))
  return mounts.some(
    ({ path, readOnly, volume }) =>
      (readOnly || files.has(volume)) && PARENT_DIRS.includes(posix.normalize(path)),
  )
}
