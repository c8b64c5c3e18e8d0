import type { CID } from 'multiformats/cid'
import { ImageError } from '../errors.ts'
import { isDigest, parseDigest } from './digest.ts'
import { parseCid } from './parse-cid.ts'

/** The reserved registry host: hosts.toml sends what is pulled from it to this node's registry. */
export const IMAGE_HOST = 'ipdr.internal'

/** The tag that clients add when none is written, so it says nothing (containers' reference grammar). */
export const DEFAULT_TAG = 'latest'

/** Whether a tag names what was said of an image, and no image: signatures, attestations, lists of contents (sigstore/cosign), referrers. */
export function isTagOfArtifact(tag: string): boolean {
  return /^sha(?:256-[0-9a-f]{64}|512-[0-9a-f]{128})(?:\.(?:sig|att|sbom))?$/.test(tag)
}

/** Longest repository name, in characters (OCI distribution-spec and containers' reference grammar). */
const REPOSITORY_CHARS_MAX = 255

/** `<name>` and tag of OCI distribution-spec, "Pulling manifests". */
const REPOSITORY =
  /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$/
const TAG = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/

/** Which manifest of which image: a tag or digest under a root CID (always CIDv1). */
export type ImageReference = { readonly root: CID; readonly selector: string }

/**
 * Reads `ipdr.internal/<cid>`, `ipdr.internal/ipfs/<cid>` (each with `:tag` or `@digest` or both), `ipdr.internal/app:<cid>`, and the
 * short forms without host: `<cid>`, `/ipfs/<cid>` and `ipfs://<cid>`. Throws ImageError INVALID_ARGUMENT with what to write instead.
 */
export function parseImageReference(text: string): ImageReference {
  const [named, digest] = splitOnce(text.replace(/^ipfs:\/\//, '').replace(/^\/ipfs\//, ''), '@')
  if (digest !== undefined) parseDigest(digest)
  const path = named.startsWith(`${IMAGE_HOST}/`) ? named.slice(IMAGE_HOST.length + 1) : undefined
  if (path === undefined) {
    const [bare, tag] = splitOnce(named, ':')
    const root = parseCid(bare)
    if (root !== undefined) return { root, selector: digest ?? checkTag(tag ?? DEFAULT_TAG, text) }
    throw new ImageError(
      'INVALID_ARGUMENT',
      `${shorten(text)} is neither a CID nor an image of ${IMAGE_HOST}; write ${IMAGE_HOST}/<cid>`,
      { reference: shorten(text) },
    )
  }
  const [repository, tag] = splitOnce(path, ':')
  const reference = resolveReference(repository, tag ?? DEFAULT_TAG)
  if (reference !== undefined)
    return digest === undefined ? reference : { root: reference.root, selector: digest }
  throw new ImageError(
    'INVALID_ARGUMENT',
    `${shorten(text)} holds no CID; write ${IMAGE_HOST}/<cid> or ${IMAGE_HOST}/<any name>:<cid>`,
    { reference: shorten(text) },
  )
}

/**
 * Which image a registry request means: `repository` is the `<name>` and `reference` the tag or digest of OCI distribution-spec.
 * Undefined if neither holds a CID. Throws ImageError INVALID_ARGUMENT for names and tags that the spec does not allow.
 */
export function resolveReference(
  repository: string,
  reference: string,
): ImageReference | undefined {
  checkRepository(repository)
  const selector = isDigest(reference) ? reference : checkTag(reference, reference)
  const named = parseCid(repository.startsWith('ipfs/') ? repository.slice(5) : repository)
  if (named !== undefined) return { root: named, selector }
  const tagged = isDigest(reference) ? undefined : parseCid(reference)
  return tagged && { root: tagged, selector: DEFAULT_TAG }
}

/** Throws ImageError INVALID_ARGUMENT unless `repository` is a legal `<name>`; explains CIDs with upper-case letters. */
export function checkRepository(repository: string): void {
  const legal = repository.length <= REPOSITORY_CHARS_MAX && REPOSITORY.test(repository)
  if (legal) return
  const cid = parseCid(repository.slice(repository.lastIndexOf('/') + 1))
  const shown = shorten(repository)
  if (cid !== undefined && /[A-Z]/.test(repository)) {
    throw new ImageError(
      'INVALID_ARGUMENT',
      `${shown} has upper-case letters, which a repository name may not have; the same CID in lower case is ${cid.toString()}, so write ${IMAGE_HOST}/${cid.toString()}, or keep it as a tag: ${IMAGE_HOST}/app:${shown}`,
      { repository: shown, cid: cid.toString() },
    )
  }
  throw new ImageError(
    'INVALID_ARGUMENT',
    `${shown} is not a repository name: lower-case letters, digits and . _ - between them, parts divided by /, ${REPOSITORY_CHARS_MAX} characters at most; put a CIDv1 in base32 there (ipfs cid base32 <cid>)`,
    { repository: shown },
  )
}

/** Throws ImageError INVALID_ARGUMENT unless `tag` is a legal one; `shown` is what was written. */
export function checkTag(tag: string, shown: string): string {
  if (TAG.test(tag)) return tag
  if (tag.includes(':')) parseDigest(tag) // Says what is wrong with a digest that is not one.
  throw new ImageError(
    'INVALID_ARGUMENT',
    `${shorten(shown)}: the tag must be a letter, digit or _ and up to 127 more of these, . and -`,
    { tag: shorten(tag) },
  )
}

function splitOnce(text: string, separator: string): [string, string | undefined] {
  const at = text.indexOf(separator)
  return at === -1 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)]
}

function shorten(text: string): string {
  return text.length > 200 ? `${text.slice(0, 200)}…` : text
}
