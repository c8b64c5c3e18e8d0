import { hash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { listLoops } from '../../snapshotter/kernel/loop-device.ts'
import { listMounts } from '../../snapshotter/kernel/mountinfo.ts'
import { damageUnits, unitsOnDisk } from '../support/damage-units.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode, Publisher } from '../support/lazy-node.ts'
import { makeTar, type TarPart } from '../support/make-tar.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'
import { FaultyGateway } from './faulty-gateway.ts'

/** What a container of the image does: reads its file again and again, and tells the digest, or that it could not be read. */
const READ_FOR_EVER = [
  'sh',
  '-c',
  'while :; do sha256sum /file 2>/dev/null || echo failed; sleep 0.05; done',
]

/** Bytes of an image's own file. 3 MB: some dozens of blocks, and a read of it all takes milliseconds. */
const FILE_BYTES = 3_000_000

/** What a layer has on the disk beside its bytes. */
const KEPT_BESIDE: readonly string[] = ['meta.erofs', 'toc', 'sums', 'map', 'leaves', 'present']

/** Bytes that are changed in a damaged file. */
const DAMAGED_BYTES = 16

/** Parts that are damaged of a layer at most. */
const DAMAGED_UNITS_MAX = 4

export type FaultImage = {
  readonly reference: string
  /** SHA-256 of its file, in hexadecimal. */
  readonly sha256: string
}

/** A node, a publisher that is no part of it, and images that have a layer in common. */
export class World implements AsyncDisposable {
  readonly node: LazyNode
  readonly images: readonly FaultImage[]
  /** The agent's. */
  readonly clock: FakeClock
  /** The nearest of the agent's two peers. */
  readonly peer: FaultyGateway
  readonly #opened: AsyncDisposableStack

  private constructor(
    parts: Pick<World, 'node' | 'images' | 'clock' | 'peer'>,
    opened: AsyncDisposableStack,
  ) {
    this.node = parts.node
    this.images = parts.images
    this.clock = parts.clock
    this.peer = parts.peer
    this.#opened = opened
  }

  static async make(count: number): Promise<World> {
    await using opened = new AsyncDisposableStack()
    const scratch = opened.use(Scratch.open('faults'))
    const publisher = opened.use(await Publisher.start(scratch))
    const pack = (...files: readonly TarPart[]): ReturnType<typeof packLayer> =>
      packLayer(Readable.from([makeTar(...files)]), 'gzip', join(scratch.dir, 'layers'))
    const base = await pack(...busyboxFiles('echo', 'sleep', 'sha256sum', 'sh'))
    const images: FaultImage[] = []
    for (let index = 0; index < count; index++) {
      const content = randomContent(seeded(index), FILE_BYTES)
      // Of every second image bytes stay missing, since no container reads them.
      const unread = { name: 'unread', content: randomContent(seeded(index + count), FILE_BYTES) }
      const own = await pack({ name: 'file', content }, ...(index % 2 === 1 ? [unread] : []))
      const layout = writeOciLayout(join(scratch.dir, `layout-${index}`), {
        layers: [base, own],
        process: { Env: ['PATH=/bin'] },
      })
      const root = await publisher.push(layout)
      images.push({ reference: `ipdr.internal/${root}`, sha256: hash('sha256', content) })
    }
    const peer = opened.use(await FaultyGateway.start(publisher.gatewayUrl))
    const clock = new FakeClock(scratch.dir)
    const node = opened.use(
      await LazyNode.start('faults', {
        publisher,
        gateways: [peer.url, publisher.gatewayUrl],
        foregroundDeadlineMs: 20_000,
        env: clock.env,
      }),
    )
    return new World({ node, images, clock, peer }, opened.move())
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

  /** Damages one file of what is kept beside the bytes of a layer that is not mounted, if there is one. The agent must not run. */
  damageFile(random: (max: number) => number): void {
    const { root } = this.node.agent
    // A mount reads them for as long as it lives, through the loop device that it may be on.
    const used = [
      ...listLoops('ipdr:').map(({ backingPath }) => backingPath),
      ...listMounts(join(root, 'm')).map(({ source }) => source),
    ]
    const layers = readdirSync(join(root, 'layers')).filter(
      (id) =>
        !used.some((path) => path.includes(`/layers/${id}/`) || path.endsWith(`/files/${id}`)),
    )
    const dir = join(root, 'layers', layers[random(layers.length)] ?? 'none')
    const files = existsSync(dir) ? readdirSync(dir) : []
    const beside = files.filter((name) => KEPT_BESIDE.includes(name))
    const name = beside[random(beside.length)]
    if (name === undefined) return
    const bytes = readFileSync(join(dir, name))
    for (let count = 0; count < DAMAGED_BYTES && bytes.length > 0; count++) {
      const at = random(bytes.length)
      bytes[at] = (bytes[at] ?? 0) ^ (1 + random(255))
    }
    writeFileSync(join(dir, name), bytes)
  }

  /**
   * Turns a bit in some parts of every layer that has others missing, mounted or not, unless the kernel reads its bytes without
   * the agent. Resolves to how many parts that were. The agent must not run.
   */
  async damageArriving(random: (max: number) => number): Promise<number> {
    const layers = join(this.node.agent.root, 'layers')
    let damaged = 0
    for (const id of readdirSync(layers).toSorted()) {
      const dir = join(layers, id)
      // One that is half-built, or whose map is damaged, is never read again.
      const units = await unitsOnDisk(dir).catch(() => undefined)
      if (units === undefined || units.wasMounted || units.missing.length === 0) continue
      damaged += (await damageUnits(dir, random, 1 + random(DAMAGED_UNITS_MAX))).length
    }
    return damaged
  }

  /** Takes containerd's way to the agent away. */
  removeSocket(): void {
    rmSync(this.node.agent.snapshotterSocket)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened.disposeAsync()
  }
}
