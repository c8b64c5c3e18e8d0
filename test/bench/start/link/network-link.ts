import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Readable, Writable } from 'node:stream'
import { runCommand } from '../../../support/run-command.ts'
import type { Scratch } from '../../../support/scratch.ts'
import type { LinkProfile } from './link-profile.ts'
import type { LinkCount, ShaperOrder } from './shaper.ts'

/** Of 198.18.0.0/15, which RFC 2544 sets apart for benchmarks. */
const NEAR_ADDRESS = '198.18.0.1'
const FAR_ADDRESS = '198.18.0.2'
const [NEAR_DEVICE, FAR_DEVICE] = ['ipdr-near', 'ipdr-far']

/** What a kernel does unless somebody changed it. By the route, since a network namespace may not choose among all of them. */
const CONGESTION_CONTROL = 'cubic'

/** Packets that a device holds until the shaper reads them, which is at once: 64 MB of the largest. */
const DEVICE_QUEUE = '1000'

/**
 * Two hosts with a link between them whose speed and length are what they are said to be. The near one is the network namespace of
 * this process, which must be one of its own; the far one is made for it. Both end with the scratch.
 */
export class NetworkLink implements AsyncDisposable {
  /** Where servers of the far side listen. */
  readonly farAddress: string = FAR_ADDRESS
  readonly #farPid: number
  readonly #shaper: ChildProcess
  readonly #answers: AsyncIterator<string>
  readonly #opened: AsyncDisposableStack

  private constructor(
    parts: { farPid: number; shaper: ChildProcess; answers: AsyncIterator<string> },
    opened: AsyncDisposableStack,
  ) {
    this.#farPid = parts.farPid
    this.#shaper = parts.shaper
    this.#answers = parts.answers
    this.#opened = opened
  }

  /** Makes the far host and the link. Rejects where the kernel has no TUN devices. */
  static async open(scratch: Scratch): Promise<NetworkLink> {
    await using opened = new AsyncDisposableStack()
    const holder = start(scratch, opened, ['unshare', '--net', 'sh', '-c', 'echo; exec cat'])
    await once(holder.stdout as Readable, 'data')
    const farPid = holder.pid as number
    // Before everybody else: a link is not late because a processor is busy.
    const shaperFile = join(import.meta.dirname, 'shaper.ts')
    const words = ['--disable-warning=ExperimentalWarning', shaperFile, NEAR_DEVICE, FAR_DEVICE]
    const shaper = start(scratch, opened, ['chrt', '--fifo', '10', process.execPath, ...words])
    const answers = createInterface({ input: shaper.stdout as Readable })[Symbol.asyncIterator]()
    const first = await answers.next()
    if (first.done === true) throw new Error('the link did not start; it says why above')
    await runCommand('ip', ['link', 'set', FAR_DEVICE, 'netns', `${farPid}`])
    const ends = [
      { inside: [], device: NEAR_DEVICE, own: NEAR_ADDRESS, peer: FAR_ADDRESS },
      {
        inside: ['nsenter', '--target', `${farPid}`, '--net'],
        device: FAR_DEVICE,
        own: FAR_ADDRESS,
        peer: NEAR_ADDRESS,
      },
    ]
    for (const { inside, device, own, peer } of ends) {
      const commands = [
        ['ip', 'link', 'set', 'lo', 'up'],
        ['ip', 'address', 'add', own, 'peer', peer, 'dev', device],
        ['ip', 'link', 'set', device, 'mtu', '1500', 'txqueuelen', DEVICE_QUEUE, 'up'],
        ['ip', 'route', 'replace', peer, 'dev', device, 'congctl', CONGESTION_CONTROL],
      ]
      for (const command of commands) {
        const [file = '', ...args] = [...inside, ...command]
        await runCommand(file, args)
      }
    }
    return new NetworkLink({ farPid, shaper, answers }, opened.move())
  }

  /** The words of a command line that run a command on the far host. */
  far(command: readonly string[]): string[] {
    return ['nsenter', '--target', `${this.#farPid}`, '--net', ...command]
  }

  /** Makes the link like this from now on. */
  async shape({ bitsPerSecond, roundTripMs }: LinkProfile): Promise<void> {
    await this.#order({ kind: 'shape', bitsPerSecond, delayMs: roundTripMs / 2 })
  }

  /** Begins to count anew. */
  async reset(): Promise<void> {
    await this.#order({ kind: 'reset' })
  }

  /** What was carried since the last reset. */
  async count(): Promise<LinkCount> {
    return await this.#order({ kind: 'count' })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened.disposeAsync()
  }

  async #order(order: ShaperOrder): Promise<LinkCount> {
    ;(this.#shaper.stdin as Writable).write(`${JSON.stringify(order)}\n`)
    const { value, done } = await this.#answers.next()
    if (done === true) throw new Error('the link has ended; it says why above')
    return JSON.parse(value) as LinkCount
  }
}

/** A process that ends once nobody holds its standard input any more. */
function start(
  scratch: Scratch,
  opened: AsyncDisposableStack,
  [file = '', ...args]: readonly string[],
): ChildProcess {
  const child = spawn(file, args, { stdio: ['pipe', 'pipe', 'inherit'] })
  if (child.pid !== undefined) scratch.own(child.pid)
  const exited = once(child, 'exit')
  opened.defer(async () => {
    child.stdin.end()
    await exited
  })
  return child
}
