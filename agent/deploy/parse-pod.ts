import type { Container, Pod, Port, Volume } from '../../proto/messages/ipdr/deploy_pb.js'
import { CodedError } from '../../snapshotter/errors.ts'
import { isDigest } from '../../snapshotter/oci/digest.ts'
import { parseCid } from '../../snapshotter/oci/parse-cid.ts'
import { IMAGE_HOST, parseImageReference } from '../../snapshotter/oci/reference.ts'
import {
  formatRegistryReference,
  parseRegistryReference,
} from '../../snapshotter/oci/registry-reference.ts'
import { DEPLOYMENT_LIMITS } from '../client/deployment-limits.ts'
import { isDevice, NAME_PATTERN } from '../client/deployment-names.ts'
import { httpPorts } from './objects/request-scaling.ts'
import { isReservedPath, SCALE_DOWN_URL_VARIABLE } from './objects/scale-down-token.ts'
import type {
  ContainerSpec,
  Exposure,
  MountSpec,
  PodSpec,
  PortSpec,
  RegistryLogin,
  ScalingSpec,
  VolumeSpec,
} from './pod-spec.ts'

/** A pod that is not taken; the message names every field that is wrong, and what it may be. */
export class PodError extends CodedError {}

const LIMITS = DEPLOYMENT_LIMITS

/** Problems that are told at once. */
const PROBLEMS_MAX = 20

/** RFC 1123, in parts of 63 characters. */
const HOST =
  /^(?=.{1,253}$)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)+$/
const ENV_NAME = /^[A-Za-z_][A-Za-z0-9_.-]{0,254}$/
/** What the cluster has to say of a pod. */
export type PodLimits = {
  readonly runtimeClasses: readonly string[]
  /** Host names end with one of these, as `.apps.example.com`; none: any name. */
  readonly hostSuffixes: readonly string[]
  /** Whether host names can be routed at all. */
  readonly hasRoutes: boolean
}

/** Where something is wrong, and what. */
type Problems = { readonly found: string[]; add(field: string, what: string): void }

/** Checks what a publisher sends. Throws PodError INVALID_ARGUMENT that names every field that is wrong. */
export function parsePod(pod: Pod, limits: PodLimits): PodSpec {
  const problems = problemList()
  if (pod.name.length > 63) problems.add('name', 'may have 63 characters')
  const volumes = listOf(pod.volumes, LIMITS.volumesMax, 'volumes', problems).map((volume, index) =>
    volumeOf(volume, `volumes[${index}]`, problems),
  )
  unique(volumes, 'volumes', problems)
  checkSecretBytes(volumes, problems)
  if (pod.containers.length === 0) problems.add('containers', 'a pod needs at least one')
  const containers = listOf(pod.containers, LIMITS.containersMax, 'containers', problems).map(
    (container, index) =>
      containerOf(container, `containers[${index}]`, { limits, volumes, problems }),
  )
  unique(containers, 'containers', problems)
  checkPorts(containers, problems)
  const scaling = scalingOf(pod, containers, problems)
  if (pod.runtimeClass !== '' && !limits.runtimeClasses.includes(pod.runtimeClass)) {
    const known = limits.runtimeClasses.map((name) => `'${name}'`).join(', ')
    problems.add(
      'runtime_class',
      `this cluster has ${known === '' ? 'none to choose from' : known}, not '${shown(pod.runtimeClass)}'`,
    )
  }
  const registryLogins = listOf(
    pod.registryLogins,
    LIMITS.loginsMax,
    'registry_logins',
    problems,
  ).map((login, index) => loginOf(login, `registry_logins[${index}]`, problems))
  if (pod.stateful && scaling.min === 0) {
    problems.add('scaling.min', 'a stateful pod cannot sleep: it must be at least 1')
  }
  const { found } = problems
  if (found.length > 0) {
    const more = found.length - PROBLEMS_MAX
    const sentences = found.slice(0, PROBLEMS_MAX).join('; ')
    throw new PodError(
      'INVALID_ARGUMENT',
      more > 0 ? `${sentences}; and ${more} more problems` : sentences,
    )
  }
  return {
    name: pod.name,
    containers,
    volumes,
    scaling,
    registryLogins,
    ...(pod.runtimeClass !== '' && { runtimeClass: pod.runtimeClass }),
    isStateful: pod.stateful,
  }
}

type InContainer = {
  readonly limits: PodLimits
  readonly volumes: readonly VolumeSpec[]
  readonly problems: Problems
}

function containerOf(container: Container, at: string, parts: InContainer): ContainerSpec {
  const { problems } = parts
  checkName(container.name, `${at}.name`, problems)
  const words = [...container.entrypoint, ...container.arguments]
  if (words.length > LIMITS.argumentsMax)
    problems.add(`${at}.entrypoint`, `may have ${LIMITS.argumentsMax} words`)
  if (words.some((word) => word.includes('\0'))) problems.add(`${at}.entrypoint`, 'has a NUL byte')
  const env = Object.entries(container.env)
  if (env.length > LIMITS.envEntriesMax)
    problems.add(`${at}.env`, `may have ${LIMITS.envEntriesMax} variables`)
  for (const [name, value] of env.slice(0, LIMITS.envEntriesMax)) {
    if (!ENV_NAME.test(name)) {
      problems.add(`${at}.env`, `'${shown(name)}' is not the name of a variable`)
    }
    if (name === SCALE_DOWN_URL_VARIABLE) {
      problems.add(`${at}.env.${name}`, 'is for the cluster to set; choose another name')
    }
    if (value.includes('\0')) problems.add(`${at}.env.${shown(name)}`, 'has a NUL byte')
  }
  const bytes = [...words, ...env.flat()].reduce((sum, text) => sum + Buffer.byteLength(text), 0)
  if (bytes > LIMITS.wordsBytesMax) {
    problems.add(
      `${at}.env`,
      `command and variables have ${bytes} bytes, they may have ${LIMITS.wordsBytesMax}`,
    )
  }
  if (container.workingDir !== '') checkPath(container.workingDir, `${at}.working_dir`, problems)
  checkAmount(
    BigInt(container.cpuMillis),
    1n,
    BigInt(LIMITS.cpuMillisMax),
    `${at}.cpu_millis`,
    problems,
  )
  checkAmount(
    container.memoryBytes,
    BigInt(LIMITS.memoryBytesMin),
    BigInt(LIMITS.memoryBytesMax),
    `${at}.memory_bytes`,
    problems,
  )
  const devices = Object.entries(container.devices)
  if (devices.length > LIMITS.devicesMax)
    problems.add(`${at}.devices`, `may have ${LIMITS.devicesMax} kinds`)
  for (const [name, count] of devices.slice(0, LIMITS.devicesMax)) {
    if (!isDevice(name)) {
      problems.add(`${at}.devices`, `'${shown(name)}' is not a device like nvidia.com/gpu`)
    }
    if (count < 1 || count > 64) problems.add(`${at}.devices.${shown(name)}`, 'must be 1 to 64')
  }
  return {
    name: container.name,
    image: imageOf(container.image, `${at}.image`, problems),
    entrypoint: container.entrypoint,
    arguments: container.arguments,
    ...(container.workingDir !== '' && { workingDir: container.workingDir }),
    env: new Map(env),
    ports: listOf(container.ports, LIMITS.portsPerContainerMax, `${at}.ports`, problems).map(
      (port, index) => portOf(port, `${at}.ports[${index}]`, parts),
    ),
    mounts: mountsOf(container, at, parts),
    cpuMillis: container.cpuMillis,
    memoryBytes: Number(container.memoryBytes),
    devices: new Map(devices),
  }
}

/** As containerd takes it; what names an image of ours in any way becomes `ipdr.internal/<CIDv1>`. */
function imageOf(text: string, at: string, problems: Problems): string {
  if (text === '') {
    problems.add(at, `is missing: ${IMAGE_HOST}/<CID>, or an image of a registry`)
    return text
  }
  try {
    const bare = text.replace(/^ipfs:\/\//, '').replace(/^\/ipfs\//, '')
    const isOurs =
      text.startsWith(`${IMAGE_HOST}/`) ||
      bare !== text ||
      parseCid(bare.split(/[:@]/, 1)[0] ?? '') !== undefined
    if (!isOurs) return formatRegistryReference(parseRegistryReference(text))
    const { root, selector } = parseImageReference(text)
    const joint = isDigest(selector) ? '@' : ':'
    return `${IMAGE_HOST}/${root.toString()}${joint}${selector}`
  } catch (error) {
    problems.add(at, error instanceof Error ? error.message : String(error))
    return text
  }
}

function portOf(port: Port, at: string, { limits, problems }: InContainer): PortSpec {
  checkName(port.name, `${at}.name`, problems)
  checkPort(port.containerPort, `${at}.container_port`, problems)
  const servicePort = port.servicePort === 0 ? port.containerPort : port.servicePort
  checkPort(servicePort, `${at}.service_port`, problems)
  const exposure = exposureOf(port, at, limits, problems)
  return {
    name: port.name,
    containerPort: port.containerPort,
    servicePort,
    ...(exposure !== undefined && { exposure }),
  }
}

function exposureOf(
  { exposure }: Port,
  at: string,
  { hostSuffixes, hasRoutes }: PodLimits,
  problems: Problems,
): Exposure | undefined {
  if (exposure.case === undefined) return undefined
  if (exposure.case === 'tcpPort') {
    const { value } = exposure
    // The API server says which of them are its own.
    if (value !== 0) checkPort(value, `${at}.tcp_port`, problems)
    return { kind: 'tcp', nodePort: value === 0 ? undefined : value }
  }
  const host = exposure.value.toLowerCase()
  if (!hasRoutes) {
    problems.add(`${at}.http_host`, 'this cluster routes no host names; use a tcp_port')
  } else if (!HOST.test(host) || /^[\d.]+$/.test(host)) {
    problems.add(
      `${at}.http_host`,
      `'${shown(exposure.value)}' is not a host name like app.example.com`,
    )
  } else if (
    hostSuffixes.length > 0 &&
    !hostSuffixes.some((suffix) => host.endsWith(suffix) && host.length > suffix.length)
  ) {
    problems.add(
      `${at}.http_host`,
      `'${host}' must end with ${hostSuffixes.map((suffix) => `'${suffix}'`).join(' or ')}`,
    )
  }
  return { kind: 'http', host }
}

function mountsOf(
  container: Container,
  at: string,
  { volumes, problems }: InContainer,
): MountSpec[] {
  const paths = new Set<string>()
  return listOf(container.mounts, LIMITS.mountsPerContainerMax, `${at}.mounts`, problems).map(
    (mount, index) => {
      const place = `${at}.mounts[${index}]`
      checkPath(mount.path, `${place}.path`, problems)
      if (isReservedPath(mount.path)) {
        problems.add(
          `${place}.path`,
          `'${shown(mount.path)}' is for what the cluster mounts; choose another`,
        )
      }
      const path = mount.path.replace(/\/+$/, '')
      if (paths.has(path)) problems.add(`${place}.path`, `'${shown(path)}' has a mount already`)
      paths.add(path)
      if (!volumes.some(({ name }) => name === mount.volume)) {
        problems.add(`${place}.volume`, `there is no volume '${shown(mount.volume)}'`)
      }
      return { volume: mount.volume, path, readOnly: mount.readOnly }
    },
  )
}

function volumeOf({ name, source }: Volume, at: string, problems: Problems): VolumeSpec {
  checkName(name, `${at}.name`, problems)
  switch (source.case) {
    case 'scratch':
      checkAmount(
        source.value.bytes,
        1n,
        BigInt(LIMITS.volumeBytesMax),
        `${at}.scratch.bytes`,
        problems,
      )
      return { kind: 'scratch', name, bytes: Number(source.value.bytes) }
    case 'disk': {
      const { bytes, shared } = source.value
      checkAmount(bytes, 1n, BigInt(LIMITS.volumeBytesMax), `${at}.disk.bytes`, problems)
      return { kind: 'disk', name, bytes: Number(bytes), isShared: shared }
    }
    case 'secret':
      return { kind: 'secret', name, contents: source.value.contents }
    default:
      problems.add(at, 'must be scratch, disk or secret')
      return { kind: 'scratch', name, bytes: 0 }
  }
}

function checkSecretBytes(volumes: readonly VolumeSpec[], problems: Problems): void {
  const bytes = volumes.reduce(
    (sum, volume) => sum + (volume.kind === 'secret' ? volume.contents.length : 0),
    0,
  )
  if (bytes > LIMITS.secretBytesMax) {
    problems.add(
      'volumes',
      `secrets have ${bytes} bytes, they may have ${LIMITS.secretBytesMax} together`,
    )
  }
}

/** Services are named after ports, and each host leads to one. */
function checkPorts(containers: readonly ContainerSpec[], problems: Problems): void {
  const names = new Set<string>()
  const hosts = new Set<string>()
  for (const [index, container] of containers.entries()) {
    const numbers = new Set<number>()
    for (const [portIndex, port] of container.ports.entries()) {
      const at = `containers[${index}].ports[${portIndex}]`
      if (names.has(port.name))
        problems.add(`${at}.name`, `'${shown(port.name)}' is another port's`)
      names.add(port.name)
      if (numbers.has(port.containerPort)) {
        problems.add(`${at}.container_port`, `${port.containerPort} is another port's`)
      }
      numbers.add(port.containerPort)
      if (port.exposure?.kind !== 'http') continue
      const { host } = port.exposure
      if (hosts.has(host)) problems.add(`${at}.http_host`, `'${shown(host)}' is another port's`)
      hosts.add(host)
    }
  }
}

function scalingOf(
  { scaling }: Pod,
  containers: readonly ContainerSpec[],
  problems: Problems,
): ScalingSpec {
  const hosts = httpPorts({ containers })
  const min = scaling?.min ?? 1
  const max = scaling === undefined || scaling.max === 0 ? Math.max(min, 1) : scaling.max
  if (max > LIMITS.replicasMax)
    problems.add('scaling.max', `is ${max}, it may be ${LIMITS.replicasMax}`)
  if (min > max) problems.add('scaling.min', `is ${min}, more than the most, ${max}`)
  if (min === 0 && hosts.length === 0) {
    problems.add(
      'scaling.min',
      'a pod that no host name leads to would never wake: it must be at least 1',
    )
  }
  if (min === 0 && hosts.length > 1) {
    problems.add(
      'scaling.min',
      `a pod with ${hosts.length} host names cannot sleep: it must be at least 1`,
    )
  }
  const pendingRequests = scaling?.pendingRequests ?? 0
  if (pendingRequests > 1_000_000) problems.add('scaling.pending_requests', 'may be 1000000')
  return { min, max, ...(pendingRequests > 0 && { pendingRequests }) }
}

function loginOf(
  { server, username, password }: RegistryLogin,
  at: string,
  problems: Problems,
): RegistryLogin {
  if (!/^(?=.{1,260}$)[a-zA-Z0-9.-]+(?::\d{1,5})?$/.test(server)) {
    problems.add(`${at}.server`, `'${shown(server)}' is not a registry like ghcr.io`)
  }
  // A colon ends the name in HTTP's basic authentication.
  if (username === '' || username.includes(':') || username.length > 256) {
    problems.add(`${at}.username`, 'must have 1 to 256 characters, and no colon')
  }
  if (password === '' || password.length > LIMITS.passwordBytesMax) {
    problems.add(`${at}.password`, `must have 1 to ${LIMITS.passwordBytesMax} characters`)
  }
  return { server, username, password }
}

function listOf<T>(list: readonly T[], max: number, at: string, problems: Problems): readonly T[] {
  if (list.length <= max) return list
  problems.add(at, `are ${list.length}, they may be ${max}`)
  return list.slice(0, max)
}

function unique(list: readonly { readonly name: string }[], at: string, problems: Problems): void {
  const seen = new Set<string>()
  for (const [index, { name }] of list.entries()) {
    if (seen.has(name)) problems.add(`${at}[${index}].name`, `'${shown(name)}' is there twice`)
    seen.add(name)
  }
}

function checkName(name: string, at: string, problems: Problems): void {
  if (NAME_PATTERN.test(name)) return
  problems.add(
    at,
    `'${shown(name)}' must be of lower-case letters, digits and - between them, ${LIMITS.nameCharsMax} characters at most`,
  )
}

function checkPath(path: string, at: string, problems: Problems): void {
  const isPath = /^\/[^\0:]*$/.test(path) && path.length <= 1_024 && path !== '/'
  if (isPath && !path.split('/').includes('..')) return
  problems.add(at, `'${shown(path)}' must be an absolute path below /, without .. and colons`)
}

function checkPort(port: number, at: string, problems: Problems): void {
  if (port < 1 || port > 65_535) problems.add(at, `is ${port}, a port is 1 to 65535`)
}

function checkAmount(
  amount: bigint,
  min: bigint,
  max: bigint,
  at: string,
  problems: Problems,
): void {
  if (amount < min || amount > max) problems.add(at, `is ${amount}, it must be ${min} to ${max}`)
}

function problemList(): Problems {
  const found: string[] = []
  return { found, add: (field, what) => void found.push(`${field}: ${what}`) }
}

/** Enough of what somebody else wrote to know it again. */
function shown(text: string): string {
  return text.length > 60 ? `${text.slice(0, 60)}…` : text
}
