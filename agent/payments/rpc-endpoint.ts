import { type Client, createClient, type Hex, http } from 'viem'
import { ChannelError } from './channel-error.ts'

/** Of one answer, in bytes. 1 MiB: a thousand times what a channel takes, and an error with a stack trace still fits. */
const ANSWER_BYTES_MAX = 1024 * 1024

/** JSON-RPC codes by which servers say that they were asked too often: EIP-1474, Alchemy, QuickNode. */
const LIMIT_CODES: readonly number[] = [-32005, 429, -32007]

/** JSON-RPC codes of a server that does not know a method: JSON-RPC 2.0, EIP-1474. */
const UNKNOWN_METHOD_CODES: readonly number[] = [-32601, -32004]

/** What the caller of a method may have to know of an error that the server answered with. */
type RefusalFacts = {
  readonly rpcCode?: number | undefined
  readonly isReverted?: boolean
}

/** A JSON-RPC server of an EVM chain: slow, lying or of another chain until shown otherwise. */
export class RpcEndpoint {
  /** All that may be shown of its URL: keys stand in the path, the query and before the host. */
  readonly host: string
  readonly #client: Client
  readonly #evmChainId: bigint
  readonly #timeoutMs: number
  #isOfChain = false

  /** `timeoutMs` is of one request, its answer included. Throws ChannelError INVALID_ARGUMENT for what is no URL of HTTP. */
  constructor(
    url: string,
    { evmChainId, timeoutMs }: { readonly evmChainId: bigint; readonly timeoutMs: number },
  ) {
    const { protocol, host } = URL.canParse(url) ? new URL(url) : { protocol: '', host: '' }
    if (protocol !== 'http:' && protocol !== 'https:') {
      throw new ChannelError(
        'INVALID_ARGUMENT',
        `the URL of an RPC server must begin with https:// or http://${host === '' ? '' : `, that of ${host} too`}`,
      )
    }
    this.host = host
    this.#evmChainId = evmChainId
    this.#timeoutMs = timeoutMs
    this.#client = createClient({
      transport: http(url, {
        timeout: timeoutMs,
        maxResponseBodySize: ANSWER_BYTES_MAX,
        // Whoever calls knows better whether to wait, or to ask another server.
        retryCount: 0,
        // Another host must not see what is asked, nor answer it.
        fetchOptions: { redirect: 'error' },
      }),
    })
  }

  /**
   * The `count` words of 256 bits with which a contract answers a call, as of the latest block. Rejects with ChannelError UNAVAILABLE (no
   * answer, or none that can be one), FAILED_PRECONDITION (another chain, or no such contract); or with what `signal` aborts with.
   */
  async readWords(
    contract: Hex,
    data: Hex,
    count: number,
    signal: AbortSignal,
  ): Promise<readonly bigint[]> {
    try {
      if (!this.#isOfChain) await this.#mustBeOfChain(signal)
      this.#isOfChain = true
      const reply = await this.#call(contract, data, signal)
      if (reply === '0x') throw await this.#silent(contract, signal)
      return this.#wordsOf(reply, count, contract)
    } catch (error) {
      // What is behind the URL may have changed with what went wrong.
      this.#isOfChain = false
      throw error
    }
  }

  /** Rejects with ChannelError UNAVAILABLE if the server says that it has not seen the newest blocks yet. */
  async mustBeInStep(signal: AbortSignal): Promise<void> {
    let syncing: unknown
    try {
      syncing = await this.#request('eth_syncing', [], signal)
    } catch (error) {
      // Some public servers offer no such method: they only show nodes that are in step.
      if (error instanceof ChannelError && isOneOf(error.facts['rpcCode'], UNKNOWN_METHOD_CODES)) {
        return
      }
      throw error
    }
    if (syncing === false) return
    this.#isOfChain = false
    throw this.#unavailable('is still catching up with its chain: try again later')
  }

  /** An answer that this server gave, and that cannot be true. */
  nonsense(what: string): ChannelError {
    this.#isOfChain = false
    return this.#unavailable(`answers ${what}: have another server configured in its place`)
  }

  async #mustBeOfChain(signal: AbortSignal): Promise<void> {
    const reply = await this.#request('eth_chainId', [], signal)
    // 64 bits are more than any chain has; a longer one would only fill a message.
    if (typeof reply !== 'string' || !/^0x[0-9a-f]{1,16}$/i.test(reply)) {
      throw this.nonsense('eth_chainId with what is no number')
    }
    if (BigInt(reply) === this.#evmChainId) return
    throw new ChannelError(
      'FAILED_PRECONDITION',
      `RPC server ${this.host} is of EVM chain ${BigInt(reply)}, the configuration says ${this.#evmChainId}: correct the one that is wrong`,
      { host: this.host, evmChainId: BigInt(reply) },
    )
  }

  async #call(contract: Hex, data: Hex, signal: AbortSignal): Promise<unknown> {
    try {
      return await this.#request('eth_call', [{ to: contract, data }, 'latest'], signal)
    } catch (error) {
      if (error instanceof ChannelError && error.facts['isReverted'] === true) {
        throw this.#foreign(contract)
      }
      throw error
    }
  }

  /** Why a contract answers a call with no byte. */
  async #silent(contract: Hex, signal: AbortSignal): Promise<ChannelError> {
    const code = await this.#request('eth_getCode', [contract, 'latest'], signal)
    if (code !== '0x') return this.#foreign(contract)
    await this.mustBeInStep(signal)
    return new ChannelError(
      'FAILED_PRECONDITION',
      `there is no contract at ${contract} on EVM chain ${this.#evmChainId}: check the address of the payment contract, and on which chain it is`,
      { host: this.host, contract },
    )
  }

  #foreign(contract: Hex): ChannelError {
    return new ChannelError(
      'FAILED_PRECONDITION',
      `the contract at ${contract} on EVM chain ${this.#evmChainId} is no payment contract: check its address`,
      { host: this.host, contract },
    )
  }

  #wordsOf(reply: unknown, count: number, contract: Hex): readonly bigint[] {
    if (typeof reply !== 'string' || !/^0x[0-9a-f]*$/i.test(reply)) {
      throw this.nonsense('eth_call with what are no bytes')
    }
    // Exactly: a word more, or one too long, shows that it is not the answer to this call.
    if (reply.length !== 2 + 64 * count) {
      throw this.#unavailable(
        `answers with ${(reply.length - 2) / 2} bytes in place of ${32 * count}: check that ${contract} is a payment contract, or have another server configured`,
      )
    }
    return Array.from({ length: count }, (_, word) =>
      BigInt(`0x${reply.slice(2 + 64 * word, 2 + 64 * (word + 1))}`),
    )
  }

  /** Answers of the server are `unknown`, whatever the types of a method promise. */
  async #request(
    method: string,
    params: readonly unknown[],
    signal: AbortSignal,
  ): Promise<unknown> {
    const request = this.#client.request as (
      question: { readonly method: string; readonly params: readonly unknown[] },
      options: { readonly signal: AbortSignal },
    ) => Promise<unknown>
    try {
      return await request({ method, params }, { signal })
    } catch (error) {
      signal.throwIfAborted()
      throw this.#explained(error)
    }
  }

  /** viem's errors name the whole URL, and what the server wrote may repeat it: only codes are taken from them. */
  #explained(error: unknown): ChannelError {
    const causes = causesOf(error)
    const named = (name: string): Error | undefined => causes.find((cause) => cause.name === name)
    if (named('TimeoutError') !== undefined) {
      return this.#unavailable(
        `has not answered in ${this.#timeoutMs} ms: try again, or have another server configured beside it`,
      )
    }
    if (named('ResponseBodyTooLargeError') !== undefined) {
      return this.nonsense(`more than ${ANSWER_BYTES_MAX} bytes`)
    }
    const failed = named('RpcRequestError')
    if (failed !== undefined) return this.#refused(failed)
    const status = numberOf(named('HttpRequestError'), 'status')
    if (status !== undefined) return this.#answered(status)
    const system = causes.find((cause) => 'code' in cause && typeof cause.code === 'string')
    if (system !== undefined && 'code' in system) {
      return this.#unavailable(
        `cannot be reached (${String(system.code)}): check that it runs, and its URL in the configuration`,
      )
    }
    if (named('SyntaxError') !== undefined || named('HttpRequestError') === undefined) {
      return this.nonsense('with what is no JSON-RPC')
    }
    return this.#unavailable(
      'cannot be reached: check that it runs, and its URL in the configuration',
    )
  }

  /** An answer of JSON-RPC that is an error, be it with a status of HTTP that says so too. */
  #refused(error: Error): ChannelError {
    const rpcCode = numberOf(error, 'code')
    if (isOneOf(rpcCode, LIMIT_CODES)) return this.#limited(`code ${rpcCode}`)
    const isReverted = rpcCode === 3 || /revert/i.test(String(Reflect.get(error, 'details')))
    const facts = { rpcCode, isReverted }
    const status = numberOf(error, 'status')
    if (status !== undefined) return this.#answered(status, facts)
    return this.#unavailable(
      `answers with an error, code ${rpcCode ?? 'unknown'}: try again, or have another server configured beside it`,
      facts,
    )
  }

  /** An answer of HTTP that is an error. */
  #answered(status: number, facts: RefusalFacts = {}): ChannelError {
    if (status === 429) return this.#limited('HTTP 429')
    const todo =
      status === 401 || status === 403
        ? 'check the credentials in its URL'
        : 'try again, or have another server configured beside it'
    return this.#unavailable(`answers HTTP ${status}: ${todo}`, facts)
  }

  #limited(how: string): ChannelError {
    return this.#unavailable(
      `says that it is asked too often (${how}): try again later, or have another server configured beside it`,
    )
  }

  #unavailable(what: string, facts: RefusalFacts = {}): ChannelError {
    return new ChannelError('UNAVAILABLE', `RPC server ${this.host} ${what}`, {
      host: this.host,
      ...facts,
    })
  }
}

function causesOf(error: unknown): readonly Error[] {
  return error instanceof Error ? [error, ...causesOf(error.cause)] : []
}

/** One that the server chose, so that it can be anything. */
function numberOf(error: Error | undefined, name: 'code' | 'status'): number | undefined {
  const value: unknown = error === undefined ? undefined : Reflect.get(error, name)
  return Number.isSafeInteger(value) ? Number(value) : undefined
}

function isOneOf(code: unknown, codes: readonly number[]): boolean {
  return typeof code === 'number' && codes.includes(code)
}
