import { type OciRegistry, startOciRegistry } from '../../support/oci-registry.ts'
import type { Scratch } from '../../support/scratch.ts'
import type { ServerHost } from '../../support/server-host.ts'
import { BenchPublisher } from '../bench-node.ts'
import { UNSHAPED } from './link/link-profile.ts'
import { NetworkLink } from './link/network-link.ts'

/** All that nodes fetch from, on one host at the other end of a link: a registry, and an IPFS peer with its gateway. */
export class Site implements AsyncDisposable {
  readonly link: NetworkLink
  readonly registry: OciRegistry
  readonly publisher: BenchPublisher
  readonly #opened: AsyncDisposableStack

  private constructor(
    parts: { link: NetworkLink; registry: OciRegistry; publisher: BenchPublisher },
    opened: AsyncDisposableStack,
  ) {
    this.link = parts.link
    this.registry = parts.registry
    this.publisher = parts.publisher
    this.#opened = opened
  }

  /** Starts it, behind a link that is not shaped yet. This process must be in a network namespace of its own. */
  static async open(scratch: Scratch): Promise<Site> {
    await using opened = new AsyncDisposableStack()
    const link = opened.use(await NetworkLink.open(scratch))
    await link.shape(UNSHAPED)
    const on: ServerHost = { address: link.farAddress, command: (argv) => link.far(argv) }
    const registry = opened.use(await startOciRegistry(scratch, { on }))
    const publisher = opened.use(await BenchPublisher.start(on))
    return new Site({ link, registry, publisher }, opened.move())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened.disposeAsync()
  }
}
