import { createHash, hash } from 'node:crypto'
import { ImageError } from '../errors.ts'

/** Digest algorithms that an OCI descriptor may use, with the hex digits each one has (OCI image-spec, descriptor.md). */
export const DIGEST_ALGORITHMS: Readonly<Record<'sha256' | 'sha512', number>> = {
  sha256: 64,
  sha512: 128,
}
export type DigestAlgorithm = keyof typeof DIGEST_ALGORITHMS

/** `algorithm:hex` in lower case: what names a manifest, config or layer in OCI. */
export type Digest = `${DigestAlgorithm}:${string}`

/** The parts of a digest. Throws ImageError INVALID_ARGUMENT, naming what is wrong with `text`. */
export function parseDigest(text: string): { algorithm: DigestAlgorithm; hex: string } {
  const colon = text.indexOf(':')
  const algorithm = text.slice(0, Math.max(colon, 0))
  const hex = text.slice(colon + 1)
  const shown = text.length > 160 ? `${text.slice(0, 160)}…` : text
  if (algorithm !== 'sha256' && algorithm !== 'sha512') {
    const problem =
      colon < 1
        ? 'has no algorithm in front of a colon'
        : `uses ${algorithm.slice(0, 32)}; sha256 and sha512 are understood`
    throw new ImageError('INVALID_ARGUMENT', `digest ${shown} ${problem}`, { digest: shown })
  }
  const digits = DIGEST_ALGORITHMS[algorithm]
  if (hex.length !== digits || !/^[0-9a-f]+$/.test(hex)) {
    throw new ImageError(
      'INVALID_ARGUMENT',
      `digest ${shown} must have ${digits} lower-case hex digits after ${algorithm}:`,
      { digest: shown },
    )
  }
  return { algorithm, hex }
}

/** Whether `text` is a well-formed digest of an algorithm we can check. */
export function isDigest(text: string): text is Digest {
  try {
    parseDigest(text)
    return true
  } catch {
    return false
  }
}

/** The digest of `bytes`. */
export function digestOf(bytes: Uint8Array, algorithm: DigestAlgorithm = 'sha256'): Digest {
  return `${algorithm}:${hash(algorithm, bytes, 'hex')}`
}

/** Throws ImageError DATA_LOSS if `bytes`, which `what` names, do not have this digest. */
export function verifyDigest(bytes: Uint8Array, digest: string, what: string): void {
  const { algorithm } = parseDigest(digest)
  const actual = digestOf(bytes, algorithm)
  if (actual !== digest) throw digestMismatch(what, digest, actual)
}

/** Checks a digest over bytes that come in pieces. */
export class DigestCheck {
  readonly #digest: string
  readonly #algorithm: DigestAlgorithm
  readonly #hash: ReturnType<typeof createHash>

  /** Throws as `parseDigest`. */
  constructor(digest: string) {
    this.#digest = digest
    this.#algorithm = parseDigest(digest).algorithm
    this.#hash = createHash(this.#algorithm)
  }

  update(bytes: Uint8Array): void {
    this.#hash.update(bytes)
  }

  /** Call once, after the last piece. Throws ImageError DATA_LOSS if the bytes seen are not those of the digest. */
  verify(what: string): void {
    const actual = `${this.#algorithm}:${this.#hash.digest('hex')}`
    if (actual !== this.#digest) throw digestMismatch(what, this.#digest, actual)
  }
}

function digestMismatch(what: string, wanted: string, actual: string): ImageError {
  return new ImageError(
    'DATA_LOSS',
    `${what}: its bytes have digest ${actual}, asked for was ${wanted}`,
    { wanted, actual },
  )
}
