import type { Problem } from '../deployment-file-error.ts'
import { DEPLOYMENT_LIMITS } from '../deployment-limits.ts'
import { isDevice, NAME_PATTERN } from '../deployment-names.ts'
import { envEntries, envProblems } from './environment.ts'
import { NAME_RULE } from './format.ts'
import { isRegistry } from './image-name.ts'
import { nearestWord } from './nearest-word.ts'
import type { Path, Source } from './yaml-source.ts'

const LIMITS = DEPLOYMENT_LIMITS

const utf8 = new TextEncoder()

type Fields = Readonly<Record<string, unknown>>

/** Entries of a map and where they are; of anything else, which zod complains of, none. */
function entriesOf(
  value: unknown,
  path: Path,
): { key: string; value: Fields; raw: unknown; path: Path }[] {
  return Object.entries(fieldsOf(value)).map(([key, raw]) => ({
    key,
    value: fieldsOf(raw),
    raw,
    path: [...path, key],
  }))
}

function itemsOf(value: unknown, path: Path): { value: Fields; raw: unknown; path: Path }[] {
  if (!Array.isArray(value)) return []
  return value.map((raw: unknown, index) => ({ value: fieldsOf(raw), raw, path: [...path, index] }))
}

function fieldsOf(value: unknown): Fields {
  return isMap(value) ? value : {}
}

function isMap(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/**
 * What is wrong between fields, of a file that may have other faults: all of them are to be said at once, so nothing here relies on the
 * shape of the rest.
 */
export function crossChecks(source: Source): { problems: Problem[]; remarks: Problem[] } {
  const checks = new CrossChecks(source)
  checks.containers()
  checks.volumes()
  checks.scaling()
  checks.logins()
  return checks
}

class CrossChecks {
  readonly problems: Problem[] = []
  readonly remarks: Problem[] = []
  readonly #source: Source
  readonly #top: Fields
  readonly #volumes: readonly string[]
  readonly #mounted = new Set<string>()
  readonly #portNames = new Map<string, Path>()
  readonly #hosts = new Set<string>()
  readonly #nodePorts = new Set<number>()
  readonly #listeners = new Map<number, string>()

  constructor(source: Source) {
    this.#source = source
    this.#top = fieldsOf(source.value)
    this.#volumes = Object.keys(fieldsOf(this.#top['volumes']))
  }

  containers(): void {
    const containers = entriesOf(this.#top['containers'], ['containers'])
    this.#checkNames(containers, LIMITS.containersMax, 'containers')
    if (containers.length === 0 && isMap(this.#top['containers'])) {
      this.#wrong(['containers'], 'is empty; a pod needs one container at least')
    }
    for (const { key, value, path } of containers) {
      const env = [...path, 'environment']
      for (const { path: at, message } of envProblems(this.#source, value['environment'], env)) {
        if (at.length > env.length) this.problems.push(this.#source.keyProblem(at, message))
        else this.#wrong(at, message)
      }
      this.#words(value, path)
      const listening = new Set<number>()
      for (const port of itemsOf(value['ports'], [...path, 'ports']))
        this.#port(key, port, listening)
      this.#mounts(value['volumes'], [...path, 'volumes'])
      const devices = entriesOf(value['devices'], [...path, 'devices'])
      if (devices.length > LIMITS.devicesMax) {
        this.#wrong(
          [...path, 'devices'],
          `has ${devices.length} kinds of devices, there may be ${LIMITS.devicesMax}`,
        )
      }
      for (const device of devices) {
        if (isDevice(device.key)) continue
        const message = 'is no name of a device; write it as Kubernetes does, as nvidia.com/gpu'
        this.problems.push(this.#source.keyProblem(device.path, message))
      }
    }
  }

  volumes(): void {
    const volumes = entriesOf(this.#top['volumes'], ['volumes'])
    this.#checkNames(volumes, LIMITS.volumesMax, 'volumes')
    const scaling = fieldsOf(this.#top['scaling'])
    const isMany = typeof scaling['max'] === 'number' && scaling['max'] > 1
    for (const { key, value, raw, path } of volumes) {
      if (raw === null || typeof raw !== 'object') continue
      this.#oneOf(value, path, ['disk', 'scratch', 'secret'])
      if (value['shared'] !== undefined && value['disk'] === undefined) {
        this.problems.push(
          this.#source.keyProblem([...path, 'shared'], 'only a disk can be shared; remove it'),
        )
      }
      if (typeof value['secret'] === 'object' && value['secret'] !== null) {
        this.#oneOf(
          fieldsOf(value['secret']),
          [...path, 'secret'],
          ['file', 'text', 'base64', 'env'],
        )
      }
      if (!this.#mounted.has(key)) this.#remark(path, 'no container mounts this volume')
      if (
        value['disk'] !== undefined &&
        value['shared'] !== true &&
        isMany &&
        this.#top['stateful'] !== true
      ) {
        this.#remark(
          path,
          'replicas on different nodes cannot use this disk together; shared: true or stateful: true lets them run anywhere',
        )
      }
    }
  }

  scaling(): void {
    const { min = 1, max } = fieldsOf(this.#top['scaling'])
    if (typeof min !== 'number') return
    if (min === 0 && this.#top['stateful'] === true) {
      this.#wrong(['scaling', 'min'], 'a stateful pod cannot sleep; write 1 or more')
    }
    if (typeof max === 'number' && min > max) {
      this.#wrong(['scaling', 'max'], `is less than min; write ${min} or more`)
    }
    if (min === 0 && this.#hosts.size === 0) {
      this.#wrong(
        ['scaling', 'min'],
        'nothing would wake it: it sleeps until an HTTP request comes, and no port has a host; write 1, or give a port a host',
      )
    }
  }

  logins(): void {
    const logins = entriesOf(this.#top['logins'], ['logins'])
    if (logins.length > LIMITS.loginsMax) {
      this.#wrong(['logins'], `has ${logins.length} logins, there may be ${LIMITS.loginsMax}`)
    }
    for (const { key, value, raw, path } of logins) {
      if (!isRegistry(key) || key.startsWith('[')) {
        this.problems.push(
          this.#source.keyProblem(
            path,
            'is no registry; write a host as it stands in names of images, as ghcr.io',
          ),
        )
      }
      if (raw !== null && typeof raw === 'object')
        this.#oneOf(value, path, ['password_file', 'password_env'])
    }
  }

  #port(
    container: string,
    { value, path }: { readonly value: Fields; readonly path: Path },
    listening: Set<number>,
  ): void {
    const { name, host, tcp, container: number } = value
    if (typeof name === 'string') {
      const other = this.#portNames.get(name)
      if (other !== undefined) {
        this.#wrong(
          [...path, 'name'],
          `'${name.slice(0, 80)}' is the name of another port too; names of ports are unique in the pod`,
        )
      }
      this.#portNames.set(name, path)
    }
    if (host !== undefined && tcp !== undefined) {
      this.problems.push(
        this.#source.keyProblem(
          [...path, 'tcp'],
          'a port has host or tcp; write a second port with another name',
        ),
      )
    }
    if (typeof host === 'string') {
      const folded = host.toLowerCase()
      if (this.#hosts.has(folded)) {
        this.#wrong(
          [...path, 'host'],
          `'${host.slice(0, 80)}' is the host of another port too; requests can go to one`,
        )
      }
      this.#hosts.add(folded)
    }
    if (typeof tcp === 'number') {
      if (this.#nodePorts.has(tcp))
        this.#wrong(
          [...path, 'tcp'],
          `${tcp} is the port of another entry too; write auto, or another one`,
        )
      this.#nodePorts.add(tcp)
    }
    if (typeof number === 'number') {
      const at = [...path, 'container']
      if (listening.has(number))
        this.#wrong(
          at,
          `${number} is the port of another entry too; a port of a container has one entry`,
        )
      listening.add(number)
      const other = this.#listeners.get(number)
      if (other !== undefined && other !== container) {
        this.#remark(
          at,
          `${other.slice(0, 40)} has port ${number} too; containers of a pod share one network, so only one can listen on it`,
        )
      }
      this.#listeners.set(number, container)
    }
  }

  /** Words and variables of a container are handed to its process as one piece. */
  #words({ entrypoint, command, environment }: Fields, path: Path): void {
    const { argumentsMax, wordsBytesMax } = LIMITS
    const words = [entrypoint, command].flatMap((list): unknown[] =>
      Array.isArray(list) ? list : [],
    )
    const variables = envEntries(this.#source, environment, [...path, 'environment'])
    if (words.length > argumentsMax) {
      this.#wrong(
        path,
        `entrypoint and command have ${words.length} words, there may be ${argumentsMax}`,
      )
    }
    const bytes = [
      ...words.map(String),
      ...variables.flatMap(({ name, value }) => [name, value]),
    ].reduce((sum, text) => sum + utf8.encode(text).length, 0)
    if (bytes > wordsBytesMax) {
      this.#wrong(
        path,
        `command and variables have ${bytes} bytes, there may be ${wordsBytesMax}; put long values into secrets`,
      )
    }
  }

  #mounts(written: unknown, at: Path): void {
    const paths = new Set<string>()
    for (const { value, raw, path } of itemsOf(written, at)) {
      const [volume, place] =
        typeof raw === 'string' ? raw.split(':') : [value['volume'], value['path']]
      const volumePath = typeof raw === 'string' ? path : [...path, 'volume']
      if (typeof volume === 'string') {
        this.#mounted.add(volume)
        if (!this.#volumes.includes(volume)) this.#wrong(volumePath, this.#unknownVolume(volume))
      }
      if (typeof place !== 'string') continue
      const folded = place.replace(/\/+/g, '/').replace(/(.)\/$/, '$1')
      if (paths.has(folded))
        this.#wrong(path, `something else is mounted at ${place.slice(0, 80)} already`)
      paths.add(folded)
    }
  }

  #unknownVolume(volume: string): string {
    if (/^[.~]?\//.test(volume) || volume.startsWith('.')) {
      return 'folders of this machine are not there on the node; write the name of a volume, and for a file a volume with secret'
    }
    const near = nearestWord(volume, this.#volumes)
    const shown = `there is no volume '${volume.slice(0, 80)}'`
    if (near !== undefined) return `${shown}; did you mean ${near}?`
    return `${shown}; write it below volumes, as ${volume.slice(0, 40)}: { disk: 1GiB }`
  }

  #checkNames(
    entries: readonly { readonly key: string; readonly path: Path }[],
    max: number,
    what: string,
  ): void {
    const [first] = entries
    if (first !== undefined && entries.length > max) {
      this.#wrong(first.path.slice(0, -1), `has ${entries.length} ${what}, there may be ${max}`)
    }
    for (const { key, path } of entries) {
      if (NAME_PATTERN.test(key)) continue
      this.problems.push(
        this.#source.keyProblem(
          path,
          `'${key.slice(0, 80)}' is no name for an object of the cluster; ${NAME_RULE}`,
        ),
      )
    }
  }

  #oneOf(value: Fields, path: Path, names: readonly string[]): void {
    const given = names.filter((name) => value[name] !== undefined)
    const [first, second] = given
    if (first === undefined) this.#wrong(path, `must have ${orList(names)}`)
    if (second !== undefined) {
      this.problems.push(
        this.#source.keyProblem(
          [...path, second],
          `${first} is there already; there may be one of ${orList(names)}`,
        ),
      )
    }
  }

  #wrong(path: Path, message: string): void {
    this.problems.push(this.#source.problem(path, message))
  }

  #remark(path: Path, message: string): void {
    this.remarks.push(this.#source.keyProblem(path, message))
  }
}

function orList(words: readonly string[]): string {
  return `${words.slice(0, -1).join(', ')} or ${words.at(-1)}`
}
