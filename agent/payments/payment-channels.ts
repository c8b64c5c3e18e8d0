import { encodeFunctionData, type Hex, parseAbi } from 'viem'
import type { Log } from '../../snapshotter/log.ts'
import { ChannelError } from './channel-error.ts'
import { RpcEndpoint } from './rpc-endpoint.ts'

/** The same in every contract that is in use, whatever else differs between them. */
const CONTRACT = parseAbi([
  'function channels(address publisher, address provider, bytes32 podId) view returns (uint256 investedByPublisher, uint256 withdrawnByProvider, uint256 unlockTime, uint256 unlockedAt)',
  'function token() view returns (address)',
])

/** Who pays whom for which pod, and where that is written down. */
export type ChannelId = {
  readonly publisher: Hex
  readonly operator: Hex
  /** 32 bytes. */
  readonly podId: Hex
  readonly contract: Hex
  readonly evmChainId: bigint
}

/** Amounts are in base units of the contract's token, since the channel was made. */
export type ChannelState = {
  /** What the publisher paid in: `investedByPublisher`. */
  readonly deposit: bigint
  /** What the operator took out of it: `withdrawnByProvider`. Never more than `deposit`. */
  readonly redeemed: bigint
  /** Seconds from the publisher's wish to have the rest back until he may take it: `unlockTime`. */
  readonly unlockSeconds: bigint
  /** From when on he may, in seconds since 1970; 0: he has not asked for it. */
  readonly unlockedAt: bigint
}

export interface ChannelReader {
  /**
   * The channel as of the latest block, or undefined if there is none. Rejects with ChannelError UNAVAILABLE, FAILED_PRECONDITION or
   * INVALID_ARGUMENT if that cannot be known, or with what `signal` aborts with.
   */
  read(id: ChannelId, signal: AbortSignal): Promise<ChannelState | undefined>
}

export type PaymentChannelsConfig = {
  /** JSON-RPC servers of the chain, by HTTP, in the order in which they are asked. */
  readonly rpcUrls: readonly string[]
  readonly evmChainId: bigint
  /** Of one request to one server, in ms, more than 0. A channel takes up to four requests to each. */
  readonly timeoutMs: number
}

/** The channels of the payment contracts of one chain. */
export class PaymentChannels implements ChannelReader {
  readonly #endpoints: readonly RpcEndpoint[]
  readonly #evmChainId: bigint
  readonly #log: Pick<Log, 'warn'>

  /** Asks nothing yet. Throws ChannelError INVALID_ARGUMENT for a URL that is none, or if there is no URL. */
  constructor(
    { rpcUrls, evmChainId, timeoutMs }: PaymentChannelsConfig,
    { log }: { readonly log: Pick<Log, 'warn'> },
  ) {
    if (rpcUrls.length === 0) {
      throw new ChannelError(
        'INVALID_ARGUMENT',
        'payments need the URL of at least one RPC server of their chain',
      )
    }
    this.#endpoints = rpcUrls.map((url) => new RpcEndpoint(url, { evmChainId, timeoutMs }))
    this.#evmChainId = evmChainId
    this.#log = log
  }

  async read(id: ChannelId, signal: AbortSignal): Promise<ChannelState | undefined> {
    const { publisher, operator, podId, contract, evmChainId } = id
    if (evmChainId !== this.#evmChainId) {
      throw new ChannelError(
        'INVALID_ARGUMENT',
        `the payment channel is on EVM chain ${evmChainId}, payments are taken on ${this.#evmChainId}: create one there`,
        { evmChainId },
      )
    }
    const data = encodeFunctionData({
      abi: CONTRACT,
      functionName: 'channels',
      args: [publisher, operator, podId],
    })
    return await this.#firstAnswer(async (endpoint) => {
      const words = await endpoint.readWords(contract, data, 4, signal)
      const [deposit = 0n, redeemed = 0n, unlockSeconds = 0n, unlockedAt = 0n] = words
      if (redeemed > deposit) throw endpoint.nonsense('that more was redeemed than deposited')
      if (deposit > 0n) return { deposit, redeemed, unlockSeconds, unlockedAt }
      // The contract's own rule of whether there is one. A node that lags behind would say so of every new channel.
      await endpoint.mustBeInStep(signal)
      return undefined
    })
  }

  /** The token in which this contract pays, in lower case. Rejects as `read` does. */
  async readToken(contract: Hex, signal: AbortSignal): Promise<Hex> {
    const data = encodeFunctionData({ abi: CONTRACT, functionName: 'token' })
    return await this.#firstAnswer(async (endpoint): Promise<Hex> => {
      const [word = 0n] = await endpoint.readWords(contract, data, 1, signal)
      if (word >> 160n !== 0n) throw endpoint.nonsense('token() with what is no address')
      return `0x${word.toString(16).padStart(40, '0')}`
    })
  }

  /** Of the first server that has one. Failures of those before it are logged, since nobody else learns of them. */
  async #firstAnswer<T>(ask: (endpoint: RpcEndpoint) => Promise<T>): Promise<T> {
    const failures: ChannelError[] = []
    for (const endpoint of this.#endpoints) {
      try {
        const answer = await ask(endpoint)
        for (const { code, facts, message } of failures) this.#log.warn({ ...facts, code }, message)
        return answer
      } catch (error) {
        if (!(error instanceof ChannelError)) throw error
        failures.push(error)
      }
    }
    const [only] = failures
    if (only !== undefined && failures.length === 1) throw only
    // As long as one of them may still have another answer, it is worth asking again.
    const isFinal = failures.every(({ code }) => code === 'FAILED_PRECONDITION')
    throw new ChannelError(
      isFinal ? 'FAILED_PRECONDITION' : 'UNAVAILABLE',
      `none of ${failures.length} RPC servers can tell: ${failures.map(({ message }) => message).join('; ')}`,
    )
  }
}
