import { randomFillSync } from 'node:crypto'
import { connect } from '../../proto/client.ts'
import { contentContract } from '../../proto/load.ts'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import { AgentProcess } from '../support/agent.ts'
import { Containerd } from '../support/containerd.ts'
import { ContentClient } from '../support/content-client.ts'
import { Scratch } from '../support/scratch.ts'
import type { Measurement } from './bench-context.ts'
import type { Figure } from './figure.ts'
import { medians } from './rounds.ts'

const BLOB_BYTES = 256 * 1024 * 1024

/** containerd with the agent as its content store, against one with its own: `ctr content` of one large blob. */
export const contentProxy: Measurement = {
  names: ['content-write', 'content-read'],
  measure: async ({ rounds, say }): Promise<Figure[]> => {
    await using own = await ContentNode.start('own')
    await using proxied = await ContentNode.start('proxied')
    say(`writing blobs of ${BLOB_BYTES / 1024 / 1024} MiB`)
    const writeMs = await medians(rounds, {
      own: () => own.write(),
      proxied: () => proxied.write(),
    })
    say('reading them')
    const readMs = await medians(rounds, { own: () => own.read(), proxied: () => proxied.read() })
    return [
      {
        name: 'content-write',
        value: writeMs.proxied / writeMs.own,
        unit: 'x',
        detail: `${megabytesPerSecond(writeMs.proxied)} against ${megabytesPerSecond(writeMs.own)}`,
      },
      {
        name: 'content-read',
        value: readMs.proxied / readMs.own,
        unit: 'x',
        detail: `${megabytesPerSecond(readMs.proxied)} against ${megabytesPerSecond(readMs.own)}`,
      },
    ]
  },
}

/** A containerd, and a blob in its store. */
class ContentNode implements AsyncDisposable {
  readonly #containerd: Containerd
  readonly #opened: AsyncDisposableStack
  #digest = ''

  private constructor(containerd: Containerd, opened: AsyncDisposableStack) {
    this.#containerd = containerd
    this.#opened = opened
  }

  static async start(kind: 'own' | 'proxied'): Promise<ContentNode> {
    await using opened = new AsyncDisposableStack()
    const scratch = opened.use(Scratch.open(`bench-content-${kind}`))
    const agent =
      kind === 'proxied' &&
      opened.use(
        await AgentProcess.start(scratch, {
          contentRoot: Containerd.contentRootOf(scratch),
          containerdSocket: Containerd.socketPathOf(scratch),
        }),
      )
    const containerd = opened.use(
      await Containerd.start({
        scratch,
        snapshotter: 'overlayfs',
        ...(agent && { contentSocket: agent.contentSocket }),
      }),
    )
    return new ContentNode(containerd, opened.move())
  }

  /** Another blob each time: one that is there is not written. Resolves to the milliseconds it took. */
  async write(): Promise<number> {
    const bytes = randomFillSync(Buffer.allocUnsafe(BLOB_BYTES))
    const digest = digestOf(bytes)
    const words = ['--expected-digest', digest, '--expected-size', String(bytes.length)]
    const started = performance.now()
    await this.#containerd.ctr(['content', 'ingest', ...words, 'blob'], { input: bytes })
    this.#digest = digest
    return performance.now() - started
  }

  async read(): Promise<number> {
    using service = connect(contentContract(), this.#containerd.socketPath, {
      'containerd-namespace': 'default',
    })
    const started = performance.now()
    const bytes = await new ContentClient(service.calls).read(this.#digest)
    const ms = performance.now() - started
    if (digestOf(bytes) !== this.#digest) throw new Error(`another blob than ${this.#digest}`)
    return ms
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened.disposeAsync()
  }
}

function megabytesPerSecond(ms: number): string {
  return `${Math.round(BLOB_BYTES / 1000 / ms)} MB/s`
}
