import { join } from 'node:path'
import { pino } from 'pino'
import { GrpcServer } from '../../agent/grpc-server.ts'
import { connect } from '../../proto/client.ts'
import type { Calls } from '../../proto/contract.ts'
import { snapshotsContract } from '../../proto/load.ts'
import type { Info__Output } from '../../proto/types/containerd/services/snapshots/v1/Info.ts'
import type {
  SnapshotsDefinition,
  SnapshotsHandlers,
} from '../../proto/types/containerd/services/snapshots/v1/Snapshots.ts'
import type { Mount__Output } from '../../proto/types/containerd/types/Mount.ts'
import type { LazyLayers } from '../../snapshotter/snapshots/lazy-layers.ts'
import { Snapshots } from '../../snapshotter/snapshots/snapshots.ts'
import { snapshotsService } from '../../snapshotter/snapshots-service.ts'
import type { SyncFile } from '../../snapshotter/write-ahead-log.ts'
import { noLazyLayers } from './no-lazy-layers.ts'

/** As containerd's proxy snapshotter: the wire's calls, spelled as its Go interface spells them. */
export class SnapshotsClient {
  readonly #calls: Calls<SnapshotsDefinition, SnapshotsHandlers>
  readonly #call = { signal: new AbortController().signal }

  constructor(calls: Calls<SnapshotsDefinition, SnapshotsHandlers>) {
    this.#calls = calls
  }

  async prepare(key: string, parent: string, labels: Labels = {}): Promise<Mount__Output[]> {
    return (await this.#calls.Prepare({ key, parent, labels }, this.#call)).mounts
  }

  async view(key: string, parent: string, labels: Labels = {}): Promise<Mount__Output[]> {
    return (await this.#calls.View({ key, parent, labels }, this.#call)).mounts
  }

  async mounts(key: string): Promise<Mount__Output[]> {
    return (await this.#calls.Mounts({ key }, this.#call)).mounts
  }

  async commit(
    name: string,
    key: string,
    { labels = {}, parent = '' }: { labels?: Labels; parent?: string } = {},
  ): Promise<void> {
    await this.#calls.Commit({ name, key, labels, parent }, this.#call)
  }

  async remove(key: string): Promise<void> {
    await this.#calls.Remove({ key }, this.#call)
  }

  async stat(key: string): Promise<Info__Output> {
    return infoOf((await this.#calls.Stat({ key }, this.#call)).info)
  }

  async update(info: Partial<Info__Output>, ...paths: string[]): Promise<Info__Output> {
    const { info: updated } = await this.#calls.Update({ info, updateMask: { paths } }, this.#call)
    return infoOf(updated)
  }

  async *walk(...filters: string[]): AsyncGenerator<Info__Output, void> {
    for await (const { info } of this.#calls.List({ filters }, this.#call)) yield* info
  }

  async usage(key: string): Promise<{ size: string; inodes: string }> {
    return await this.#calls.Usage({ key }, this.#call)
  }

  async cleanup(): Promise<void> {
    await this.#calls.Cleanup({}, this.#call)
  }
}

export type Labels = Readonly<Record<string, string>>

export type TestSnapshotter = AsyncDisposable & {
  readonly client: SnapshotsClient
  readonly snapshots: Snapshots
  readonly socketPath: string
}

/** Opens the snapshots in `root`, serves them on a socket there and connects to it. */
export async function serveSnapshots(
  root: string,
  layers: LazyLayers = noLazyLayers,
  sync?: SyncFile,
): Promise<TestSnapshotter> {
  await using opened = new AsyncDisposableStack()
  const log = pino({ level: 'silent' })
  const snapshots = opened.use(
    await Snapshots.open({ root }, { layers, log, ...(sync && { sync }) }),
  )
  const socketPath = join(root, 'agent.sock')
  const { signal } = new AbortController()
  opened.use(
    await GrpcServer.listen({ socketPath }, [snapshotsService(snapshots)], { log, signal }),
  )
  const { calls } = opened.use(connect(snapshotsContract(), socketPath))
  const kept = opened.move()
  return {
    client: new SnapshotsClient(calls),
    snapshots,
    socketPath,
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  }
}

function infoOf(info: Info__Output | null): Info__Output {
  if (info === null) throw new Error('the answer has no info')
  return info
}
