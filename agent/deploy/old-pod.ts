import { create } from '@bufbuild/protobuf'
import { CID } from 'multiformats/cid'
import {
  type Container,
  type Container_Port,
  type Image,
  type Pod as OldPod,
  type Resource,
  type Volume,
  Volume_AccessMode,
  Volume_VolumeType,
} from '../../proto/messages/apocryph/pod_pb.js'
import { type Pod, PodSchema } from '../../proto/messages/ipdr/deploy_pb.js'
import { IMAGE_HOST } from '../../snapshotter/oci/reference.ts'
import { PodError } from './parse-pod.ts'

/** What a container gets that asks for nothing: such a one had been free, and without bounds. */
const CPU_MILLIS_DEFAULT = 100
const MEMORY_BYTES_DEFAULT = 128n * 1024n ** 2n
const DISK_BYTES_DEFAULT = 1024n ** 3n
const SCRATCH_BYTES = 1024n ** 3n

/** Of the contents of secrets on IPFS, by the name of their volume. */
export type OpenSecret = (secret: {
  readonly cid: Uint8Array
  readonly key: Uint8Array | undefined
}) => Promise<Uint8Array>

/**
 * What an existing client sends, in our words; secrets are opened on the way. Rejects with PodError INVALID_ARGUMENT for what cannot be
 * said, UNIMPLEMENTED for what cannot be done here, and with whatever `openSecret` does.
 */
export async function translateOldPod(pod: OldPod, openSecret: OpenSecret): Promise<Pod> {
  if (pod.keyPair !== undefined) {
    throw new PodError(
      'UNIMPLEMENTED',
      'keyPair: a private key in clear is not taken; mount it as a secret volume',
    )
  }
  if (pod.verificationSettings?.forcePolicy === true) {
    throw new PodError(
      'UNIMPLEMENTED',
      'verificationSettings.forcePolicy: this operator decides by trust policies of its own',
    )
  }
  // Their lists have no bounds; ours are checked afterwards, but not before secrets were fetched.
  if (pod.volumes.length > 32) throw new PodError('INVALID_ARGUMENT', 'volumes: may be 32')
  const volumes = []
  for (const [index, volume] of pod.volumes.entries()) {
    volumes.push(await volumeOf(volume, `volumes[${index}]`, openSecret))
  }
  const { replicas } = pod
  return create(PodSchema, {
    containers: pod.containers.map((container, index) =>
      containerOf(container, `containers[${index}]`),
    ),
    volumes,
    scaling: {
      // Theirs is 0 unless given, for pods that nothing wakes too.
      min: canSleep(pod) ? (replicas?.min ?? 0) : Math.max(replicas?.min ?? 0, 1),
      max: replicas?.max ?? 0,
      pendingRequests: replicas?.targetPendingRequests ?? 0,
    },
  })
}

/** One host name leads to it, by which it is woken. */
function canSleep({ containers }: OldPod): boolean {
  const ports = containers.flatMap((container) => container.ports)
  return ports.filter(({ exposedPort }) => exposedPort.case === 'hostHttpHost').length === 1
}

type ContainerInit = NonNullable<
  NonNullable<Parameters<typeof create<typeof PodSchema>>[1]>['containers']
>[number]
type VolumeInit = NonNullable<
  NonNullable<Parameters<typeof create<typeof PodSchema>>[1]>['volumes']
>[number]

function containerOf(container: Container, at: string): ContainerInit {
  const requests = new Map(container.resourceRequests.map((one) => [one.resource, one]))
  const devices = [...requests.values()]
    .filter(({ resource }) => resource !== 'cpu' && resource !== 'memory' && resource !== 'ram')
    .map((one) => [one.resource, wholeOf(one, `${at}.resourceRequests`)] as const)
  const cpu = requests.get('cpu')
  const memory = requests.get('memory') ?? requests.get('ram')
  return {
    name: container.name,
    image: imageOf(container.image, `${at}.image`),
    entrypoint: container.entrypoint,
    arguments: container.command,
    workingDir: container.workingDir,
    env: container.env,
    ports: container.ports.map((port, index) => portOf(port, index, `${at}.ports[${index}]`)),
    mounts: container.volumes.map(({ name, mountPath, readOnly }) => ({
      volume: name,
      path: mountPath,
      readOnly,
    })),
    cpuMillis: cpu === undefined ? CPU_MILLIS_DEFAULT : millisOf(cpu, `${at}.resourceRequests`),
    memoryBytes: memory === undefined ? MEMORY_BYTES_DEFAULT : unitsOf(memory),
    devices: Object.fromEntries(devices),
  }
}

function imageOf(image: Image | undefined, at: string): string {
  if (image?.key !== undefined && image.key.data.length > 0) {
    throw new PodError(
      'UNIMPLEMENTED',
      `${at}.key: keys of images are not taken by the deploy endpoint; encrypt the image for the keys of this operator's nodes (ipdr push --recipient)`,
    )
  }
  if (image === undefined || image.cid.length === 0) return image?.url ?? ''
  try {
    // Text begins with the b of base32, a CID in binary with its version.
    const isText = image.cid[0] === 0x62
    const cid = isText
      ? CID.parse(Buffer.from(image.cid).toString('latin1'))
      : CID.decode(image.cid)
    return `${IMAGE_HOST}/${cid.toV1().toString()}`
  } catch (cause) {
    throw new PodError('INVALID_ARGUMENT', `${at}.cid: is no CID, in binary or as text`, {}, cause)
  }
}

function portOf(
  port: Container_Port,
  index: number,
  at: string,
): NonNullable<ContainerInit['ports']>[number] {
  const { exposedPort } = port
  const common = {
    // Early manifests name none.
    name: port.name === '' ? `port-${index}` : port.name,
    containerPort: portNumber(port.containerPort, `${at}.containerPort`),
    servicePort: portNumber(port.servicePort, `${at}.servicePort`),
  }
  if (exposedPort.case === 'hostHttpHost') {
    return { ...common, exposure: { case: 'httpHost', value: exposedPort.value } }
  }
  if (exposedPort.case === 'hostTcpPort') {
    const value = portNumber(exposedPort.value, `${at}.hostTcpPort`)
    return { ...common, exposure: { case: 'tcpPort', value } }
  }
  return common
}

async function volumeOf(volume: Volume, at: string, openSecret: OpenSecret): Promise<VolumeInit> {
  const { name, type, configuration } = volume
  switch (type) {
    case Volume_VolumeType.VOLUME_FILESYSTEM: {
      const requests =
        configuration.case === 'filesystem' ? configuration.value.resourceRequests : []
      const storage = requests.find(({ resource }) => resource === 'storage')
      const bytes = storage === undefined ? DISK_BYTES_DEFAULT : unitsOf(storage)
      const shared = volume.accessMode === Volume_AccessMode.VOLUME_RW_MANY
      return { name, source: { case: 'disk', value: { bytes, shared } } }
    }
    case Volume_VolumeType.VOLUME_SECRET: {
      if (configuration.case !== 'secret') {
        throw new PodError('INVALID_ARGUMENT', `${at}.secret: is missing`)
      }
      const { cid, key, contents, contentsString } = configuration.value
      const inline = contents.length > 0 ? contents : new TextEncoder().encode(contentsString)
      const opened = cid.length === 0 ? inline : await openSecret({ cid, key: key?.data })
      return { name, source: { case: 'secret', value: { contents: opened } } }
    }
    case Volume_VolumeType.VOLUME_EMPTY:
      return { name, source: { case: 'scratch', value: { bytes: SCRATCH_BYTES } } }
    default:
      throw new PodError('INVALID_ARGUMENT', `${at}.type: ${String(type)} is no type of volume`)
  }
}

function portNumber(port: bigint, at: string): number {
  if (port > 65_535n)
    throw new PodError('INVALID_ARGUMENT', `${at}: is ${port}, a port is 1 to 65535`)
  return Number(port)
}

function millisOf(resource: Resource, at: string): number {
  const { quantity } = resource
  const millis = quantity.case === 'amountMillis' ? quantity.value : unitsOf(resource) * 1_000n
  if (millis > 0xffff_ffffn)
    throw new PodError('INVALID_ARGUMENT', `${at}: ${millis}m of cpu are too many`)
  return Number(millis)
}

function wholeOf(resource: Resource, at: string): number {
  const units = unitsOf(resource)
  if (units > 0xffff_ffffn) {
    throw new PodError(
      'INVALID_ARGUMENT',
      `${at}: ${units} of ${resource.resource.slice(0, 60)} are too many`,
    )
  }
  return Number(units)
}

/** Bytes, or pieces; what is left of thousandths is rounded up. */
function unitsOf({ quantity }: Resource): bigint {
  switch (quantity.case) {
    case 'amount':
      return quantity.value
    case 'amountMillis':
      return (quantity.value + 999n) / 1_000n
    case 'amountKibi':
      return quantity.value * 1024n
    case 'amountMebi':
      return quantity.value * 1024n ** 2n
    case 'amountGibi':
      return quantity.value * 1024n ** 3n
    default:
      return 0n
  }
}
