import type { V1Container, V1PodSpec } from '@kubernetes/client-node'
import type { ContainerConfig } from '../../proto/types/runtime/v1/ContainerConfig.ts'
import type { Mount } from '../../proto/types/runtime/v1/Mount.ts'
import type { PodSandboxConfig } from '../../proto/types/runtime/v1/PodSandboxConfig.ts'

type PodPlace = {
  readonly namespace: string
  readonly name: string
  readonly uid: string
}

/** What a kubelet asks CRI for, for a pod of this specification, as far as ours use it (kubelet's kuberuntime, in its v1.32). */
export function podAsCri(spec: V1PodSpec, place: PodPlace): PodSandboxConfig {
  const isPrivileged = spec.containers.some(({ securityContext }) => securityContext?.privileged)
  return {
    metadata: { ...place, attempt: 0 },
    linux: {
      securityContext: { privileged: isPrivileged, namespaceOptions: namespacesOf(spec) },
    },
  }
}

/**
 * The same for one of its containers. Volumes that are no host paths lie in the folders that `folders` names. `NODE_NAME` and other
 * fields are `fields`. Throws if the container has what is not translated, so that nothing is left out unnoticed.
 */
export function containerAsCri(
  spec: V1PodSpec,
  container: V1Container,
  given: {
    readonly image: string
    readonly folders: Readonly<Record<string, string>>
    readonly fields?: Readonly<Record<string, string>>
  },
): ContainerConfig {
  const { securityContext = {}, volumeMounts = [], env = [], name } = container
  const { command = [], args = [] } = container
  const { capabilities, privileged = false, readOnlyRootFilesystem = false } = securityContext
  const fieldOf = (path = ''): string => given.fields?.[path] ?? ''
  const values = env.map(({ name, valueFrom }) => ({
    name,
    value: fieldOf(valueFrom?.fieldRef?.fieldPath),
  }))
  const mounts = volumeMounts.map((mount): Mount => {
    if (mount.subPath !== undefined) throw new Error(`${name}: subPath is not translated`)
    const volume = spec.volumes?.find(({ name }) => name === mount.name)
    const hostPath = volume?.hostPath?.path ?? given.folders[mount.name]
    if (hostPath === undefined) throw new Error(`${name}: there is no volume ${mount.name}`)
    return {
      hostPath,
      containerPath: mount.mountPath,
      readonly: mount.readOnly ?? false,
      propagation: PROPAGATIONS[mount.mountPropagation ?? 'None'] ?? 'PROPAGATION_PRIVATE',
    }
  })
  return {
    metadata: { name, attempt: 0 },
    image: { image: given.image },
    command,
    args: args.map((word) =>
      word.replaceAll(
        /\$\((\w+)\)/g,
        (whole, name) => values.find((value) => value.name === name)?.value ?? whole,
      ),
    ),
    envs: values.map(({ name, value }) => ({ key: name, value: Buffer.from(value) })),
    mounts,
    linux: {
      resources: { memoryLimitInBytes: bytesOf(container.resources?.limits?.['memory']) },
      securityContext: {
        privileged,
        readonlyRootfs: readOnlyRootFilesystem,
        noNewPrivs: securityContext.allowPrivilegeEscalation === false,
        capabilities: {
          addCapabilities: capabilities?.add ?? [],
          dropCapabilities: capabilities?.drop ?? [],
        },
        ...(securityContext.runAsUser !== undefined && {
          runAsUser: { value: String(securityContext.runAsUser) },
        }),
        ...(securityContext.runAsGroup !== undefined && {
          runAsGroup: { value: String(securityContext.runAsGroup) },
        }),
        namespaceOptions: namespacesOf(spec),
      },
    },
  }
}

const PROPAGATIONS: Readonly<Record<string, Mount['propagation']>> = {
  None: 'PROPAGATION_PRIVATE',
  HostToContainer: 'PROPAGATION_HOST_TO_CONTAINER',
  Bidirectional: 'PROPAGATION_BIDIRECTIONAL',
}

function namespacesOf(spec: V1PodSpec): {
  network: 'NODE' | 'POD'
  pid: 'NODE' | 'CONTAINER'
  ipc: 'POD'
} {
  return {
    network: spec.hostNetwork === true ? 'NODE' : 'POD',
    pid: spec.hostPID === true ? 'NODE' : 'CONTAINER',
    ipc: 'POD',
  }
}

function bytesOf(quantity: string | undefined): string {
  const [, count, unit = ''] = /^(\d+)(Mi|Gi)$/.exec(quantity ?? '') ?? []
  if (count === undefined) throw new Error(`a memory limit of ${quantity} is not translated`)
  return String(Number(count) * (unit === 'Gi' ? 1024 ** 3 : 1024 ** 2))
}
