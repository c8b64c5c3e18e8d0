import type {
  V1Affinity,
  V1Container,
  V1PodSpec,
  V1PodTemplateSpec,
  V1SecurityContext,
} from '@kubernetes/client-node'
import { IMAGE_HOST } from '../../../snapshotter/oci/reference.ts'
import type { ClusterSettings } from '../cluster-settings.ts'
import type { ContainerSpec, PodIdentity, PodSpec } from '../pod-spec.ts'
import { ACCOUNT_NAME, labelsOf, REPLICA_LABELS } from './object-names.ts'
import { containerResources, sorted } from './resources.ts'
import { scaleDownAccess, scaleDownVolumes } from './scale-down-token.ts'
import { podVolumes, secretsDigest, sharesNodeDisk, volumeMounts } from './volumes.ts'

/** Disks come to belong to it, so that whichever user an image has may write to them. 65532: a user called nonroot in many of them. */
const DISK_GROUP = 65_532

/** What Pod Security's `restricted` wants of a container, beside what its pod says. */
const CONTAINER_SECURITY: V1SecurityContext = {
  allowPrivilegeEscalation: false,
  capabilities: { drop: ['ALL'] },
}

/** One replica. */
export function podTemplate(
  spec: PodSpec,
  identity: PodIdentity,
  settings: ClusterSettings,
): V1PodTemplateSpec {
  const { userNamespaces } = settings
  const { containers, runtimeClass, volumes } = spec
  const hasDisk = volumes.some(({ kind }) => kind === 'disk')
  const digest = secretsDigest(spec, identity)
  const allVolumes = [...podVolumes(spec), ...scaleDownVolumes(spec, settings)]
  return {
    metadata: {
      labels: { ...labelsOf(identity), ...REPLICA_LABELS },
      // A mounted file of a secret stays what it was, so that a new one needs new replicas.
      ...(digest !== undefined && { annotations: { 'ipdr.dev/spec': digest } }),
    },
    spec: {
      containers: containers.map((container) => containerOf(spec, container, settings)),
      ...(allVolumes.length > 0 && { volumes: allVolumes }),
      serviceAccountName: ACCOUNT_NAME,
      automountServiceAccountToken: false,
      // They would tell each replica of all services by variables that the publisher has not asked for.
      enableServiceLinks: false,
      terminationGracePeriodSeconds: 30,
      securityContext: {
        // No user is named, so that the image's own counts. One that is root, or a name, does not start, and an event says so.
        runAsNonRoot: true,
        seccompProfile: { type: 'RuntimeDefault' },
        ...(hasDisk && { fsGroup: DISK_GROUP, fsGroupChangePolicy: 'OnRootMismatch' }),
        // Of the pod's own network, so that port 80 is to be had without root. NET_BIND_SERVICE would not do: users without root never get it.
        ...(usesLowPorts(spec) && {
          sysctls: [{ name: 'net.ipv4.ip_unprivileged_port_start', value: '0' }],
        }),
      },
      ...(userNamespaces && { hostUsers: false }),
      ...(runtimeClass !== undefined && { runtimeClassName: runtimeClass }),
      // Containers have one network: manifests of Trusted Pods find the others by their names.
      ...(containers.length > 1 && {
        hostAliases: [{ ip: '127.0.0.1', hostnames: containers.map(({ name }) => name) }],
      }),
      ...placement(spec),
    },
  }
}

function containerOf(
  spec: PodSpec,
  container: ContainerSpec,
  settings: ClusterSettings,
): V1Container {
  const { name, image, entrypoint, workingDir, env, ports } = container
  const access = scaleDownAccess(spec, container, settings)
  const mounts = [...volumeMounts(spec, container), ...access.mounts]
  const variables = [...sorted(env).map(([name, value]) => ({ name, value })), ...access.env]
  const exposed = ports.find(({ exposure }) => exposure !== undefined)
  return {
    name,
    image,
    // A CID names one content. What a registry has may change, and is for who has the login, not for who comes to the same node.
    imagePullPolicy: image.startsWith(`${IMAGE_HOST}/`) ? 'IfNotPresent' : 'Always',
    ...(entrypoint.length > 0 && { command: entrypoint.map(literal) }),
    ...(container.arguments.length > 0 && { args: container.arguments.map(literal) }),
    ...(workingDir !== undefined && { workingDir }),
    ...(variables.length > 0 && {
      env: variables.map(({ name, value = '' }) => ({ name, value: literal(value) })),
    }),
    ...(ports.length > 0 && {
      ports: ports.map(({ containerPort }) => ({ containerPort, protocol: 'TCP' })),
    }),
    ...(mounts.length > 0 && { volumeMounts: mounts }),
    resources: containerResources(spec, container),
    // Else requests come before anybody listens. Each second, since a request may be waiting for a pod to wake; nothing is ended by it.
    ...(exposed !== undefined && {
      readinessProbe: {
        tcpSocket: { port: exposed.containerPort },
        periodSeconds: 1,
        timeoutSeconds: 1,
        failureThreshold: 3,
      },
    }),
    securityContext: CONTAINER_SECURITY,
  }
}

/** As it was written: Kubernetes would put variables in place of `$(NAME)`, and `$` in place of `$$`. */
function literal(text: string): string {
  return text.replaceAll('$', () => '$$')
}

function usesLowPorts({ containers }: PodSpec): boolean {
  return containers.some(({ ports }) => ports.some(({ containerPort }) => containerPort < 1_024))
}

/** Replicas on one node where they share a disk of it; else on different ones, as far as there are. */
function placement(spec: PodSpec): Pick<V1PodSpec, 'affinity' | 'topologySpreadConstraints'> {
  if (spec.scaling.max === 1) return {}
  const topologyKey = 'kubernetes.io/hostname'
  const labelSelector = { matchLabels: REPLICA_LABELS }
  if (sharesNodeDisk(spec)) {
    const affinity: V1Affinity = {
      podAffinity: {
        requiredDuringSchedulingIgnoredDuringExecution: [{ topologyKey, labelSelector }],
      },
    }
    return { affinity }
  }
  return {
    topologySpreadConstraints: [
      { maxSkew: 1, topologyKey, whenUnsatisfiable: 'ScheduleAnyway', labelSelector },
    ],
  }
}
