import type { PublisherAddresses } from '../../agent/cli/publishing.ts'
import { formatBytes } from '../../agent/cli/quantity.ts'
import type { OciLayout } from '../support/images/oci-layout.ts'
import type { Scratch } from '../support/scratch.ts'
import { LOOPBACK, type ServerHost } from '../support/server-host.ts'
import { IPDR } from './ipdr.ts'
import { orAborted, Program, runProgram } from './program.ts'
import type { Say } from './steps.ts'

/** An image as `ipdr push` has published it. */
export type PublishedImage = {
  /** By which containerd pulls it: `ipdr.internal/<cid>`. */
  readonly reference: string
  readonly layers: number
  readonly files: number
  /** The layers as they were built, compressed, in bytes: what a registry would hand out. */
  readonly builtBytes: number
  /** The layers as published, compressed, in bytes. */
  readonly publishedBytes: number
  /** The layers' tars, in bytes. */
  readonly unpackedBytes: number
  readonly blocks: number
}

/** What the demo reads of the answer of `ipdr push`. */
type PushAnswer = {
  readonly reference: string
  readonly sourceBytes: number
  readonly bytes: number
  readonly layers: readonly {
    readonly layerBytes: number
    readonly entries: number
    readonly leaves: number
  }[]
}

type Options = { readonly repository: string; readonly signal: AbortSignal; readonly say: Say }

type PushOptions = Options & {
  /** More words for the command line. */
  readonly more?: readonly string[]
}

/** `ipdr push` of an image into `repository`. */
export async function pushImage(
  scratch: Scratch,
  image: OciLayout,
  { repository, signal, say, more = [] }: PushOptions,
): Promise<PublishedImage> {
  const total = sum(image.layers.map(({ size }) => size))
  const done = new Map<string, number>()
  const source = `oci:${image.dir}:${image.tag}`
  const options = ['--repository', repository, '--progress', 'json', '--output', 'json', ...more]
  const answer = await runProgram(scratch, [IPDR, 'push', source, ...options], {
    signal,
    onError(line) {
      if (!line.startsWith('{')) return
      const { item, doneBytes } = JSON.parse(line) as { item: string; doneBytes: number }
      done.set(item, doneBytes)
      const pushed = sum([...done.values()])
      const percent = Math.floor((pushed / total) * 100)
      say(`${percent} %, ${formatBytes(pushed)} of ${formatBytes(total)}`)
    },
  })
  const { reference, sourceBytes, bytes, layers } = JSON.parse(answer) as PushAnswer
  return {
    reference,
    layers: layers.length,
    files: sum(layers.map(({ entries }) => entries)),
    builtBytes: sourceBytes,
    publishedBytes: bytes,
    unpackedBytes: sum(layers.map(({ layerBytes }) => layerBytes)),
    blocks: sum(layers.map(({ leaves }) => leaves)),
  }
}

/** `ipdr serve`: offers a repository over bitswap and as an HTTP gateway, on loopback unless told otherwise. */
export class Publisher implements AsyncDisposable {
  readonly addresses: PublisherAddresses
  readonly #program: Program

  private constructor(addresses: PublisherAddresses, program: Program) {
    this.addresses = addresses
    this.#program = program
  }

  /** Starts it, and waits until others can reach it. Rejects if it ends before. */
  static async start(
    scratch: Scratch,
    { repository, signal, on = LOOPBACK }: Omit<Options, 'say'> & { readonly on?: ServerHost },
  ): Promise<Publisher> {
    const { promise: ready, resolve, reject } = Promise.withResolvers<PublisherAddresses>()
    const places = ['--listen', `/ip4/${on.address}/tcp/0`, '--gateway', `${on.address}:0`]
    const program = new Program(
      scratch,
      on.command([IPDR, 'serve', '--repository', repository, ...places, '--output', 'json']),
      { onOutput: (line) => resolve(JSON.parse(line) as PublisherAddresses) },
    )
    program.ended.then(() => reject(new Error('ipdr serve ended before it served')), reject)
    try {
      return new Publisher(await orAborted(ready, signal), program)
    } catch (error) {
      await program[Symbol.asyncDispose]()
      throw error
    }
  }

  get pid(): number {
    return this.#program.pid
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#program[Symbol.asyncDispose]()
  }
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0)
}
