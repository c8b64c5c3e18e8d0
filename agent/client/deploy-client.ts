import { create, toBinary } from '@bufbuild/protobuf'
import {
  type CallOptions,
  type Client,
  Code,
  ConnectError,
  createClient,
  encodeBinaryHeader,
} from '@connectrpc/connect'
import { createConnectTransport } from '@connectrpc/connect-web'
import type { Libp2p } from '@libp2p/interface'
import { type Multiaddr, multiaddr } from '@multiformats/multiaddr'
import { bytesToHex } from 'viem'
import {
  type CapacityResponse,
  type DeleteProgress,
  type Deployment,
  DeploymentSchema,
  type DeployProgress,
  DeployService,
  type LogLine,
  type LogsRequest,
  type PodEvent,
  type PodSummary,
  SignedCallSchema,
  type StatusResponse,
} from '../../proto/messages/ipdr/deploy_pb.js'
import { type CallSigner, SIGNED_CALL_HEADER, signCall } from './signed-call.ts'
import { streamFetch } from './stream-fetch.ts'

/** libp2p's name of the service. */
export const DEPLOY_PROTOCOL = '/ipdr/deploy/1.0.0'

/** How long a signed call is good, in seconds: the way there, and clocks that differ. */
const EXPIRY_SECONDS = 120

/** Whose pods, and what pays for them. */
export type Publisher = {
  readonly signer: CallSigner
  /** The payment contract; undefined: the first that the agent accepts. */
  readonly contract?: `0x${string}` | undefined
}

/** A pod of the publisher: 32 bytes in hex that he chose. */
export type PodId = `0x${string}`

/** What a call that is about no pod in particular is signed for. */
const NO_POD: PodId = `0x${'0'.repeat(64)}`

/**
 * An agent's deploy endpoint, over a libp2p host of Node or a browser. Every method rejects with Connect's ConnectError, whose message
 * says what to do.
 */
export class DeployClient {
  readonly #service: Client<typeof DeployService>
  readonly #publisher: Publisher
  #terms: Promise<CapacityResponse> | undefined

  /** `addresses` are the agent's multiaddrs, with `/p2p/<peer ID>`. Nothing is dialled before the first call. */
  constructor(
    libp2p: Pick<Libp2p, 'dialProtocol'>,
    addresses: readonly string[],
    publisher: Publisher,
  ) {
    const peers: Multiaddr[] = addresses.map((address) => multiaddr(address))
    const fetch = streamFetch(async (signal) => {
      try {
        return await libp2p.dialProtocol(peers, DEPLOY_PROTOCOL, {
          ...(signal && { signal }),
          runOnLimitedConnection: true,
        })
      } catch (error) {
        signal?.throwIfAborted()
        throw unreachable(addresses, error)
      }
    })
    const transport = createConnectTransport({
      // Names no host: streams lead to the peer.
      baseUrl: 'http://agent',
      fetch,
      useBinaryFormat: true,
    })
    this.#service = createClient(DeployService, transport)
    this.#publisher = publisher
  }

  /** What is free there, and at which price. */
  async capacity(signal?: AbortSignal): Promise<CapacityResponse> {
    return await this.#service.capacity({}, options(signal))
  }

  /** Makes or changes a pod; ends when it is ready. Who stops listening does not stop it. */
  async *deploy(
    podId: PodId,
    deployment: Pick<Deployment, 'pod'> & Partial<Pick<Deployment, 'mode'>>,
    signal?: AbortSignal,
  ): AsyncGenerator<DeployProgress> {
    const { pod, mode } = deployment
    const payload = toBinary(
      DeploymentSchema,
      create(DeploymentSchema, { ...(pod && { pod }), ...(mode !== undefined && { mode }) }),
    )
    const signed = await this.#signed('Deploy', podId, { signal, payload })
    yield* this.#service.deploy({ payload }, signed)
  }

  /** Deletes a pod with its volumes; ends when all is gone. */
  async *delete(podId: PodId, signal?: AbortSignal): AsyncGenerator<DeleteProgress> {
    yield* this.#service.delete({}, await this.#signed('Delete', podId, { signal }))
  }

  /** The publisher's pods there. */
  async list(signal?: AbortSignal): Promise<PodSummary[]> {
    const { pods } = await this.#service.list({}, await this.#signed('List', NO_POD, { signal }))
    return pods
  }

  async status(podId: PodId, signal?: AbortSignal): Promise<StatusResponse> {
    return await this.#service.status({}, await this.#signed('Status', podId, { signal }))
  }

  async *logs(
    podId: PodId,
    wanted: Partial<Omit<LogsRequest, '$typeName' | '$unknown'>> = {},
    signal?: AbortSignal,
  ): AsyncGenerator<LogLine> {
    yield* this.#service.logs(wanted, await this.#signed('Logs', podId, { signal }))
  }

  async *events(podId: PodId, follow = false, signal?: AbortSignal): AsyncGenerator<PodEvent> {
    yield* this.#service.events({ follow }, await this.#signed('Events', podId, { signal }))
  }

  async #signed(
    operation: string,
    podId: PodId,
    {
      signal,
      payload = new Uint8Array(),
    }: { readonly signal: AbortSignal | undefined; readonly payload?: Uint8Array },
  ): Promise<CallOptions> {
    // Asked for once; again if it failed.
    this.#terms ??= this.capacity(signal)
    const asked = this.#terms
    asked.catch(() => {
      if (this.#terms === asked) this.#terms = undefined
    })
    const { operator, agent, evmChainId, offers } = await asked
    const [offer] = offers
    const call = await signCall(
      {
        operation,
        operator: bytesToHex(operator),
        agent,
        podId,
        payload,
        expiresAt: BigInt(Math.floor(Date.now() / 1_000) + EXPIRY_SECONDS),
        nonce: bytesToHex(crypto.getRandomValues(new Uint8Array(32))),
        evmChainId,
        contract: this.#publisher.contract ?? bytesToHex(offer?.contract ?? new Uint8Array(20)),
      },
      this.#publisher.signer,
    )
    const headers = { [SIGNED_CALL_HEADER]: encodeBinaryHeader(call, SignedCallSchema) }
    return { ...options(signal), headers }
  }
}

function unreachable(addresses: readonly string[], cause: unknown): ConnectError {
  const reason = cause instanceof Error ? cause.message : String(cause)
  const message = `the agent at ${addresses.join(', ')} cannot be reached: ${reason}; is the address the one that its operator gives, and is it running?`
  return new ConnectError(message, Code.Unavailable, undefined, undefined, cause)
}

function options(signal: AbortSignal | undefined): CallOptions {
  return signal === undefined ? {} : { signal }
}
