import type { KeyUnwrapper } from './key-unwrapper.ts'

/** The keys of a node, and who may use them. */
export interface KeyRing {
  /** Every key that is here: bytes are decrypted with it, for whoever may then see them. */
  readonly all: KeyUnwrapper
  /** The keys that pods of a Kubernetes namespace may use: those of the node, and its own. */
  of(namespace: string): KeyUnwrapper
}

/** A node without keys. */
export const NO_KEYS: KeyRing = {
  all: { unwrap: () => Promise.resolve(undefined) },
  of: () => NO_KEYS.all,
}
