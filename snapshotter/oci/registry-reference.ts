import { ImageError } from '../errors.ts'
import { isDigest, parseDigest } from './digest.ts'
import { checkRepository, checkTag, DEFAULT_TAG } from './reference.ts'

/** A repository in a registry. */
export type RegistryPlace = {
  /** Host name or address, with a port if it is written: docker.io, 127.0.0.1:5000, [::1]:5000. */
  readonly host: string
  /** `<name>` of OCI distribution-spec. */
  readonly repository: string
}

/** An image in a registry: `selector` is a tag or a digest. */
export type RegistryReference = RegistryPlace & { readonly selector: string }

/** What a reference without a host means (containers' reference grammar, "familiar names"). */
const DEFAULT_HOST = 'docker.io'

/** Longest reference, in characters: 255 of the repository, a host of 253 with its port, a tag of 128 and a digest of 135. */
const REFERENCE_CHARS_MAX = 800

/** Labels of letters, digits and hyphens, or an IPv6 address in brackets; a port. */
const HOST =
  /^(?:(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]{2,45}\])(?::[0-9]{1,5})?$/

/**
 * Reads `[host/]repository[:tag][@digest]` as docker and containerd do: debian is docker.io/library/debian:latest, and a digest
 * wins over a tag. Throws ImageError INVALID_ARGUMENT.
 */
export function parseRegistryReference(text: string): RegistryReference {
  if (text.length > REFERENCE_CHARS_MAX) {
    throw new ImageError(
      'INVALID_ARGUMENT',
      `an image reference has ${text.length} characters, it may have ${REFERENCE_CHARS_MAX}`,
    )
  }
  const at = text.indexOf('@')
  const [named, digest] = at === -1 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)]
  if (digest !== undefined) parseDigest(digest)
  const { host, path } = splitHost(named)
  const colon = path.indexOf(':')
  const [name, tag] =
    colon === -1 ? [path, undefined] : [path.slice(0, colon), path.slice(colon + 1)]
  const repository = host === DEFAULT_HOST && !name.includes('/') ? `library/${name}` : name
  checkRepository(repository)
  if (tag !== undefined) checkTag(tag, text)
  return { host, repository, selector: digest ?? tag ?? DEFAULT_TAG }
}

/** Whether `text` is a host as `parseRegistryReference` gives it. */
export function isRegistryHost(text: string): boolean {
  return HOST.test(text) && text === text.toLowerCase() && text !== 'index.docker.io'
}

/** `host/repository:tag` or `host/repository@digest`. */
export function formatRegistryReference({ host, repository, selector }: RegistryReference): string {
  return `${host}/${repository}${isDigest(selector) ? '@' : ':'}${selector}`
}

/** What stands before the first slash is a host if it cannot be a part of a name: it has a dot or a port, or is localhost. */
function splitHost(named: string): { host: string; path: string } {
  const slash = named.indexOf('/')
  const first = named.slice(0, Math.max(slash, 0))
  const isHost = slash > 0 && (/[.:]/.test(first) || first === 'localhost' || /[A-Z]/.test(first))
  if (!isHost) return { host: DEFAULT_HOST, path: named }
  // In lower case, one of a single word would be taken for a part of the name.
  const isWord = !/[.:]/.test(first) && first !== 'localhost'
  if (isWord || !HOST.test(first) || first.length > 260) {
    throw new ImageError(
      'INVALID_ARGUMENT',
      `'${first.slice(0, 200)}' is not the host of a registry`,
    )
  }
  const host = first.toLowerCase()
  return { host: host === 'index.docker.io' ? DEFAULT_HOST : host, path: named.slice(slash + 1) }
}
