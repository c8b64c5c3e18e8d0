import { CallError } from './call-error.ts'
import type { DeployConfig, OfferConfig } from './deploy-config.ts'
import type { PodSpec } from './pod-spec.ts'
import { type AuthenticCall, authenticate, type CalledAgent } from './signed-calls.ts'
import type { UsedCall, UsedCalls } from './used-calls.ts'

/** A pod's payment channel. */
export type PodChannel = {
  readonly publisher: `0x${string}`
  readonly operator: `0x${string}`
  readonly podId: `0x${string}`
  readonly contract: `0x${string}`
  readonly evmChainId: bigint
}

/** What stands on the chain. */
export type Funds = {
  /** For how many seconds a pod's channel lasts at this rate; undefined: nothing that it asks for has a price. Rejects if it must not be deployed. */
  secondsOf(
    channel: PodChannel,
    pod: PodSpec,
    offer: OfferConfig,
    signal: AbortSignal,
  ): Promise<bigint | undefined>
}

type Parts = {
  readonly peerId: string
  readonly used: UsedCalls
  readonly funds: Funds
  /** Seconds since 1970. */
  readonly now: () => number
}

/** Decides who may call, for what, and whether the pod is paid for. */
export class Admission {
  readonly #config: Pick<DeployConfig, 'operator' | 'publishers' | 'chain' | 'offers'>
  readonly #agent: CalledAgent
  readonly #parts: Parts

  constructor(
    config: Pick<DeployConfig, 'operator' | 'publishers' | 'chain' | 'offers'>,
    parts: Parts,
  ) {
    this.#config = config
    this.#parts = parts
    const { operator, chain, offers } = config
    this.#agent = {
      operator,
      peerId: parts.peerId,
      accepted: offers.map(({ contract }) => ({ evmChainId: chain.id, contract })),
    }
  }

  get now(): number {
    return this.#parts.now()
  }

  /** Rejects with CallError unless its publisher has signed just this call, and may be here. */
  async authenticate(
    header: string | null,
    call: { readonly operation: string; readonly payload: Uint8Array },
  ): Promise<AuthenticCall> {
    const authentic = await authenticate(header, call, this.#agent, this.now)
    this.mayBeHere(authentic.publisher)
    return authentic
  }

  /** Throws CallError PERMISSION_DENIED for a publisher who is not on the operator's list, where there is one. */
  mayBeHere(publisher: `0x${string}`): void {
    const { publishers } = this.#config
    if (publishers === undefined || publishers.includes(publisher)) return
    throw new CallError(
      'PERMISSION_DENIED',
      `${publisher} is not among the publishers of this cluster; ask its operator`,
      { publisher },
    )
  }

  /** As `Funds`. Rejects with CallError for a channel of another chain, operator or contract. */
  async fundedSeconds(
    channel: PodChannel,
    pod: PodSpec,
    signal: AbortSignal,
  ): Promise<bigint | undefined> {
    const { chain, operator, offers } = this.#config
    const offer = offers.find(({ contract }) => contract === channel.contract)
    if (channel.evmChainId !== chain.id) {
      throw unpaid(`chain ${channel.evmChainId} is not ${chain.id}, the one that is paid on here`)
    }
    if (channel.operator !== operator) {
      throw unpaid(`it pays ${channel.operator}, but this cluster is paid at ${operator}`)
    }
    if (offer === undefined) {
      const accepted = offers.map(({ contract }) => contract).join(', ')
      throw unpaid(`contract ${channel.contract} is not accepted here; these are: ${accepted}`)
    }
    return await this.#parts.funds.secondsOf(channel, pod, offer, signal)
  }

  /** Has a call be carried out once. Throws CallError. */
  use(call: UsedCall): void {
    this.#parts.used.use(call, this.now)
  }
}

function unpaid(what: string): CallError {
  return new CallError('FAILED_PRECONDITION', `payment channel: ${what}`)
}
