import { create } from '@bufbuild/protobuf'
import {
  type Container,
  ContainerSchema,
  PodSchema,
  PortSchema,
  type RegistryLogin,
  RegistryLoginSchema,
  type Volume,
  Volume_DiskSchema,
  Volume_ScratchSchema,
  Volume_SecretSchema,
  VolumeMountSchema,
  VolumeSchema,
} from '../../../proto/messages/ipdr/deploy_pb.js'
import { DeploymentFileError, type Problem } from '../deployment-file-error.ts'
import { DEPLOYMENT_LIMITS } from '../deployment-limits.ts'
import type { DescribedPod, LocalImage, LocalSecret, Surroundings } from '../described-pod.ts'
import { crossChecks } from './cross-checks.ts'
import { envEntries, scalarText } from './environment.ts'
import {
  type ContainerValue,
  type DeploymentValue,
  type LoginValue,
  type MountValue,
  type PortValue,
  parseFields,
  type SecretValue,
} from './format.ts'
import { shapeProblems } from './shape-problems.ts'
import type { Path, Source } from './yaml-source.ts'

/** A file without faults of its own: what it names may still be missing. */
export type CheckedDeployment = {
  readonly source: Source
  readonly value: DeploymentValue
  readonly remarks: readonly Problem[]
}

/** Checks all that can be checked without reading other files. Throws DeploymentFileError with every fault; `more` are faults found before. */
export function checkDeployment(source: Source, more: readonly Problem[] = []): CheckedDeployment {
  const parsed = parseFields(source.value)
  const shape = 'issues' in parsed ? shapeProblems(source, parsed.issues) : []
  const { problems, remarks } = crossChecks(source)
  const all = [...more, ...shape, ...problems]
  if ('issues' in parsed || all.length > 0) throw new DeploymentFileError(source.path, all)
  return { source, value: parsed.value, remarks }
}

/** The pod that a checked file describes. Rejects with DeploymentFileError if a file or variable that it names cannot be had. */
export async function buildPod(
  { source, value, remarks }: CheckedDeployment,
  surroundings: Surroundings,
): Promise<DescribedPod> {
  const read = new NamedContents(source, surroundings)
  const localImages: LocalImage[] = []
  const containers = Object.entries(value.containers).map(([name, container]) => {
    if (container.image.kind === 'local') {
      localImages.push({ container: name, path: joinPath(source.path, container.image.path) })
    }
    return containerOf(source, name, container)
  })
  const localSecrets: LocalSecret[] = []
  const volumes: Volume[] = []
  let secretBytes = 0
  for (const [name, { disk, shared, scratch, secret }] of Object.entries(value.volumes ?? {})) {
    if (disk !== undefined) {
      const bytes = BigInt(disk)
      const made = create(Volume_DiskSchema, { bytes, shared: shared ?? false })
      volumes.push(create(VolumeSchema, { name, source: { case: 'disk', value: made } }))
    } else if (scratch !== undefined) {
      const made = create(Volume_ScratchSchema, { bytes: BigInt(scratch) })
      volumes.push(create(VolumeSchema, { name, source: { case: 'scratch', value: made } }))
    } else {
      if (secret?.file !== undefined) {
        localSecrets.push({ volume: name, path: joinPath(source.path, secret.file) })
      }
      const contents = await read.secret(secret ?? {}, ['volumes', name, 'secret'])
      secretBytes += contents.length
      const made = create(Volume_SecretSchema, { contents })
      volumes.push(create(VolumeSchema, { name, source: { case: 'secret', value: made } }))
    }
  }
  if (secretBytes > DEPLOYMENT_LIMITS.secretBytesMax) {
    const message = `secrets have ${secretBytes} bytes, they may have ${DEPLOYMENT_LIMITS.secretBytesMax} together`
    read.problems.push(source.keyProblem(['volumes'], message))
  }
  const registryLogins: RegistryLogin[] = []
  for (const [server, { username, ...password }] of Object.entries(value.logins ?? {})) {
    const text = await read.password(password, ['logins', server])
    registryLogins.push(create(RegistryLoginSchema, { server, username, password: text }))
  }
  if (read.problems.length > 0) throw new DeploymentFileError(source.path, read.problems)
  const { min = 1, max, pending_requests: pendingRequests = 0 } = value.scaling ?? {}
  const pod = create(PodSchema, {
    name: value.name,
    containers,
    volumes,
    scaling: { min, max: max ?? Math.max(min, 1), pendingRequests },
    registryLogins,
    runtimeClass: value.runtime_class ?? '',
    stateful: value.stateful,
  })
  return { pod, provider: value.provider, localImages, localSecrets, remarks }
}

function containerOf(source: Source, name: string, value: ContainerValue): Container {
  const at: Path = ['containers', name]
  const words = (field: 'entrypoint' | 'command'): string[] =>
    (value[field] ?? []).map((word, index) => scalarText(source, word, [...at, field, index]))
  const env = envEntries(source, value.environment, [...at, 'environment'])
  return create(ContainerSchema, {
    name,
    image: value.image.kind === 'name' ? value.image.name : '',
    entrypoint: words('entrypoint'),
    arguments: words('command'),
    workingDir: value.working_dir ?? '',
    env: Object.fromEntries(env.map(({ name, value }) => [name, value])),
    ports: (value.ports ?? []).map((port) =>
      create(PortSchema, {
        name: port.name,
        containerPort: port.container,
        servicePort: port.service ?? port.container,
        exposure: exposureOf(port),
      }),
    ),
    mounts: (value.volumes ?? []).map((mount) => create(VolumeMountSchema, mountOf(mount))),
    cpuMillis: value.cpu,
    memoryBytes: BigInt(value.memory),
    devices: value.devices ?? {},
  })
}

function exposureOf({
  host,
  tcp,
}: PortValue):
  | { case: 'httpHost'; value: string }
  | { case: 'tcpPort'; value: number }
  | { case: undefined } {
  if (host !== undefined) return { case: 'httpHost', value: host.toLowerCase() }
  if (tcp !== undefined) return { case: 'tcpPort', value: tcp === 'auto' ? 0 : tcp }
  return { case: undefined }
}

function mountOf(written: MountValue): { volume: string; path: string; readOnly: boolean } {
  if (typeof written !== 'string') {
    return { volume: written.volume, path: written.path, readOnly: written.read_only }
  }
  const [volume = '', path = '', mode] = written.split(':')
  return { volume, path, readOnly: mode === 'ro' }
}

/** Reads what a file names, and gathers what cannot be read. */
class NamedContents {
  readonly problems: Problem[] = []
  readonly #source: Source
  readonly #surroundings: Surroundings

  constructor(source: Source, surroundings: Surroundings) {
    this.#source = source
    this.#surroundings = surroundings
  }

  async secret(from: SecretValue, path: Path): Promise<Uint8Array> {
    const max = DEPLOYMENT_LIMITS.secretBytesMax
    if (from.file !== undefined) return await this.#file(from.file, [...path, 'file'], max)
    if (from.text !== undefined) return this.#bounded(encode(from.text), [...path, 'text'], max)
    if (from.env !== undefined)
      return this.#bounded(this.#variable(from.env, [...path, 'env']), [...path, 'env'], max)
    return this.#bounded(fromBase64(from.base64 ?? ''), [...path, 'base64'], max)
  }

  async password(from: Omit<LoginValue, 'username'>, path: Path): Promise<string> {
    const field: Path = [
      ...path,
      from.password_file === undefined ? 'password_env' : 'password_file',
    ]
    const max = DEPLOYMENT_LIMITS.passwordBytesMax
    const bytes =
      from.password_file === undefined
        ? this.#bounded(this.#variable(from.password_env ?? '', field), field, max)
        : await this.#file(from.password_file, field, max)
    let text: string
    try {
      text = new TextDecoder('utf-8', { fatal: true }).decode(bytes).replace(/\r?\n$/, '')
    } catch {
      return this.#failed(field, 'is no text in UTF-8', '')
    }
    // One that could not be read has been complained of.
    if (text === '' && bytes !== UNREAD) return this.#failed(field, 'holds no password', '')
    return text
  }

  async #file(path: string, field: Path, max: number): Promise<Uint8Array> {
    let bytes: Uint8Array
    try {
      bytes = await this.#surroundings.readFile(joinPath(this.#source.path, path))
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error)
      return this.#failed(field, `cannot be read: ${reason}`, UNREAD)
    }
    return this.#bounded(bytes, field, max)
  }

  #variable(name: string, field: Path): Uint8Array {
    const value = this.#surroundings.environment?.[name]
    if (value !== undefined) return encode(value)
    return this.#failed(
      field,
      `there is no variable ${name} in the environment; export it first`,
      UNREAD,
    )
  }

  #bounded(bytes: Uint8Array, field: Path, max: number): Uint8Array {
    if (bytes.length <= max) return bytes
    return this.#failed(field, `has ${bytes.length} bytes, it may have ${max}`, UNREAD)
  }

  #failed<Value>(field: Path, message: string, instead: Value): Value {
    this.problems.push(this.#source.problem(field, message))
    return instead
  }
}

const UNREAD: Uint8Array = new Uint8Array()

function encode(text: string): Uint8Array {
  return new TextEncoder().encode(text)
}

function fromBase64(text: string): Uint8Array {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0))
}

/** Relative paths are relative to the folder of the file that names them. */
function joinPath(from: string, path: string): string {
  if (path.startsWith('/')) return path
  const folder = from.slice(0, from.lastIndexOf('/') + 1)
  return `${folder}${path.replace(/^(?:\.\/+)+/, '')}`
}
