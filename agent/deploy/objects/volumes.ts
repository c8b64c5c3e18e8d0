import { createHash } from 'node:crypto'
import type {
  V1PersistentVolumeClaim,
  V1PersistentVolumeClaimSpec,
  V1Secret,
  V1Volume,
  V1VolumeMount,
} from '@kubernetes/client-node'
import type { ClusterSettings } from '../cluster-settings.ts'
import type { ContainerSpec, MountSpec, PodIdentity, PodSpec, VolumeSpec } from '../pod-spec.ts'
import { claimName, labelsOf, metadataOf, secretName } from './object-names.ts'

/** The one key of a secret. */
const SECRET_KEY = 'data'

type Disk = Extract<VolumeSpec, { kind: 'disk' }>

export function secrets({ volumes }: PodSpec, identity: PodIdentity): V1Secret[] {
  return volumes
    .filter((volume) => volume.kind === 'secret')
    .map(({ name, contents }) => ({
      apiVersion: 'v1',
      kind: 'Secret',
      metadata: metadataOf(identity, secretName(name)),
      type: 'Opaque',
      data: { [SECRET_KEY]: Buffer.from(contents).toString('base64') },
    }))
}

/**
 * Changes with the contents of any secret; undefined where there are none. More people may read it than secrets: the same ones in two pods
 * do not look the same.
 */
export function secretsDigest(
  { volumes }: PodSpec,
  { namespace }: PodIdentity,
): string | undefined {
  const found = volumes
    .filter((volume) => volume.kind === 'secret')
    .toSorted((a, b) => (a.name < b.name ? -1 : 1))
  if (found.length === 0) return undefined
  const hash = createHash('sha256').update(namespace)
  for (const { name, contents } of found) {
    hash.update(`\0${name}\0${contents.length}\0`).update(contents)
  }
  return hash.digest('hex')
}

/** Disks that are there once, whatever number of replicas there is. */
export function claims(
  spec: PodSpec,
  identity: PodIdentity,
  settings: ClusterSettings,
): V1PersistentVolumeClaim[] {
  return disksOf(spec)
    .filter((disk) => !isPerReplica(spec, disk))
    .map((disk) => ({
      apiVersion: 'v1',
      kind: 'PersistentVolumeClaim',
      metadata: metadataOf(identity, claimName(disk.name)),
      spec: claimSpec(disk, settings),
    }))
}

/** Disks that each replica of a stateful pod has for itself. */
export function claimTemplates(
  spec: PodSpec,
  identity: PodIdentity,
  settings: ClusterSettings,
): V1PersistentVolumeClaim[] {
  return disksOf(spec)
    .filter((disk) => isPerReplica(spec, disk))
    .map((disk) => ({
      apiVersion: 'v1',
      kind: 'PersistentVolumeClaim',
      metadata: { name: claimName(disk.name), labels: labelsOf(identity) },
      spec: claimSpec(disk, settings),
    }))
}

/** Whether all replicas use a disk that one node can have at a time. */
export function sharesNodeDisk(spec: PodSpec): boolean {
  return !spec.isStateful && disksOf(spec).some(({ isShared }) => !isShared)
}

/** Those of a pod template; disks of replicas come by `claimTemplates`. */
export function podVolumes(spec: PodSpec): V1Volume[] {
  return spec.volumes.flatMap((volume): V1Volume[] => {
    const name = podVolumeName(volume)
    if (volume.kind === 'scratch') return [{ name, emptyDir: { sizeLimit: String(volume.bytes) } }]
    if (volume.kind === 'secret') return [{ name, secret: { secretName: name } }]
    return isPerReplica(spec, volume) ? [] : [{ name, persistentVolumeClaim: { claimName: name } }]
  })
}

export function volumeMounts({ volumes }: PodSpec, { mounts }: ContainerSpec): V1VolumeMount[] {
  return mounts.map((mount) => {
    const volume = volumes.find(({ name }) => name === mount.volume)
    if (volume === undefined) throw new Error(`a pod was let in without volume ${mount.volume}`)
    return volumeMount(volume, mount)
  })
}

function volumeMount(volume: VolumeSpec, { path, readOnly }: MountSpec): V1VolumeMount {
  const isSecret = volume.kind === 'secret'
  return {
    name: podVolumeName(volume),
    mountPath: path,
    ...((readOnly || isSecret) && { readOnly: true }),
    // The path is the file's.
    ...(isSecret && { subPath: SECRET_KEY }),
  }
}

/** Volumes of different kinds may not have one name, and a StatefulSet calls the volume by the name of the claim. */
function podVolumeName({ kind, name }: VolumeSpec): string {
  if (kind === 'scratch') return `tpod-scratch-${name}`
  return kind === 'secret' ? secretName(name) : claimName(name)
}

function claimSpec(
  { bytes, isShared }: Disk,
  { storageClass, sharedStorageClass }: ClusterSettings,
): V1PersistentVolumeClaimSpec {
  const storageClassName = isShared ? sharedStorageClass : storageClass
  return {
    accessModes: [isShared ? 'ReadWriteMany' : 'ReadWriteOnce'],
    resources: { requests: { storage: String(bytes) } },
    ...(storageClassName !== undefined && { storageClassName }),
  }
}

function disksOf({ volumes }: PodSpec): Disk[] {
  return volumes.filter((volume) => volume.kind === 'disk')
}

function isPerReplica({ isStateful }: PodSpec, { isShared }: Disk): boolean {
  return isStateful && !isShared
}
