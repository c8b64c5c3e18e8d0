import type { CapacityResponse } from '../../../proto/messages/ipdr/deploy_pb.js'
import { type Command, defineCommand } from '../command.ts'
import { EXIT_CODES } from '../exit-codes.ts'
import { CommandFailure, describeFailure } from '../failure.ts'
import { formatBytes, formatMs } from '../quantity.ts'
import { table } from '../table.ts'

/** Longest answer that is waited for, in ms: a hand-shake over a bad line, and a list of all pods. */
const ANSWER_MS = 20_000

const GIGASECOND_DIGITS = 9

/** `ipdr providers` */
export const providers: Command = defineCommand({
  name: 'providers',
  usage: '<address..>',
  summary: 'Ask clusters what they have free, and what they take for it',
  description: [
    'Asks each agent for free CPU and memory, its prices, runtime classes and host names, and how long it takes to answer. Nothing is signed or paid for that. Prices are in base units of the token of the payment contract, per second of one core or one GiB.',
  ],
  args: {
    address: {
      type: 'string',
      array: true,
      demandOption: true,
      describe: "Multiaddr of a cluster's agent, with /p2p/ and its ID",
    },
  },
  options: {},
  examples: [['ipdr providers $(cat providers.txt)', 'who is there, and at which price']],
  seeAlso: ['ipdr deploy'],
  async run({ address: addresses }, { output, signal }) {
    const { startClientHost } = await import('../../client/client-host.ts')
    const { DeployClient } = await import('../../client/deploy-client.ts')
    await using opened = new AsyncDisposableStack()
    const libp2p = await startClientHost()
    opened.defer(() => libp2p.stop())
    const answers = await Promise.all(
      addresses.map(async (address): Promise<Answer> => {
        const began = performance.now()
        try {
          const client = new DeployClient(libp2p, [address], { signer: NOBODY })
          const timeout = AbortSignal.timeout(ANSWER_MS)
          const capacity = await client.capacity(AbortSignal.any([signal, timeout]))
          return { address, ms: performance.now() - began, capacity }
        } catch (error) {
          signal.throwIfAborted()
          return { address, error: describeFailure(error, signal).sentence }
        }
      }),
    )
    const { formatUnits } = await import('viem')
    output.answer(answers.map(documentOf), () => textOf(answers, { output, formatUnits }))
    if (answers.every((answer) => 'error' in answer)) {
      throw new CommandFailure(EXIT_CODES.unavailable, 'no cluster answered')
    }
  },
})

type Answer =
  | { readonly address: string; readonly ms: number; readonly capacity: CapacityResponse }
  | { readonly address: string; readonly error: string }

/** Capacity needs no signature. */
const NOBODY = {
  signTypedData: async (): Promise<never> => {
    throw new Error('nothing is signed here')
  },
}

function documentOf(answer: Answer): object {
  if ('error' in answer) return answer
  const { address, ms, capacity } = answer
  return {
    address,
    answerMs: Math.round(ms),
    operator: hex(capacity.operator),
    evmChainId: String(capacity.evmChainId),
    cpuMillisFree: Number(capacity.cpuMillisFree),
    memoryBytesFree: Number(capacity.memoryBytesFree),
    runtimeClasses: capacity.runtimeClasses,
    hostSuffixes: capacity.hostSuffixes,
    offers: capacity.offers.map(({ contract, token, unlockSecondsMin, prices }) => ({
      contract: hex(contract),
      token: hex(token),
      unlockSecondsMin: Number(unlockSecondsMin),
      prices: Object.fromEntries(prices.map((price) => [price.resource, price.perUnitGigasecond])),
    })),
  }
}

type Means = {
  readonly output: Parameters<typeof table>[2]
  readonly formatUnits: (value: bigint, digits: number) => string
}

function textOf(answers: readonly Answer[], { output, formatUnits }: Means): string {
  const columns = [
    { heading: 'PROVIDER' },
    { heading: 'ANSWER', align: 'right' },
    { heading: 'CPU FREE', align: 'right' },
    { heading: 'MEMORY FREE', align: 'right' },
    { heading: 'CORE/s', align: 'right' },
    { heading: 'GiB/s', align: 'right' },
    { heading: 'CONTRACT' },
  ] as const
  const rows = answers.map((answer) => {
    const name = answer.address.slice(answer.address.lastIndexOf('/') + 1)
    if ('error' in answer) return [name, answer.error, '', '', '', '', '']
    const { ms, capacity } = answer
    const [offer] = capacity.offers
    const price = (resource: string, units: bigint): string => {
      const found = offer?.prices.find((one) => one.resource === resource)
      return found === undefined
        ? 'free'
        : formatUnits(BigInt(found.perUnitGigasecond) * units, GIGASECOND_DIGITS)
    }
    return [
      name,
      formatMs(ms),
      String(Number(capacity.cpuMillisFree) / 1_000),
      formatBytes(Number(capacity.memoryBytesFree)),
      price('cpu', 1n),
      price('memory', 1024n ** 3n),
      offer === undefined ? '' : hex(offer.contract),
    ]
  })
  return table(columns, rows, output)
}

function hex(bytes: Uint8Array): string {
  return `0x${Buffer.from(bytes).toString('hex')}`
}
