import { create } from '@bufbuild/protobuf'
import {
  bytesToHex,
  hexToBytes,
  keccak256,
  recoverTypedDataAddress,
  type TypedDataDefinition,
} from 'viem'
import { type SignedCall, SignedCallSchema } from '../../proto/messages/ipdr/deploy_pb.js'

/** The header that carries a SignedCall; the suffix is Connect's for binary ones. */
export const SIGNED_CALL_HEADER = 'ipdr-signed-call-bin'

/** What a publisher signs for one call. */
export type Call = {
  /** The name of the RPC, as `Deploy`. */
  readonly operation: string
  /** The address that the pod's channel pays. */
  readonly operator: `0x${string}`
  /** Peer ID of the agent that is called. */
  readonly agent: string
  /** 32 bytes. */
  readonly podId: `0x${string}`
  /** What the request carries as its payload; empty where it has none. */
  readonly payload: Uint8Array
  /** Seconds since 1970. */
  readonly expiresAt: bigint
  /** 32 random bytes. */
  readonly nonce: `0x${string}`
  readonly evmChainId: bigint
  readonly contract: `0x${string}`
}

/** A wallet, as viem has it: a local account or one that asks its owner. */
export type CallSigner = {
  signTypedData(definition: CallTypedData): Promise<`0x${string}`>
}

const CALL_TYPES = {
  Call: [
    { name: 'operation', type: 'string' },
    { name: 'operator', type: 'address' },
    { name: 'agent', type: 'string' },
    { name: 'podId', type: 'bytes32' },
    { name: 'payloadHash', type: 'bytes32' },
    { name: 'expiresAt', type: 'uint256' },
    { name: 'nonce', type: 'bytes32' },
  ],
} as const

export type CallTypedData = TypedDataDefinition<typeof CALL_TYPES, 'Call'>

/** Has `signer` sign a call (EIP-712), for the header of its request. */
export async function signCall(call: Call, signer: CallSigner): Promise<SignedCall> {
  const payloadHash = keccak256(call.payload)
  const signature = await signer.signTypedData(typedData({ ...call, payloadHash }))
  return create(SignedCallSchema, {
    operation: call.operation,
    operator: hexToBytes(call.operator),
    agent: call.agent,
    podId: hexToBytes(call.podId),
    payloadHash: hexToBytes(payloadHash),
    expiresAt: call.expiresAt,
    nonce: hexToBytes(call.nonce),
    evmChainId: call.evmChainId,
    contract: hexToBytes(call.contract),
    signature: hexToBytes(signature),
  })
}

/** Who signed it, in lower case. Rejects with whatever viem says of fields or a signature that are none. */
export async function signerOf(signed: SignedCall): Promise<`0x${string}`> {
  const address = await recoverTypedDataAddress({
    ...typedData({
      operation: signed.operation,
      operator: bytesToHex(signed.operator),
      agent: signed.agent,
      podId: bytesToHex(signed.podId),
      payloadHash: bytesToHex(signed.payloadHash),
      expiresAt: signed.expiresAt,
      nonce: bytesToHex(signed.nonce),
      evmChainId: signed.evmChainId,
      contract: bytesToHex(signed.contract),
    }),
    signature: signed.signature,
  })
  return address.toLowerCase() as `0x${string}`
}

function typedData({
  evmChainId,
  contract,
  operation,
  operator,
  agent,
  podId,
  payloadHash,
  expiresAt,
  nonce,
}: Omit<Call, 'payload'> & { readonly payloadHash: `0x${string}` }): CallTypedData {
  return {
    domain: { name: 'IPDR deploy', version: '1', chainId: evmChainId, verifyingContract: contract },
    types: CALL_TYPES,
    primaryType: 'Call',
    message: { operation, operator, agent, podId, payloadHash, expiresAt, nonce },
  }
}
