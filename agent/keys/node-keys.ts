import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { KeyError } from '../../snapshotter/encryption/key-file.ts'
import type { KeyRing } from '../../snapshotter/encryption/key-ring.ts'
import type { KeyUnwrapper } from '../../snapshotter/encryption/key-unwrapper.ts'
import { KeyUnwrappers } from '../../snapshotter/encryption/key-unwrappers.ts'
import type { Log } from '../../snapshotter/log.ts'
import { KeyDirectory } from './key-directory.ts'

/** A Kubernetes namespace: a DNS label (RFC 1123). */
const NAMESPACE = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/

/** Namespaces that may have keys of their own. 256: twice the pods that Kubernetes puts on a node unless told otherwise. */
const NAMESPACES_MAX = 256

/**
 * The keys in a directory: those directly in it for every pod of the node, those in a sub-directory for pods of the
 * namespace with its name. Key providers are asked for every pod. All is looked at anew whenever a key is asked for.
 */
export class NodeKeys implements KeyRing {
  readonly all: KeyUnwrapper
  readonly #dir: string | undefined
  readonly #log: Pick<Log, 'warn'>
  readonly #providers: readonly KeyUnwrapper[]
  readonly #directories = new Map<string, KeyDirectory>()

  constructor(
    { keysDir }: { readonly keysDir?: string | undefined },
    {
      providers,
      log,
    }: { readonly providers: readonly KeyUnwrapper[]; readonly log: Pick<Log, 'warn'> },
  ) {
    this.#dir = keysDir
    this.#log = log
    this.#providers = providers
    this.all = {
      unwrap: async (...asked) =>
        new KeyUnwrappers([...this.#shared(), ...(await this.#scoped())]).unwrap(...asked),
    }
  }

  /** The keys for every pod of the node; undefined if the configuration names no directory. */
  get nodeWide(): KeyDirectory | undefined {
    return this.#dir === undefined ? undefined : this.#directory('.')
  }

  of(namespace: string): KeyUnwrapper {
    return {
      unwrap: async (...asked) => {
        const own = (await this.#namespaces()).includes(namespace)
          ? [this.#directory(namespace)]
          : []
        return new KeyUnwrappers([...own, ...this.#shared()]).unwrap(...asked)
      },
    }
  }

  #shared(): KeyUnwrapper[] {
    return this.nodeWide === undefined ? [...this.#providers] : [this.nodeWide, ...this.#providers]
  }

  async #scoped(): Promise<KeyUnwrapper[]> {
    return (await this.#namespaces()).map((namespace) => this.#directory(namespace))
  }

  async #namespaces(): Promise<string[]> {
    if (this.#dir === undefined) return []
    const entries = await readdir(this.#dir, { withFileTypes: true }).catch(() => [])
    const names = entries
      .filter((entry) => entry.isDirectory() && NAMESPACE.test(entry.name))
      .map(({ name }) => name)
    if (names.length <= NAMESPACES_MAX) return names
    throw new KeyError(
      'RESOURCE_EXHAUSTED',
      `${this.#dir} has keys for ${names.length} namespaces, ${NAMESPACES_MAX} may have some`,
      { dir: this.#dir },
    )
  }

  #directory(name: string): KeyDirectory {
    const known = this.#directories.get(name)
    if (known !== undefined) return known
    const directory = new KeyDirectory(join(this.#dir ?? '', name), { log: this.#log })
    this.#directories.set(name, directory)
    return directory
  }
}
