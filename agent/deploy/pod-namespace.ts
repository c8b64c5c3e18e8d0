import { base32 } from 'multiformats/bases/base32'
import { concatBytes, hexToBytes, keccak256 } from 'viem'

/** The namespace of a publisher's pod, as Trusted Pods names it: `tpod-` and 52 characters. Both are in hex, of 20 and 32 bytes. */
export function namespaceOf(publisher: `0x${string}`, podId: `0x${string}`): string {
  const digest = keccak256(concatBytes([hexToBytes(publisher), hexToBytes(podId)]), 'bytes')
  return `tpod-${base32.baseEncode(digest)}`
}
