import { hash } from 'node:crypto'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { busyboxPath } from '../support/debian-programs.ts'
import { packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode, Publisher } from '../support/lazy-node.ts'
import { makeTar, type TarPart } from '../support/make-tar.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

/** What a container of the image does: reads its file again and again, and tells the digest, or that it could not be read. */
const READ_FOR_EVER = [
  'sh',
  '-c',
  'while :; do sha256sum /file 2>/dev/null || echo failed; sleep 0.05; done',
]

/** Bytes of an image's own file. 3 MB: some dozens of blocks, and a read of it all takes milliseconds. */
const FILE_BYTES = 3_000_000

export type FaultImage = {
  readonly reference: string
  /** SHA-256 of its file, in hexadecimal. */
  readonly sha256: string
}

/** A node, a publisher that is no part of it, and images that have a layer in common. */
export class World implements AsyncDisposable {
  readonly node: LazyNode
  readonly images: readonly FaultImage[]
  readonly #opened: AsyncDisposableStack

  private constructor(node: LazyNode, images: readonly FaultImage[], opened: AsyncDisposableStack) {
    this.node = node
    this.images = images
    this.#opened = opened
  }

  static async make(count: number): Promise<World> {
    await using opened = new AsyncDisposableStack()
    const scratch = opened.use(Scratch.open('faults'))
    const publisher = opened.use(await Publisher.start(scratch))
    const pack = (...files: readonly TarPart[]): ReturnType<typeof packLayer> =>
      packLayer(Readable.from([makeTar(...files)]), 'gzip', join(scratch.dir, 'layers'))
    const base = await pack(
      { name: 'bin/', typeflag: '5', mode: 0o755 },
      { name: 'bin/busybox', mode: 0o755, content: readFileSync(busyboxPath) },
      ...['echo', 'sleep', 'sha256sum', 'sh'].map((name) => ({
        name: `bin/${name}`,
        typeflag: '2',
        linkName: 'busybox',
      })),
    )
    const images: FaultImage[] = []
    for (let index = 0; index < count; index++) {
      const content = randomContent(seeded(index), FILE_BYTES)
      const own = await pack({ name: 'file', content })
      const layout = writeOciLayout(join(scratch.dir, `layout-${index}`), {
        layers: [base, own],
        process: { Env: ['PATH=/bin'] },
      })
      const root = await publisher.push(layout)
      images.push({ reference: `ipdr.internal/${root}`, sha256: hash('sha256', content) })
    }
    const node = opened.use(
      await LazyNode.start('faults', { publisher, foregroundDeadlineMs: 20_000 }),
    )
    return new World(node, images, opened.move())
  }

  /** Starts a container that reads for ever. */
  startReader(image: FaultImage): ReturnType<LazyNode['startContainer']> {
    return this.node.startContainer(image.reference, READ_FOR_EVER)
  }

  /** What readers tell from now on comes from the disk or the network, not from memory. */
  forgetPages(): void {
    writeFileSync('/proc/sys/vm/drop_caches', '1')
  }

  /** All that is not in use is fetched again. */
  async evict(): Promise<void> {
    using admin = this.node.agent.admin()
    await admin.calls.CollectGarbage({ targetBytes: '0' }, { signal: AbortSignal.timeout(20_000) })
  }

  /** Takes containerd's way to the agent away. */
  removeSocket(): void {
    rmSync(this.node.agent.snapshotterSocket)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened.disposeAsync()
  }
}
