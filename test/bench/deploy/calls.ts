import { join } from 'node:path'
import { inTurn, median } from '../rounds.ts'
import { cpuSeconds } from '../start/process-cost.ts'
import type { CallersTask, CallsCount, CallsQuestion } from './callers.ts'
import {
  type DeployContext,
  type DeployFigure,
  type DeployMeasurement,
  LISTEN,
  profileFlags,
  UNPAID,
} from './deploy-figure.ts'
import type { EndpointReady, EndpointTask } from './endpoint.ts'
import { OwnProcess } from './own-process.ts'

/** How long an arm is measured in a round, in seconds. 4: the processor time of /proc counts in hundredths. */
const SECONDS = 4

/** Before that, in the first round. */
const WARM_UP_SECONDS = 3

type Over = EndpointTask['over']

/** A call and answer of a few hundred bytes that needs no cluster: over libp2p, against the same service over bare HTTP. */
export const calls: DeployMeasurement = {
  name: 'calls',
  async measure(context) {
    await using opened = new AsyncDisposableStack()
    const pairs = new Map<Over, Pair>()
    for (const over of ['libp2p', 'http'] as const) {
      pairs.set(over, opened.use(await Pair.open(over, context)))
    }
    const arms = [1, 16].flatMap((atOnce) =>
      (['libp2p', 'http'] as const).map((over) => ({ atOnce, over, measured: [] as Measured[] })),
    )
    for (const { atOnce, over } of arms) {
      await pairs.get(over)?.call({ atOnce, seconds: WARM_UP_SECONDS })
    }
    await inTurn(context.rounds, arms, async ({ atOnce, over, measured }, round) => {
      context.say(`round ${round + 1}: calls over ${over}, ${atOnce} at once`)
      const pair = pairs.get(over)
      if (pair !== undefined) measured.push(await pair.call({ atOnce, seconds: SECONDS }))
    })
    const of = (over: Over, atOnce: number, field: keyof Measured): number =>
      median(
        arms
          .filter((arm) => arm.over === over && arm.atOnce === atOnce)
          .flatMap(({ measured }) => measured.map((one) => one[field])),
      )
    const figures = [1, 16].flatMap((atOnce): DeployFigure[] => {
      const [ours, bare] = (['libp2p', 'http'] as const).map((over) => ({
        perSecond: of(over, atOnce, 'perSecond'),
        server: of(over, atOnce, 'serverCpu'),
        client: of(over, atOnce, 'clientCpu'),
      }))
      if (ours === undefined || bare === undefined) return []
      return [
        {
          name: `calls-${atOnce}`,
          value: ours.perSecond / bare.perSecond,
          unit: 'x',
          detail: `${ours.perSecond.toFixed(0)} calls a second over libp2p, ${bare.perSecond.toFixed(0)} over HTTP`,
        },
        {
          name: `calls-cpu-${atOnce}`,
          value: ours.server,
          unit: 's',
          detail: `of processors for 1,000 calls; over HTTP ${bare.server.toFixed(2)}; the client ${ours.client.toFixed(2)} and ${bare.client.toFixed(2)}`,
        },
      ]
    })
    return { figures }
  },
}

/** Processor time in seconds for 1,000 calls. */
type Measured = {
  readonly perSecond: number
  readonly serverCpu: number
  readonly clientCpu: number
}

/** A server and who calls it. */
class Pair implements AsyncDisposable {
  readonly #server: OwnProcess
  readonly #client: OwnProcess

  private constructor(server: OwnProcess, client: OwnProcess) {
    this.#server = server
    this.#client = client
  }

  static async open(over: Over, context: DeployContext): Promise<Pair> {
    const { scratch } = context
    const task: EndpointTask = {
      over,
      dir: join(scratch.dir, `calls-${over}`),
      deploy: { ...LISTEN, ...UNPAID },
    }
    const server = await OwnProcess.start(scratch, 'endpoint.ts', task, profileFlags(context))
    const who: CallersTask = { over, address: (server.ready as EndpointReady).addresses[0] ?? '' }
    const client = await OwnProcess.start(scratch, 'callers.ts', who)
    return new Pair(server.process, client.process)
  }

  async call(question: CallsQuestion): Promise<Measured> {
    const [server, client] = [this.#server.pid, this.#client.pid]
    const before = [cpuSeconds([server]), cpuSeconds([client])] as const
    const { calls, seconds } = await this.#client.ask<CallsCount>(question)
    return {
      perSecond: calls / seconds,
      serverCpu: ((cpuSeconds([server]) - before[0]) / calls) * 1_000,
      clientCpu: ((cpuSeconds([client]) - before[1]) / calls) * 1_000,
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#client[Symbol.asyncDispose]()
    await this.#server[Symbol.asyncDispose]()
  }
}
