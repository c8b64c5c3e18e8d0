import { mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { placesOf } from '../../agent/places.ts'
import { mountErofs } from '../../snapshotter/erofs/mount-image.ts'
import { type LayerPlaces, layerPlaces } from '../../snapshotter/layers/layer-places.ts'
import { type PublishedImage, Publisher, pushImage } from '../demo/publish.ts'
import { AgentProcess } from '../support/agent.ts'
import type { OciLayout } from '../support/images/oci-layout.ts'
import { Scratch } from '../support/scratch.ts'
import type { ServerHost } from '../support/server-host.ts'

/** An hour: no benchmark takes so long. */
const DEADLINE_MS = 3_600_000

/** A publisher that images are pushed to, from processes of its own, as on another machine. */
export class BenchPublisher implements AsyncDisposable {
  readonly gatewayUrl: string
  /** The directory of blocks that it serves. */
  readonly repository: string
  /** The process that serves it. */
  readonly pid: number
  readonly #scratch: Scratch
  readonly #opened: AsyncDisposableStack

  private constructor(
    { addresses: { gateway }, pid }: Publisher,
    places: { scratch: Scratch; repository: string },
    opened: AsyncDisposableStack,
  ) {
    this.gatewayUrl = gateway
    this.pid = pid
    this.#scratch = places.scratch
    this.repository = places.repository
    this.#opened = opened
  }

  /** On loopback unless told otherwise. */
  static async start(on?: ServerHost): Promise<BenchPublisher> {
    await using opened = new AsyncDisposableStack()
    const scratch = opened.use(Scratch.open('bench-publisher'))
    const repository = join(scratch.dir, 'repository')
    const signal = AbortSignal.timeout(DEADLINE_MS)
    const publisher = opened.use(
      await Publisher.start(scratch, { repository, signal, ...(on && { on }) }),
    )
    return new BenchPublisher(publisher, { scratch, repository }, opened.move())
  }

  /** `ipdr push` of the image; with the time it took, start of the command included. `more` are words for it. */
  async push(
    image: OciLayout,
    more: readonly string[] = [],
  ): Promise<PublishedImage & { readonly ms: number }> {
    const started = performance.now()
    const pushed = await pushImage(this.#scratch, image, {
      repository: this.repository,
      signal: AbortSignal.timeout(DEADLINE_MS),
      say: () => {},
      more,
    })
    return { ...pushed, ms: performance.now() - started }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened.disposeAsync()
  }
}

/** An agent, and the layers in its store. */
export class BenchNode implements AsyncDisposable {
  readonly agent: AgentProcess
  readonly scratch: Scratch
  readonly #opened: AsyncDisposableStack
  readonly #places: LayerPlaces
  #directories = 0

  private constructor(agent: AgentProcess, scratch: Scratch, opened: AsyncDisposableStack) {
    this.agent = agent
    this.scratch = scratch
    this.#opened = opened
    this.#places = layerPlaces(agent.root, placesOf(agent).fuseDir)
  }

  /** `config` is for the agent, beside where the publisher is. */
  static async start(
    { gatewayUrl }: Pick<BenchPublisher, 'gatewayUrl'>,
    config: Parameters<typeof AgentProcess.start>[1] = {},
  ): Promise<BenchNode> {
    await using opened = new AsyncDisposableStack()
    const scratch = opened.use(Scratch.open('bench'))
    const agent = opened.use(
      await AgentProcess.start(scratch, { gateways: [gatewayUrl], ...config }),
    )
    return new BenchNode(agent, scratch, opened.move())
  }

  /** Makes all layers mountable and, with `all`, fetches every byte. Resolves to the milliseconds it took. */
  async pull(reference: string, { all }: { all: boolean }): Promise<number> {
    using admin = this.agent.admin()
    const started = performance.now()
    const steps = admin.calls.Pull({ reference, all }, { signal: AbortSignal.timeout(DEADLINE_MS) })
    for await (const _ of steps) {
      // Each step is only progress.
    }
    return performance.now() - started
  }

  /** Ids of the layers that are here, in the order in which they came: those of one image lowest first. */
  get layerIds(): number[] {
    return readdirSync(join(this.agent.root, 'layers'))
      .map(Number)
      .toSorted((a, b) => a - b)
  }

  /**
   * Mounts a layer as the agent does, content from the FUSE server, straight or over loop devices, or from the file that it serves. Resolves to
   * the directory; the mount goes with the node.
   */
  async mountLayer(id: number, content: 'fuse' | 'loop' | 'local'): Promise<string> {
    const target = this.newDirectory(content)
    const path = content === 'local' ? this.#places.dataPath(id) : this.#places.fusePath(id)
    await mountErofs({
      imagePath: this.#places.metadataPath(id),
      devicePaths: [path],
      target,
      readAheadKb: 1024,
      ...(content === 'loop' && { loopTags: { image: 'ipdr-bench', devices: ['ipdr-bench'] } }),
    })
    return target
  }

  /** An empty directory to mount on; short, for overlay takes a page of names at most. */
  newDirectory(name: string): string {
    const path = join(this.scratch.run, `${name}-${this.#directories++}`)
    mkdirSync(path)
    return path
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened.disposeAsync()
  }
}
