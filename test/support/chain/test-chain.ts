import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import {
  type Abi,
  type Client,
  createClient,
  encodeDeployData,
  encodeFunctionData,
  type Hex,
  http,
  type PublicActions,
  parseAbi,
  publicActions,
  type TestActions,
  testActions,
} from 'viem'
import { Daemon } from '../daemon.ts'
import type { Scratch } from '../scratch.ts'
import { compileContract } from './compile-contract.ts'

const CHANNELS_SOURCE = join(import.meta.dirname, 'prepaid-channels.sol')
const TOKEN_SOURCE = join(import.meta.dirname, 'test-token.sol')

const CHANNELS = parseAbi([
  'constructor(address token)',
  'function createChannel(address provider, bytes32 podId, uint256 unlockTime, uint256 initialAmount)',
  'function deposit(address provider, bytes32 podId, uint256 amount)',
  'function unlock(address provider, bytes32 podId)',
  'function withdrawUnlocked(address provider, bytes32 podId)',
  'function closeChannel(address provider, bytes32 podId)',
  'function withdrawUpTo(address publisher, bytes32 podId, uint256 total, address to)',
  'function available(address publisher, address provider, bytes32 podId) view returns (uint256)',
  'error AlreadyExists()',
  'error DoesNotExist()',
  'error AmountRequired()',
  'error ChannelLocked()',
  'error InsufficientFunds()',
])
const TOKEN = parseAbi([
  'constructor(uint256 supply)',
  'function approve(address spender, uint256 value) returns (bool)',
  'function transfer(address to, uint256 value) returns (bool)',
  'function balanceOf(address owner) view returns (uint256)',
])

/** Every anvil's first accounts, and the key of the publisher's, which is as public as the rest of them. */
const DEPLOYER = '0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266'
const OPERATOR = '0x70997970c51812dc3a010c7d01b50e0d17dc79c8'
const PUBLISHER = '0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc'
const PUBLISHER_KEY = '0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a'

/** Half goes to the publisher. In base units: a million tokens of 18 digits. */
const SUPPLY = 10n ** 24n

type ContractCall = {
  readonly abi: Abi
  readonly functionName: string
  readonly args: readonly unknown[]
}

let started = 0

/** A chain of a test's own: anvil, with a token and a payment contract on it. A transaction is in a block of its own at once. */
export class TestChain implements AsyncDisposable {
  readonly rpcUrl: string
  readonly evmChainId = 31337n
  readonly deployer: Hex = DEPLOYER
  readonly operator: Hex = OPERATOR
  readonly publisher: Hex = PUBLISHER
  readonly publisherKey: Hex = PUBLISHER_KEY
  readonly token: Hex
  readonly contract: Hex
  /** To ask and steer the chain beyond what is here. */
  readonly client: Client & PublicActions & TestActions
  readonly #anvil: Daemon

  private constructor(
    anvil: Daemon,
    rpcUrl: string,
    client: TestChain['client'],
    { token, contract }: { readonly token: Hex; readonly contract: Hex },
  ) {
    this.#anvil = anvil
    this.rpcUrl = rpcUrl
    this.client = client
    this.token = token
    this.contract = contract
  }

  /** Starts it, on a free port, and deploys the contracts; the publisher has tokens and lets the contract take them. */
  static async start(scratch: Scratch): Promise<TestChain> {
    const [channelsCode, tokenCode] = await Promise.all([
      compileContract(CHANNELS_SOURCE),
      compileContract(TOKEN_SOURCE),
    ])
    await using opened = new AsyncDisposableStack()
    const command = [anvilPath(), '--port', '0']
    // A log of its own, which tells the port of this one.
    const name = `anvil-${started++}`
    const anvil = opened.use(await Daemon.start(scratch, name, command, { HOME: scratch.dir }))
    let port: string | undefined
    await anvil.whenReady(async () => {
      const log = readFileSync(anvil.logPath, 'utf8')
      port = /Listening on 127\.0\.0\.1:(\d+)/.exec(log)?.[1]
      return port !== undefined
    })
    const rpcUrl = `http://127.0.0.1:${port}`
    const client = createClient({ transport: http(rpcUrl, { retryCount: 0 }), pollingInterval: 20 })
      .extend(publicActions)
      .extend(testActions({ mode: 'anvil' }))
    const token = await deploy(
      client,
      encodeDeployData({ abi: TOKEN, bytecode: tokenCode, args: [SUPPLY] }),
    )
    const contract = await deploy(
      client,
      encodeDeployData({ abi: CHANNELS, bytecode: channelsCode, args: [token] }),
    )
    const chain = new TestChain(anvil, rpcUrl, client, { token, contract })
    await chain.#send(DEPLOYER, token, {
      abi: TOKEN,
      functionName: 'transfer',
      args: [PUBLISHER, SUPPLY / 2n],
    })
    await chain.#send(PUBLISHER, token, {
      abi: TOKEN,
      functionName: 'approve',
      args: [contract, SUPPLY],
    })
    opened.move()
    return chain
  }

  /** Of the publisher, to the operator; so are all the following. They reject if the contract reverts, with its error's name. */
  async createChannel(
    podId: Hex,
    { unlockSeconds, amount }: { readonly unlockSeconds: bigint; readonly amount: bigint },
  ): Promise<void> {
    const args = [OPERATOR, podId, unlockSeconds, amount] as const
    await this.#change(PUBLISHER, { abi: CHANNELS, functionName: 'createChannel', args })
  }

  async deposit(podId: Hex, amount: bigint): Promise<void> {
    const args = [OPERATOR, podId, amount] as const
    await this.#change(PUBLISHER, { abi: CHANNELS, functionName: 'deposit', args })
  }

  async unlock(podId: Hex): Promise<void> {
    const args = [OPERATOR, podId] as const
    await this.#change(PUBLISHER, { abi: CHANNELS, functionName: 'unlock', args })
  }

  async withdrawUnlocked(podId: Hex): Promise<void> {
    const args = [OPERATOR, podId] as const
    await this.#change(PUBLISHER, { abi: CHANNELS, functionName: 'withdrawUnlocked', args })
  }

  async closeChannel(podId: Hex): Promise<void> {
    const args = [OPERATOR, podId] as const
    await this.#change(PUBLISHER, { abi: CHANNELS, functionName: 'closeChannel', args })
  }

  /** The operator takes what is owed up to `total` since the channel was made. */
  async withdrawUpTo(podId: Hex, total: bigint): Promise<void> {
    const args = [PUBLISHER, podId, total, OPERATOR] as const
    await this.#change(OPERATOR, { abi: CHANNELS, functionName: 'withdrawUpTo', args })
  }

  /** What the contract itself says is left. */
  async available(podId: Hex): Promise<bigint> {
    return await this.client.readContract({
      abi: CHANNELS,
      address: this.contract,
      functionName: 'available',
      args: [PUBLISHER, OPERATOR, podId],
    })
  }

  async balanceOf(owner: Hex): Promise<bigint> {
    return await this.client.readContract({
      abi: TOKEN,
      address: this.token,
      functionName: 'balanceOf',
      args: [owner],
    })
  }

  /** Makes one block, `seconds` after the last one. */
  async advance(seconds: number): Promise<void> {
    await this.client.increaseTime({ seconds })
    await this.mine(1)
  }

  async mine(blocks: number): Promise<void> {
    await this.client.mine({ blocks })
  }

  /** Lets it answer nobody, with connections that look as always, until `resume`. */
  pause(): void {
    process.kill(this.#anvil.pid, 'SIGSTOP')
  }

  resume(): void {
    process.kill(this.#anvil.pid, 'SIGCONT')
  }

  /** Ends it for good: connections are refused. */
  async stop(): Promise<void> {
    await this.#anvil.kill()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }

  async #change(from: Hex, call: ContractCall): Promise<void> {
    await this.#send(from, this.contract, call)
  }

  async #send(from: Hex, to: Hex, call: ContractCall): Promise<void> {
    // Tried before it is sent, since a receipt does not tell why.
    await this.client.simulateContract({ account: from, address: to, ...call })
    // anvil signs for its own accounts.
    const hash = await this.client.request({
      method: 'eth_sendTransaction',
      params: [{ from, to, data: encodeFunctionData(call) }],
    })
    const { status } = await this.client.waitForTransactionReceipt({ hash })
    if (status !== 'success') throw new Error(`${call.functionName} reverted`)
  }
}

/** Its address. */
async function deploy(client: TestChain['client'], data: Hex): Promise<Hex> {
  const hash = await client.request({
    method: 'eth_sendTransaction',
    params: [{ from: DEPLOYER, data }],
  })
  const { status, contractAddress } = await client.waitForTransactionReceipt({ hash })
  if (status !== 'success' || !contractAddress) throw new Error('a contract was not deployed')
  return contractAddress
}

/** The program itself: the package's own starts it as a child that would outlive a kill. */
function anvilPath(): string {
  const machine = process.arch === 'x64' ? 'amd64' : process.arch
  const manifest = `@foundry-rs/anvil-linux-${machine}/package.json`
  return join(createRequire(import.meta.url).resolve(manifest), '../bin/anvil')
}
