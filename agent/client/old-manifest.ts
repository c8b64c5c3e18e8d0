import {
  type DescField,
  type DescMessage,
  fromBinary,
  fromJson,
  type JsonObject,
  type JsonValue,
  ScalarType,
  toJson,
} from '@bufbuild/protobuf'
import { CID } from 'multiformats/cid'
import { z } from 'zod'
import {
  type Container,
  type Container_Port,
  type Pod,
  PodSchema,
  type Resource,
  type Volume,
  Volume_AccessMode,
  Volume_VolumeType,
} from '../../proto/messages/apocryph/pod_pb.js'
import { buildPod, checkDeployment } from './deployment-file/build-pod.ts'
import { nearestWord } from './deployment-file/nearest-word.ts'
import { type Path, type Source, YamlSource } from './deployment-file/yaml-source.ts'
import { DeploymentFileError, formatField, type Problem } from './deployment-file-error.ts'
import { DEPLOYMENT_LIMITS } from './deployment-limits.ts'
import type { DescribedPod, Surroundings } from './described-pod.ts'

/** What a volume of theirs that is empty at every start gets: they name no size. */
const SCRATCH_SIZE = '1GiB'

/**
 * The pod that a manifest of Trusted Pods or Apocryph describes. It is put into the words of our own format first, and checked as that
 * is. Rejects with DeploymentFileError for what is wrong with it, and for what has no counterpart here.
 */
export async function readOldManifest(
  source: Source,
  surroundings: Surroundings,
): Promise<DescribedPod> {
  const wrong = manifestProblems(source, PodSchema, source.value, [])
  if (wrong.length > 0) throw new DeploymentFileError(source.path, wrong)
  let pod: Pod
  try {
    pod = fromJson(PodSchema, source.value as JsonValue)
  } catch (error) {
    throw new DeploymentFileError(source.path, [source.problem([], reasonOf(error))], error)
  }
  return await describe(source, pod, surroundings)
}

/** As `readOldManifest`, of one in protobuf's binary form (.pb). */
export async function readOldManifestMessage(
  path: string,
  contents: Uint8Array,
  surroundings: Surroundings,
): Promise<DescribedPod> {
  const source = new PlacelessSource(path)
  const { fileBytesMax } = DEPLOYMENT_LIMITS
  if (contents.length > fileBytesMax) {
    const message = `has ${contents.length} bytes, it may have ${fileBytesMax}`
    throw new DeploymentFileError(path, [source.problem([], message)])
  }
  let pod: Pod
  try {
    pod = fromBinary(PodSchema, contents)
  } catch (error) {
    throw new DeploymentFileError(
      path,
      [source.problem([], `is no manifest in binary form: ${reasonOf(error)}`)],
      error,
    )
  }
  const unusable = nulProblems(source, toJson(PodSchema, pod), [])
  if (unusable.length > 0) throw new DeploymentFileError(path, unusable)
  return await describe(source, pod, surroundings)
}

async function describe(
  source: Source,
  pod: Pod,
  surroundings: Surroundings,
): Promise<DescribedPod> {
  const translation = new Translation(source, pod)
  const { value, problems, remarks, places } = translation
  const checked = checkDeployment(new TranslatedSource(source, value, places), problems)
  return await buildPod({ ...checked, remarks: [...remarks, ...checked.remarks] }, surroundings)
}

/** Puts a manifest into the words of our format, and remembers where each of them comes from. */
class Translation {
  readonly problems: Problem[] = []
  readonly remarks: Problem[] = []
  /** From paths in our format, as JSON, to those in the manifest. */
  readonly places = new Map<string, Path>()
  readonly value: Readonly<Record<string, unknown>>
  readonly #source: Source

  constructor(source: Source, pod: Pod) {
    this.#source = source
    this.places.set('[]', [])
    const containers = this.#byName(pod.containers, 'containers', (container, from, to) =>
      this.#container(container, from, to),
    )
    const volumes = this.#byName(pod.volumes, 'volumes', (volume, from, to) =>
      this.#volume(volume, from, to),
    )
    if (pod.keyPair !== undefined) {
      this.#without(
        ['keyPair'],
        'key pairs are not handed to providers; remove it, and mount the key as a secret',
      )
    }
    const settings = pod.verificationSettings
    if (
      settings !== undefined &&
      (settings.forcePolicy || settings.publicVerifiability || settings.verificationHost !== '')
    ) {
      this.#without(
        ['verificationSettings'],
        'nodes have policies of their own for signatures; remove it',
      )
    }
    this.value = { name: labelOf(source.path), containers, volumes, scaling: this.#scaling(pod) }
  }

  #byName<Item extends { readonly name: string }>(
    items: readonly Item[],
    field: 'containers' | 'volumes',
    translate: (item: Item, from: Path, to: Path) => unknown,
  ): Record<string, unknown> {
    const named: Record<string, unknown> = {}
    this.#from([field], [field])
    for (const [index, item] of items.entries()) {
      // What is there twice is looked at all the same.
      const isUsable = !Object.hasOwn(named, item.name) && item.name !== '__proto__'
      const key = isUsable ? item.name : `another-${index}`
      const [from, to]: [Path, Path] = [
        [field, index],
        [field, key],
      ]
      if (!isUsable) {
        this.#wrong([...from, 'name'], `'${item.name.slice(0, 80)}' is the name of another one too`)
      }
      this.#from(to, from)
      named[key] = translate(item, from, to)
    }
    return named
  }

  #container(container: Container, from: Path, to: Path): Record<string, unknown> {
    const translated = (field: string, theirs: string): void =>
      this.#from([...to, field], [...from, theirs])
    const isByCid = (container.image?.cid.length ?? 0) > 0
    this.#from([...to, 'image'], [...from, 'image', isByCid ? 'cid' : 'url'])
    translated('entrypoint', 'entrypoint')
    translated('command', 'command')
    translated('working_dir', 'workingDir')
    translated('environment', 'env')
    translated('ports', 'ports')
    translated('volumes', 'volumes')
    translated('cpu', 'resourceRequests')
    translated('memory', 'resourceRequests')
    translated('devices', 'resourceRequests')
    const { cpu, memory, devices } = this.#requests(container.resourceRequests, from)
    return {
      image: this.#image(container, [...from, 'image']),
      cpu,
      memory,
      ...(container.entrypoint.length === 0 ? {} : { entrypoint: container.entrypoint }),
      ...(container.command.length === 0 ? {} : { command: container.command }),
      ...(container.workingDir === '' ? {} : { working_dir: container.workingDir }),
      environment: container.env,
      devices,
      ports: container.ports.map((port, index) =>
        this.#port(port, [...from, 'ports', index], [...to, 'ports', index]),
      ),
      volumes: container.volumes.map(({ name, mountPath, readOnly }, index) => {
        const [theirs, ours]: [Path, Path] = [
          [...from, 'volumes', index],
          [...to, 'volumes', index],
        ]
        this.#from([...ours, 'volume'], [...theirs, 'name'])
        this.#from([...ours, 'path'], [...theirs, 'mountPath'])
        return { volume: name, path: mountPath, read_only: readOnly }
      }),
    }
  }

  #image({ image }: Container, from: Path): string {
    const none = 'none'
    if (image === undefined || (image.cid.length === 0 && image.url === '')) {
      this.#wrong(from, 'is missing; write image: { url: docker.io/library/nginx }')
      return none
    }
    if (image.verificationDetails !== undefined) {
      this.#without(
        [...from, 'verificationDetails'],
        'signatures lie beside images (ipdr sign), and nodes have policies for them; remove it',
      )
    }
    if (image.key !== undefined) {
      this.#without(
        [...from, 'key'],
        'keys of images do not pass through deployments; publish the image again with ipdr push, for the node as a recipient',
      )
    }
    if (image.cid.length === 0) return image.url
    const cid = cidOf(image.cid)
    if (cid !== undefined) return `ipdr.internal/${cid}`
    this.#wrong([...from, 'cid'], 'is no CID, neither in binary nor as text in base32')
    return none
  }

  #port(port: Container_Port, from: Path, to: Path): Record<string, unknown> {
    for (const [ours, theirs] of [
      ['name', 'name'],
      ['container', 'containerPort'],
      ['service', 'servicePort'],
      ['host', 'hostHttpHost'],
      ['tcp', 'hostTcpPort'],
    ] as const) {
      this.#from([...to, ours], [...from, theirs])
    }
    const { exposedPort } = port
    const tcp = exposedPort.case === 'hostTcpPort' ? Number(exposedPort.value) : undefined
    return {
      ...(port.name === '' ? {} : { name: port.name }),
      container: Number(port.containerPort),
      ...(port.servicePort === 0n ? {} : { service: Number(port.servicePort) }),
      ...(exposedPort.case === 'hostHttpHost' ? { host: exposedPort.value } : {}),
      ...(tcp === undefined ? {} : { tcp: tcp === 0 ? 'auto' : tcp }),
    }
  }

  #requests(
    requests: readonly Resource[],
    container: Path,
  ): { cpu: string; memory: string; devices: Record<string, number> } {
    const found: { cpu?: string; memory?: string; devices: Record<string, number> } = {
      devices: {},
    }
    const seen = new Set<string>()
    for (const [index, request] of requests.entries()) {
      const at = [...container, 'resourceRequests', index]
      const { resource } = request
      if (seen.has(resource))
        this.#wrong(at, `${resource.slice(0, 80)} is asked for twice; remove one of them`)
      seen.add(resource)
      const millis = millisOf(request)
      if (millis === undefined) this.#wrong(at, 'has no amount; write amount or amountMillis')
      else if (resource === 'cpu') found.cpu = `${millis}m`
      else if (resource === 'memory') found.memory = `${(millis + 999n) / 1000n}B`
      else if (resource.includes('/') && millis % 1000n === 0n)
        found.devices[resource] = Number(millis / 1000n)
      else
        this.#without(
          [...at, 'resource'],
          `a container has cpu, memory and devices, as nvidia.com/gpu, and no ${resource.slice(0, 80)}; remove it`,
        )
    }
    const { cpu, memory, devices } = found
    const at = [...container, 'resourceRequests']
    if (cpu === undefined) this.#wrong(at, "has no cpu; add { resource: cpu, amountMillis: '250' }")
    if (memory === undefined) {
      this.#wrong(at, "has no memory; add { resource: memory, amountMebi: '128' }")
    }
    // Whatever is right, so that it is complained of once.
    return { cpu: cpu ?? '1', memory: memory ?? '1GiB', devices }
  }

  #volume(volume: Volume, from: Path, to: Path): Record<string, unknown> {
    const { configuration, type } = volume
    if (type === Volume_VolumeType.VOLUME_EMPTY) {
      if (configuration.case !== undefined) {
        const meant = configuration.case === 'secret' ? 'VOLUME_SECRET' : 'VOLUME_FILESYSTEM'
        this.#wrong(
          from,
          `has ${configuration.case}, but its type says that it is empty; write type: ${meant}`,
        )
      } else
        this.#remark(
          from,
          `gets ${SCRATCH_SIZE}: volumes that are empty at every start have a size here`,
        )
      return { scratch: SCRATCH_SIZE }
    }
    if (type === Volume_VolumeType.VOLUME_FILESYSTEM) {
      this.#from([...to, 'disk'], [...from, 'filesystem'])
      const isShared = volume.accessMode === Volume_AccessMode.VOLUME_RW_MANY
      const requests =
        configuration.case === 'filesystem' ? configuration.value.resourceRequests : []
      const storage = requests.find(({ resource }) => resource === 'storage')
      const millis = storage && millisOf(storage)
      if (millis !== undefined) return { disk: `${(millis + 999n) / 1000n}B`, shared: isShared }
      this.#wrong(
        from,
        "has no size; write filesystem: { resourceRequests: [{ resource: storage, amount: '1073741824' }] }",
      )
      return { disk: SCRATCH_SIZE, shared: isShared }
    }
    const secret = configuration.case === 'secret' ? configuration.value : undefined
    this.#from([...to, 'secret'], [...from, 'secret'])
    for (const [ours, theirs] of [
      ['file', 'file'],
      ['text', 'contentsString'],
      ['base64', 'contents'],
    ] as const) {
      this.#from([...to, 'secret', ours], [...from, 'secret', theirs])
    }
    if (secret === undefined) {
      this.#wrong(from, 'has no secret; write secret: { file: … }')
    } else if (secret.cid.length > 0 || secret.key !== undefined) {
      this.#without(
        [...from, 'secret'],
        'secrets are not on IPFS: they go to the node with the deployment; write file',
      )
    } else {
      if (secret.file !== '') return { secret: { file: secret.file } }
      if (secret.contentsString !== '') return { secret: { text: secret.contentsString } }
      return { secret: { base64: toBase64(secret.contents) } }
    }
    return { secret: { text: '' } }
  }

  #scaling({ replicas, containers }: Pod): Record<string, unknown> {
    this.#from(['scaling'], ['replicas'])
    this.#from(['scaling', 'pending_requests'], ['replicas', 'targetPendingRequests'])
    const hasHost = containers.some(({ ports }) =>
      ports.some(({ exposedPort }) => exposedPort.case === 'hostHttpHost'),
    )
    const min = replicas?.min ?? (hasHost ? 0 : 1)
    const pending = replicas?.targetPendingRequests ?? 0
    const max = replicas?.max ?? 0
    // Theirs was whatever the cluster's autoscaler stops at: 100, at the publisher's cost.
    if (max === 0 && hasHost)
      this.#remark(
        ['replicas', 'max'],
        `there will be ${Math.max(min, 1)} replica at most; write how many there may be`,
      )
    return {
      min,
      max: max === 0 ? Math.max(min, 1) : max,
      ...(pending === 0 ? {} : { pending_requests: pending }),
    }
  }

  #from(ours: Path, theirs: Path): void {
    this.places.set(JSON.stringify(ours), theirs)
  }

  #without(path: Path, message: string): void {
    this.#wrong(path, `has no counterpart here: ${message}`)
  }

  #wrong(path: Path, message: string): void {
    this.problems.push(this.#source.problem(path, message))
  }

  #remark(path: Path, message: string): void {
    this.remarks.push(this.#source.keyProblem(path, message))
  }
}

/** A manifest in the words of our format, whose problems point at what it was. */
class TranslatedSource implements Source {
  readonly path: string
  readonly value: unknown
  readonly #origin: Source
  readonly #places: ReadonlyMap<string, Path>

  constructor(origin: Source, value: unknown, places: ReadonlyMap<string, Path>) {
    this.path = origin.path
    this.value = value
    this.#origin = origin
    this.#places = places
  }

  problem(path: Path, message: string): Problem {
    return this.#origin.problem(this.#theirs(path), message)
  }

  keyProblem(path: Path, message: string): Problem {
    return this.#origin.keyProblem(this.#theirs(path), message)
  }

  written(): undefined {
    return undefined
  }

  #theirs(path: Path): Path {
    for (let length = path.length; length >= 0; length--) {
      const theirs = this.#places.get(JSON.stringify(path.slice(0, length)))
      if (theirs !== undefined) return [...theirs, ...path.slice(length)]
    }
    return path
  }
}

/** Of what has fields, but no lines. */
class PlacelessSource implements Source {
  readonly path: string
  readonly value: unknown = undefined

  constructor(path: string) {
    this.path = path
  }

  problem(path: Path, message: string): Problem {
    return { field: formatField(path), message }
  }

  keyProblem(path: Path, message: string): Problem {
    return this.problem(path, message)
  }

  written(): undefined {
    return undefined
  }
}

/** Text with NUL in it, which a YAML file is refused for. */
function nulProblems(source: Source, value: JsonValue, path: Path): Problem[] {
  if (typeof value === 'string') {
    return value.includes('\0') ? [source.problem(path, 'has a NUL in it')] : []
  }
  if (typeof value !== 'object' || value === null) return []
  if (Array.isArray(value)) {
    return value.flatMap((item, index) => nulProblems(source, item, [...path, index]))
  }
  return Object.entries(value).flatMap(([key, held]) => [
    ...nulProblems(source, key, [...path, key]),
    ...nulProblems(source, held, [...path, key]),
  ])
}

/** Everything in `value` that is not as protobuf's JSON has `message`; fromJson would say one thing, and not where. */
function manifestProblems(
  source: Source,
  message: DescMessage,
  value: unknown,
  path: Path,
): Problem[] {
  if (value === null && path.length > 0) return []
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return [source.problem(path, 'must be a map')]
  }
  const oneofs = new Map<string, string>()
  return Object.entries(value).flatMap(([key, held]: [string, unknown]): Problem[] => {
    const at = [...path, key]
    const field = message.fields.find(({ name, jsonName }) => name === key || jsonName === key)
    if (field === undefined) {
      const near = nearestWord(
        key,
        message.fields.map(({ jsonName }) => jsonName),
      )
      const hint = near === undefined ? 'remove it' : `did you mean ${near}?`
      return [source.keyProblem(at, `there is no such field in these manifests; ${hint}`)]
    }
    if (held === null) return []
    const other = field.oneof && oneofs.get(field.oneof.name)
    if (field.oneof !== undefined) oneofs.set(field.oneof.name, key)
    const twice =
      other === undefined
        ? []
        : [source.keyProblem(at, `${other} is there already; remove one of them`)]
    return [...twice, ...fieldProblems(source, field, held, at)]
  })
}

function fieldProblems(source: Source, field: DescField, value: unknown, path: Path): Problem[] {
  if (field.fieldKind === 'list') {
    if (!Array.isArray(value)) return [source.problem(path, 'must be a list')]
    return value.flatMap((item: unknown, index) => {
      const at = [...path, index]
      if (field.listKind === 'message') {
        return item === null
          ? [source.problem(at, 'is empty')]
          : manifestProblems(source, field.message, item, at)
      }
      return typeof item === 'string'
        ? []
        : [source.problem(at, 'must be text; put it into quotes')]
    })
  }
  if (field.fieldKind === 'map') {
    if (typeof value !== 'object' || Array.isArray(value))
      return [source.problem(path, 'must be a map')]
    return Object.entries(value ?? {}).flatMap(([key, item]: [string, unknown]) =>
      typeof item === 'string'
        ? []
        : [source.problem([...path, key], 'must be text; put it into quotes')],
    )
  }
  if (field.fieldKind === 'message') return manifestProblems(source, field.message, value, path)
  try {
    const single: JsonObject = { [field.jsonName]: value as JsonValue }
    fromJson(field.parent, single)
    return []
  } catch {
    return [source.problem(path, `must be ${kindOf(field)}`)]
  }
}

function kindOf(field: DescField & { readonly fieldKind: 'scalar' | 'enum' }): string {
  if (field.fieldKind === 'enum')
    return `one of ${field.enum.values.map(({ name }) => name).join(', ')}`
  switch (field.scalar) {
    case ScalarType.STRING:
      return 'text; put it into quotes'
    case ScalarType.BYTES:
      return 'bytes in base64'
    case ScalarType.BOOL:
      return 'true or false'
    default:
      return "a whole number, as '80'"
  }
}

/** Thousandths of what is asked for. */
function millisOf({ quantity }: Resource): bigint | undefined {
  switch (quantity.case) {
    case 'amountMillis':
      return quantity.value
    case 'amount':
      return quantity.value * 1000n
    case 'amountKibi':
      return quantity.value * 1000n * 1024n
    case 'amountMebi':
      return quantity.value * 1000n * 1024n ** 2n
    case 'amountGibi':
      return quantity.value * 1000n * 1024n ** 3n
    case undefined:
      return undefined
    default:
      return quantity satisfies never
  }
}

/** A CID in binary (Trusted Pods), or as text in base32 (Apocryph), which begins with b; in CIDv1, base32. */
function cidOf(bytes: Uint8Array): string | undefined {
  try {
    const cid = bytes[0] === 0x62 ? CID.parse(new TextDecoder().decode(bytes)) : CID.decode(bytes)
    return cid.toV1().toString()
  } catch {
    return undefined
  }
}

/** `manifest-guestbook` of `deploy/manifest-guestbook.yaml`: manifests have no names of their own. */
function labelOf(path: string): string {
  const file = path.slice(path.lastIndexOf('/') + 1).replace(/\.[a-z0-9]+$/i, '')
  const label = file
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .slice(0, 40)
    .replace(/^-+|-+$/g, '')
  return label === '' ? 'pod' : label
}

function toBase64(bytes: Uint8Array): string {
  let text = ''
  for (const byte of bytes) text += String.fromCharCode(byte)
  return btoa(text)
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

/** What the Go client wrote down of a deployment, as far as it is of use to another client. */
export type OldDeploymentState = {
  readonly manifestPath?: string | undefined
  readonly provider?:
    | {
        /** 0x and 40 lower-case hex digits. */
        readonly ethereumAddress?: `0x${string}` | undefined
        /** A multiaddr, as /p2p/12D3KooW… */
        readonly libp2pAddress?: string | undefined
      }
    | undefined
  readonly payment?:
    | {
        readonly evmChainId?: bigint | undefined
        readonly contract?: `0x${string}` | undefined
        readonly publisher?: `0x${string}` | undefined
      }
    | undefined
  /** 0x and 64 hex digits. */
  readonly podId?: `0x${string}` | undefined
  readonly images: readonly OldUploadedImage[]
}

export type OldUploadedImage = {
  /** As it stands in the manifest. */
  readonly sourceUrl: string
  readonly digest: string
  /** In CIDv1, base32. */
  readonly cid?: string | undefined
  /** What it was encrypted with: a JSON Web Key or PEM. */
  readonly key?: Uint8Array | undefined
}

const bytes = (lengthMax: number, what: string) =>
  z.string({ error: `must be ${what} in base64` }).transform((text, ctx): Uint8Array => {
    try {
      // Go takes both alphabets, with or without padding.
      const decoded = atob(text.replaceAll('-', '+').replaceAll('_', '/').replace(/=+$/, ''))
      if (decoded.length <= lengthMax) {
        return Uint8Array.from(decoded, (character) => character.charCodeAt(0))
      }
    } catch {
      // Said below.
    }
    ctx.addIssue(`must be ${what} in base64`)
    return z.NEVER
  })

const hexBytes = (length: number, what: string) =>
  bytes(length, what).transform((value, ctx): `0x${string}` | undefined => {
    if (value.length === 0) return undefined
    if (value.length === length) return hexOf(value, length)
    ctx.addIssue(`must be ${what} in base64`)
    return z.NEVER
  })

const address = hexBytes(20, 'an address of 20 bytes').optional()

// Loose: later versions of the client wrote more, and nothing of it concerns us.
const oldState = z.looseObject(
  {
    podManifestFile: z.string({ error: 'must be a path' }).optional(),
    provider: z
      .looseObject({
        ethereumAddress: address,
        libp2pAddress: z.string({ error: 'must be a multiaddr' }).optional(),
      })
      .nullish(),
    payment: z
      .looseObject({
        chainID: bytes(32, 'a number of up to 32 bytes')
          .transform((value) =>
            value.length === 0 ? undefined : BigInt(hexOf(value, value.length)),
          )
          .optional(),
        paymentContractAddress: address,
        publisherAddress: address,
        // Go pads on the left what is shorter.
        podID: bytes(32, 'up to 32 bytes')
          .transform((value) => (value.length === 0 ? undefined : hexOf(value, 32)))
          .optional(),
      })
      .nullish(),
    images: z
      .array(
        z.looseObject({
          sourceUrl: z.string({ error: 'must be the name of an image' }).default(''),
          digest: z.string({ error: 'must be a digest' }).default(''),
          cid: bytes(512, 'a CID')
            .transform((value, ctx): string | undefined => {
              if (value.length === 0) return undefined
              const cid = cidOf(value)
              if (cid === undefined) ctx.addIssue('must be a CID in base64')
              return cid
            })
            .optional(),
          key: z.looseObject({ data: bytes(16 * 1024, 'a key').optional() }).nullish(),
        }),
        { error: 'must be a list' },
      )
      .max(1000, 'may have 1000 images at most')
      .nullish(),
  },
  {
    error:
      'must be the state file of a deployment: a map with podManifestFile, provider and payment',
  },
)

/** Reads the state file that `trustedpods pod deploy` keeps, in YAML or JSON. Throws DeploymentFileError. */
export function readOldDeploymentState(
  text: string | Uint8Array,
  path = 'deployment state',
): OldDeploymentState {
  const source = YamlSource.read(path, text)
  const parsed = oldState.safeParse(source.value)
  if (!parsed.success) {
    throw new DeploymentFileError(
      path,
      parsed.error.issues.map((issue) =>
        source.problem(
          issue.path.map((step) => (typeof step === 'number' ? step : String(step))),
          issue.message,
        ),
      ),
    )
  }
  const { podManifestFile, provider, payment, images } = parsed.data
  return {
    manifestPath: podManifestFile,
    provider: provider
      ? {
          ethereumAddress: provider.ethereumAddress,
          libp2pAddress: provider.libp2pAddress,
        }
      : undefined,
    payment: payment
      ? {
          evmChainId: payment.chainID,
          contract: payment.paymentContractAddress,
          publisher: payment.publisherAddress,
        }
      : undefined,
    podId: payment?.podID,
    images: (images ?? []).map(({ sourceUrl, digest, cid, key }) => ({
      sourceUrl,
      digest,
      cid,
      key: key?.data,
    })),
  }
}

function hexOf(value: Uint8Array, length: number): `0x${string}` {
  const digits = [...value].map((byte) => byte.toString(16).padStart(2, '0')).join('')
  return `0x${digits.padStart(length * 2, '0')}`
}
