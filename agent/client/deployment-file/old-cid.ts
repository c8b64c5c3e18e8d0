import { CID } from 'multiformats/cid'

/** A CID in binary (Trusted Pods), or as text in base32 (Apocryph), which begins with b; answered in CIDv1, base32. Undefined if it is neither. */
export function oldCid(bytes: Uint8Array): string | undefined {
  try {
    const cid = bytes[0] === 0x62 ? CID.parse(new TextDecoder().decode(bytes)) : CID.decode(bytes)
    return cid.toV1().toString()
  } catch {
    return undefined
  }
}
