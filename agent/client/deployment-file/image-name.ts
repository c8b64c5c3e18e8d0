import { CID } from 'multiformats/cid'
import { parseCid } from '../../../snapshotter/oci/parse-cid.ts'

/** What stands behind `image:`, or what is wrong with it. */
export type ImageName =
  /** As containerd takes it; of an image on IPFS `ipdr.internal/<CIDv1>`. */
  | { readonly kind: 'name'; readonly name: string }
  /** An archive or OCI layout on the publisher's machine. */
  | { readonly kind: 'local'; readonly path: string }
  | { readonly kind: 'wrong'; readonly message: string }

// As in snapshotter/oci/reference.ts, which wants Node for digests; this runs in browsers too.
const HOST = 'ipdr.internal/'
const DIGEST = /^(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/
const TAG = /^\w[\w.-]{0,127}$/
const PART = '[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*'
const REPOSITORY = new RegExp(`^${PART}(?:/${PART})*$`)
const REGISTRY =
  /^(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*|\[[0-9a-f:]{2,45}\])(?::\d{1,5})?$/

/** Longest reference: 255 characters of a repository, a host of 259, a tag of 128 and a digest of 135, and what divides them. */
const NAME_CHARS_MAX = 800

/** Whether `text` is a registry as it stands in names of images: `ghcr.io`, `localhost:5000`. */
export function isRegistry(text: string): boolean {
  return text.length <= 260 && REGISTRY.test(text)
}

/** Reads what names an image: a CID, `ipdr.internal/<CID>`, an image of a registry, or a path that begins with `./`, `../` or `/`. */
export function parseImageName(written: string): ImageName {
  const text = written.trim()
  if (text === '') return wrong('is empty; write ipdr.internal/<CID>, or an image of a registry')
  if (/^(?:\.\.?)?\//.test(text) && !text.startsWith('/ipfs/')) return { kind: 'local', path: text }
  if (text.length > NAME_CHARS_MAX) {
    return wrong(`has ${text.length} characters, a name of an image has ${NAME_CHARS_MAX} at most`)
  }
  const scheme = /^([a-z][a-z-]*):\/\//.exec(text)?.[1]
  if (scheme === 'docker') return parseImageName(text.slice('docker://'.length))
  if (scheme !== undefined && scheme !== 'ipfs') {
    return wrong(`is an address; write the name alone, as ${text.slice(scheme.length + 3, 80)}`)
  }
  const named = text.replace(/^ipfs:\/\//, '').replace(/^\/ipfs\//, '')
  const at = named.indexOf('@')
  const [path, digest] = at === -1 ? [named, undefined] : [named.slice(0, at), named.slice(at + 1)]
  if (digest !== undefined && !DIGEST.test(digest)) {
    return wrong(
      `has '${digest.slice(0, 80)}' for a digest; write sha256: and 64 hexadecimal digits`,
    )
  }
  const { name, tag } = splitTag(path)
  if (tag !== undefined && !TAG.test(tag)) {
    return wrong(
      `has '${tag.slice(0, 80)}' for a tag; it may have letters, digits and _ . -, 128 at most`,
    )
  }
  try {
    const isOurs = path.startsWith(HOST)
    const bare = isOurs ? name.slice(HOST.length).replace(/^ipfs\//, '') : name
    const cid = parseCid(bare)
    if (cid !== undefined) return onIpfs(cid, tag, digest)
    if (isOurs) {
      const tagged = tag === undefined ? undefined : parseCid(tag)
      if (tagged !== undefined) return onIpfs(tagged, undefined, digest)
      return wrong(`holds no CID; write ${HOST}<CID>, as ipdr push prints it`)
    }
    if (text !== named) return wrong('holds no CID; write ipfs://<CID>')
  } catch (error) {
    return wrong(error instanceof Error ? error.message : String(error))
  }
  return inRegistry(text, name)
}

function inRegistry(text: string, name: string): ImageName {
  const slash = name.indexOf('/')
  const first = name.slice(0, Math.max(slash, 0))
  const isHost = /[.:]/.test(first) || first === 'localhost'
  const repository = isHost ? name.slice(slash + 1) : name
  if (isHost && !isRegistry(first.toLowerCase())) {
    return wrong(`has '${first.slice(0, 80)}' for a registry; write a host name, as ghcr.io`)
  }
  // docker.io/library/ is left out of names of one part.
  const charsMax = repository.includes('/') ? 255 : 247
  if (REPOSITORY.test(repository) && repository.length <= charsMax)
    return { kind: 'name', name: text }
  const isCase = REPOSITORY.test(repository.toLowerCase())
  return wrong(
    isCase
      ? `has upper-case letters; write ${text.toLowerCase().slice(0, 200)}`
      : `'${text.slice(0, 80)}' is no name of an image; write ipdr.internal/<CID>, docker.io/library/nginx:1.27, or ./app.tar for an archive`,
  )
}

/** A colon after the last slash divides a tag; one before it, a port. */
function splitTag(path: string): { name: string; tag: string | undefined } {
  const colon = path.lastIndexOf(':')
  if (colon <= path.lastIndexOf('/')) return { name: path, tag: undefined }
  return { name: path.slice(0, colon), tag: path.slice(colon + 1) }
}

function onIpfs(
  { code, multihash }: CID,
  tag: string | undefined,
  digest: string | undefined,
): ImageName {
  const suffix = `${tag === undefined ? '' : `:${tag}`}${digest === undefined ? '' : `@${digest}`}`
  // Made anew: a CID that was read in mixed case is written so again.
  return { kind: 'name', name: `${HOST}${CID.createV1(code, multihash).toString()}${suffix}` }
}

function wrong(message: string): ImageName {
  return { kind: 'wrong', message }
}
