import { createPublicKey, type KeyObject } from 'node:crypto'
import { opendir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { decryptJwe } from '../../snapshotter/encryption/jwe.ts'
import {
  KEY_FILE_BYTES_MAX,
  KeyError,
  parsePrivateKey,
} from '../../snapshotter/encryption/key-file.ts'
import type { KeyUnwrapper } from '../../snapshotter/encryption/key-unwrapper.ts'
import type { WrappedKey } from '../../snapshotter/encryption/layer-encryption.ts'
import { PRIVATE_KEYS_MAX } from '../../snapshotter/encryption/private-keys.ts'
import type { Log } from '../../snapshotter/log.ts'
import { KEY_PROVIDER_NAME } from './key-provider-name.ts'
import { readSecretFile } from './read-secret-file.ts'

/** What the passphrase of an encrypted key file stands in: `alice.pem.passphrase` beside `alice.pem`. */
const PASSPHRASE_SUFFIX = '.passphrase'

/** Bytes of a passphrase file. 1 KiB, as OpenSSL reads at a prompt (PEM_BUFSIZE). */
const PASSPHRASE_BYTES_MAX = 1024

/** Names in the directory that are looked at. 384: a passphrase and a public half for each key, and as many hidden ones. */
const NAMES_MAX = 6 * PRIVATE_KEYS_MAX

/** A public half that lies beside its key opens nothing, and may be readable to all. */
const PUBLIC_NAME = /\.pub(?:\.(?:pem|jwk))?$/

/** A private key of the directory. */
export type NamedKey = {
  /** Name of its file. */
  readonly name: string
  readonly key: KeyObject
  /** Its public half. */
  readonly publicKey: KeyObject
}

type HeldKey = { readonly name: string; readonly version: string } & (
  | Omit<NamedKey, 'name'>
  /** Why the file cannot be used. */
  | { readonly problem: KeyError }
)

/**
 * The private keys in a directory: one a file, JWK or PEM, with the passphrase of an encrypted PEM in `<file>.passphrase`. Files
 * are looked at whenever a key is asked for, so that one that is added, changed or removed counts from then on. Opens what was
 * wrapped as JWE, by ocicrypt or by this agent's own key provider.
 */
export class KeyDirectory implements KeyUnwrapper {
  readonly #dir: string
  readonly #log: Pick<Log, 'warn'>
  #held: ReadonlyMap<string, HeldKey> = new Map()

  constructor(dir: string, { log }: { readonly log: Pick<Log, 'warn'> }) {
    this.#dir = dir
    this.#log = log
  }

  /** As KeyUnwrapper. Rejects with KeyError too if no key fits and there are files that cannot be used. */
  async unwrap(
    wrapped: WrappedKey,
    layer: string,
    signal: AbortSignal,
  ): Promise<Uint8Array | undefined> {
    if (wrapped.kind === 'provider' && wrapped.provider !== KEY_PROVIDER_NAME) return undefined
    const { keys, problems } = await this.keys(signal)
    for (const { key } of keys) {
      signal.throwIfAborted()
      const opened = await decryptJwe(wrapped.bytes, key, `the wrapped key of layer ${layer}`)
      if (opened !== undefined) return opened
    }
    const [first] = problems
    if (first === undefined) return undefined
    const others = problems.length === 1 ? '' : ` (and ${problems.length - 1} more)`
    throw new KeyError(
      first.code,
      `no private key in ${this.#dir} opens layer ${layer}, and not all there can be used: ${first.message}${others}`,
      { layer },
    )
  }

  /**
   * The keys as they are now, by name, and why each other file is none. Rejects with KeyError NOT_FOUND if there is no such
   * directory, RESOURCE_EXHAUSTED beyond the limits, and as the file system does.
   */
  async keys(
    signal: AbortSignal,
  ): Promise<{ readonly keys: readonly NamedKey[]; readonly problems: readonly KeyError[] }> {
    const held = new Map<string, HeldKey>()
    for (const name of await this.#names()) {
      signal.throwIfAborted()
      const before = this.#held.get(name)
      const now = await this.#hold(name, before)
      if (now === undefined) continue
      if (now !== before && 'problem' in now) {
        this.#log.warn({ file: join(this.#dir, name) }, now.problem.message)
      }
      held.set(name, now)
    }
    this.#held = held
    const all = [...held.values()]
    return {
      keys: all.flatMap((each) => ('key' in each ? [each] : [])),
      problems: all.flatMap((each) => ('problem' in each ? [each.problem] : [])),
    }
  }

  /** Names of the files that may be keys, sorted. Hidden ones are not: a mounted Secret has its versions in `..data`. */
  async #names(): Promise<string[]> {
    const names: string[] = []
    let seen = 0
    try {
      for await (const entry of await opendir(this.#dir)) {
        if (++seen > NAMES_MAX) throw this.#tooMany(`more than ${NAMES_MAX} files`)
        const { name } = entry
        if (entry.isDirectory() || name.startsWith('.')) continue
        if (!name.endsWith(PASSPHRASE_SUFFIX) && !PUBLIC_NAME.test(name)) names.push(name)
      }
    } catch (error) {
      if (!isMissing(error)) throw error
      throw new KeyError(
        'NOT_FOUND',
        `the directory of private keys ${this.#dir} does not exist: make it (mode 700) and put the keys in it, or configure another`,
        { dir: this.#dir },
      )
    }
    if (names.length <= PRIVATE_KEYS_MAX) return names.toSorted()
    throw this.#tooMany(`${names.length} keys`)
  }

  #tooMany(what: string): KeyError {
    return new KeyError(
      'RESOURCE_EXHAUSTED',
      `the directory of private keys ${this.#dir} has ${what}, ${PRIVATE_KEYS_MAX} keys are tried: remove those that are not needed`,
      { dir: this.#dir },
    )
  }

  /** The key in a file, read again only if the file or its passphrase changed; undefined if it is gone by now. */
  async #hold(name: string, before: HeldKey | undefined): Promise<HeldKey | undefined> {
    const path = join(this.#dir, name)
    const key = await versionAt(path)
    if (key === undefined) return undefined
    const version = `${key} ${(await versionAt(path + PASSPHRASE_SUFFIX)) ?? ''}`
    if (before?.version === version) return before
    try {
      const key = await readKey(path)
      return { name, version, key, publicKey: createPublicKey(key) }
    } catch (error) {
      if (isMissing(error)) return undefined
      return { name, version, problem: asKeyError(error, path) }
    }
  }
}

async function readKey(path: string): Promise<KeyObject> {
  const bytes = await readSecretFile(path, KEY_FILE_BYTES_MAX)
  const passphrase = await readPassphrase(path + PASSPHRASE_SUFFIX)
  try {
    return parsePrivateKey(bytes, path, passphrase)
  } catch (error) {
    const isLocked = error instanceof KeyError && error.code === 'PERMISSION_DENIED'
    if (!isLocked) throw error
    throw new KeyError(
      error.code,
      `${error.message}: put it into ${path}${PASSPHRASE_SUFFIX}, with mode 600`,
    )
  }
}

async function readPassphrase(path: string): Promise<string | undefined> {
  try {
    const bytes = await readSecretFile(path, PASSPHRASE_BYTES_MAX)
    // The newline that an editor ends a file with is no part of it.
    return Buffer.from(bytes)
      .toString('utf8')
      .replace(/\r?\n$/, '')
  } catch (error) {
    if (isMissing(error)) return undefined
    throw error
  }
}

/** What tells that a file was changed or replaced: its time of status change cannot be set back. Undefined if there is none. */
async function versionAt(path: string): Promise<string | undefined> {
  try {
    const { dev, ino, size, mode, ctimeNs } = await stat(path, { bigint: true })
    return [dev, ino, size, mode, ctimeNs].join(':')
  } catch (error) {
    if (isMissing(error)) return undefined
    throw error
  }
}

function asKeyError(error: unknown, path: string): KeyError {
  if (error instanceof KeyError) return error
  const why = error instanceof Error ? error.message : String(error)
  return new KeyError('FAILED_PRECONDITION', `the key file ${path} cannot be read: ${why}`)
}

function isMissing(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ENOENT'
}
