import {
  type Container,
  type Container_Port,
  type Pod,
  type Resource,
  type Volume,
  Volume_AccessMode,
  Volume_VolumeType,
} from '../../../proto/messages/apocryph/pod_pb.js'
import type { Problem } from '../deployment-file-error.ts'
import { oldCid } from './old-cid.ts'
import type { Path, Source } from './yaml-source.ts'

/** What a volume of theirs that is empty at every start gets: they name no size. */
const SCRATCH_SIZE = '1GiB'

/** A manifest in the words of our own format, what is wrong with it by itself, and what was made up. */
export type TranslatedManifest = {
  /** Its problems point at what it was. */
  readonly source: Source
  readonly problems: readonly Problem[]
  readonly remarks: readonly Problem[]
}

/** Puts a manifest of Trusted Pods or Apocryph, which `source` says the places of, into the words of our format. */
export function translateManifest(source: Source, pod: Pod): TranslatedManifest {
  const { value, problems, remarks, places } = new Translation(source, pod)
  return { source: new TranslatedSource(source, value, places), problems, remarks }
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
    const cid = oldCid(image.cid)
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
