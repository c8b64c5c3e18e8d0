import { decodeBinaryHeader } from '@connectrpc/connect'
import { bytesToHex, keccak256 } from 'viem'
import { type SignedCall, SignedCallSchema } from '../../proto/messages/ipdr/deploy_pb.js'
import { SIGNED_CALL_HEADER, signerOf } from '../client/signed-call.ts'
import { CallError } from './call-error.ts'

/** How far ahead a call may expire, in seconds. 10 min: an owner has to find the wallet's window, and clocks differ. */
const EXPIRY_SECONDS_MAX = 600

/** As text: 1 KiB is three times of what the fields come to. */
const HEADER_CHARS_MAX = 2_048

/** Who this agent is to publishers. */
export type CalledAgent = {
  /** What channels pay, in lower case. */
  readonly operator: `0x${string}`
  readonly peerId: string
  /** Chains and payment contracts that count; contracts in lower case. */
  readonly accepted: readonly { readonly evmChainId: bigint; readonly contract: `0x${string}` }[]
}

/** A call that its publisher has signed for us, for this operation, and until now. */
export type AuthenticCall = {
  readonly publisher: `0x${string}`
  readonly podId: `0x${string}`
  readonly evmChainId: bigint
  readonly contract: `0x${string}`
  /** Of this call alone, and how long it is good, in seconds since 1970. */
  readonly id: Uint8Array
  readonly expiresAt: number
}

/**
 * Checks the header of a call. `now` is in seconds since 1970. Rejects with CallError UNAUTHENTICATED that says which field is not as it must
 * be, DEADLINE_EXCEEDED for one that has expired.
 */
export async function authenticate(
  header: string | null,
  { operation, payload }: { readonly operation: string; readonly payload: Uint8Array },
  agent: CalledAgent,
  now: number,
): Promise<AuthenticCall> {
  const signed = decode(header)
  if (signed.operation !== operation) {
    throw refused(
      'operation',
      `was signed for '${signed.operation.slice(0, 60)}', not '${operation}'`,
    )
  }
  const operator = hexOf(signed.operator, 20, 'operator')
  if (operator !== agent.operator) {
    throw refused('operator', `is ${operator}, but this cluster is paid at ${agent.operator}`)
  }
  if (signed.agent !== agent.peerId) {
    throw refused('agent', `is '${signed.agent.slice(0, 80)}', but this is ${agent.peerId}`)
  }
  const contract = hexOf(signed.contract, 20, 'contract')
  const { evmChainId } = signed
  if (!agent.accepted.some((one) => one.evmChainId === evmChainId && one.contract === contract)) {
    throw refused(
      'contract',
      `${contract} on chain ${evmChainId} is none that is accepted here; ask for Capacity`,
    )
  }
  const podId = hexOf(signed.podId, 32, 'pod_id')
  hexOf(signed.nonce, 32, 'nonce')
  if (hexOf(signed.payloadHash, 32, 'payload_hash') !== keccak256(payload)) {
    throw refused('payload_hash', 'is of another payload than the one that was sent')
  }
  const expiresAt = Number(signed.expiresAt)
  if (expiresAt <= now) {
    throw new CallError(
      'DEADLINE_EXCEEDED',
      `signed call: it expired ${Math.ceil(now - expiresAt)} s ago; sign anew, and look at the clocks if it was not that long ago`,
    )
  }
  if (expiresAt > now + EXPIRY_SECONDS_MAX) {
    throw refused(
      'expires_at',
      `is ${Math.ceil(expiresAt - now)} s ahead, it may be ${EXPIRY_SECONDS_MAX}`,
    )
  }
  return {
    publisher: await publisherOf(signed),
    podId,
    evmChainId,
    contract,
    id: signed.nonce,
    expiresAt,
  }
}

function decode(header: string | null): SignedCall {
  if (header === null) {
    throw new CallError(
      'UNAUTHENTICATED',
      `the header ${SIGNED_CALL_HEADER} is missing: every call is signed by the publisher's key`,
    )
  }
  if (header.length > HEADER_CHARS_MAX)
    throw refused('header', `has ${header.length} characters, it may have ${HEADER_CHARS_MAX}`)
  try {
    return decodeBinaryHeader(header, SignedCallSchema)
  } catch {
    throw refused('header', 'is no SignedCall in base64')
  }
}

async function publisherOf(signed: SignedCall): Promise<`0x${string}`> {
  if (signed.signature.length !== 65)
    throw refused('signature', `has ${signed.signature.length} bytes, not 65`)
  try {
    return await signerOf(signed)
  } catch {
    throw refused('signature', 'is none of secp256k1')
  }
}

function hexOf(bytes: Uint8Array, length: number, field: string): `0x${string}` {
  if (bytes.length !== length) throw refused(field, `has ${bytes.length} bytes, not ${length}`)
  return bytesToHex(bytes)
}

function refused(field: string, what: string): CallError {
  return new CallError('UNAUTHENTICATED', `signed call: ${field} ${what}`, { field })
}
