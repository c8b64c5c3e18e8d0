import { getHashes, hash, subtle } from 'node:crypto'
import { blake2b } from '@noble/hashes/blake2.js'
import { blake3 } from '@noble/hashes/blake3.js'
import type { CID } from 'multiformats/cid'
import { BlockError } from '../errors.ts'

/** Codes of the multicodec table for the hashes we check. */
const IDENTITY = 0x00
const BLAKE2B_8 = 0xb201
const BLAKE2B_512 = 0xb240
const BLAKE3 = 0x1e
const SHA2_256 = 0x12
const SHA2_256_BYTES = 32

/** Smaller blocks are hashed at once: handing one to another thread takes 15 us, as long as hashing 32 KiB. */
const ASIDE_BYTES_MIN = 32 * 1024

/** Hashes that OpenSSL has under its own name, by multicodec. */
const OPENSSL: ReadonlyMap<number, string> = new Map([
  [0x11, 'sha1'],
  [0x12, 'sha256'],
  [0x13, 'sha512'],
  [0x14, 'sha3-512'],
  [0x15, 'sha3-384'],
  [0x16, 'sha3-256'],
  [0x17, 'sha3-224'],
  [0x20, 'sha384'],
  [0x1013, 'sha224'],
  [0x1014, 'sha512-224'],
  [0x1015, 'sha512-256'],
  [0xb260, 'blake2s256'],
])

/** Shortest digest that names a block, in bytes. 20: kubo's lower bound, the length of SHA-1, which git objects use. */
const DIGEST_BYTES_MIN = 20

/**
 * Checks that `bytes` are the block that `cid` names. Throws BlockError: DATA_LOSS with both digests if they are not,
 * UNIMPLEMENTED naming the hash code if we cannot tell.
 */
export function verifyBlock(cid: CID, bytes: Uint8Array): void {
  const { code, size, digest: wanted } = cid.multihash
  if (code !== IDENTITY && size < DIGEST_BYTES_MIN) {
    throw new BlockError(
      'UNIMPLEMENTED',
      `block ${cid.toString()} is named by a digest of ${size} bytes; fewer than ${DIGEST_BYTES_MIN} can be forged`,
      { cid: cid.toString(), digestBytes: size },
    )
  }
  const whole = code === IDENTITY ? bytes : blockDigest(code, size, bytes)
  if (whole === undefined) {
    throw new BlockError(
      'UNIMPLEMENTED',
      `block ${cid.toString()} is named by multihash 0x${code.toString(16)}, which cannot be checked here; import the content again with sha2-256`,
      { cid: cid.toString(), hashCode: code },
    )
  }
  // A digest may be cut short (multihash spec); DIGEST_BYTES_MIN bounds how short.
  const actual = code === IDENTITY ? whole : whole.subarray(0, size)
  if (Buffer.compare(actual, wanted) !== 0) throw blockMismatch(cid, bytes.length, actual)
}

/**
 * As `verifyBlock`, beside the calling thread where the block is large: a SHA-256 of 2 MiB keeps it for a millisecond. `bytes` may not
 * change until it settles.
 */
export async function verifyBlockAside(cid: CID, bytes: Uint8Array): Promise<void> {
  const { code, size, digest: wanted } = cid.multihash
  if (code !== SHA2_256 || size !== SHA2_256_BYTES || bytes.length < ASIDE_BYTES_MIN) {
    verifyBlock(cid, bytes)
    return
  }
  const actual = new Uint8Array(await subtle.digest('SHA-256', bytes))
  if (Buffer.compare(actual, wanted) !== 0) throw blockMismatch(cid, bytes.length, actual)
}

/** The bytes of a block whose CID carries them, or undefined. They are read without asking anybody. */
export function inlineBlock(cid: CID): Uint8Array | undefined {
  return cid.multihash.code === IDENTITY ? cid.multihash.digest : undefined
}

/** The whole digest of `bytes` by the multihash `code`, or undefined if we do not have that hash. `size` is for blake3, of any length. */
export function blockDigest(code: number, size: number, bytes: Uint8Array): Uint8Array | undefined {
  if (code > BLAKE2B_8 && code <= BLAKE2B_512)
    return blake2b(bytes, { dkLen: code - BLAKE2B_8 + 1 })
  if (code === BLAKE3) return blake3(bytes, { dkLen: size })
  const name = OPENSSL.get(code)
  return name === undefined || !supported.has(name) ? undefined : hash(name, bytes, 'buffer')
}

// A FIPS build of OpenSSL has fewer.
const supported: ReadonlySet<string> = new Set(getHashes().map((name) => name.toLowerCase()))

function blockMismatch(cid: CID, length: number, actual: Uint8Array): BlockError {
  const hex = Buffer.from(actual.subarray(0, 64)).toString('hex')
  const wanted = Buffer.from(cid.multihash.digest.subarray(0, 64)).toString('hex')
  return new BlockError(
    'DATA_LOSS',
    `block ${cid.toString()}: ${length} bytes with digest ${hex} came, its CID says ${wanted}`,
    { cid: cid.toString(), actual: hex, wanted, bytes: length },
  )
}
