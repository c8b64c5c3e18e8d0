import { base16, base16upper } from 'multiformats/bases/base16'
import { base32, base32hex, base32hexupper, base32upper, base32z } from 'multiformats/bases/base32'
import { base36, base36upper } from 'multiformats/bases/base36'
import { base58btc, base58flickr } from 'multiformats/bases/base58'
import { base64, base64pad, base64url, base64urlpad } from 'multiformats/bases/base64'
import { CID } from 'multiformats/cid'
import { ImageError } from '../errors.ts'

/** Longest CID as text that is looked at: identity CIDs carry up to 128 bytes of content, twice that in base16, and room. */
const CID_CHARS_MAX = 512

/** Codec of a public key: the CID form of an IPNS name (multicodec table). */
const LIBP2P_KEY = 0x72

const anyBase = base32.decoder
  .or(base36.decoder)
  .or(base16.decoder)
  .or(base58btc.decoder)
  .or(base64url.decoder)
  .or(base32upper.decoder)
  .or(base36upper.decoder)
  .or(base16upper.decoder)
  .or(base32hex.decoder)
  .or(base32hexupper.decoder)
  .or(base32z.decoder)
  .or(base58flickr.decoder)
  .or(base64.decoder)
  .or(base64pad.decoder)
  .or(base64urlpad.decoder)

/**
 * A CID in any version and multibase, answered as CIDv1; undefined if `text` is no CID.
 * Throws ImageError INVALID_ARGUMENT for an IPNS name, which looks like one.
 */
export function parseCid(text: string): CID | undefined {
  if (text.length > CID_CHARS_MAX) return undefined
  let cid: CID
  try {
    const { code, multihash } = CID.parse(text, anyBase)
    // Anew: one that was parsed would be written as it was read, capitals and all.
    cid = CID.createV1(code, multihash)
  } catch {
    return undefined
  }
  if (cid.code === LIBP2P_KEY) {
    throw new ImageError(
      'INVALID_ARGUMENT',
      `${text} is an IPNS name, which can change; resolve it to the CID of an image first (ipfs name resolve)`,
      { cid: text },
    )
  }
  return cid
}
