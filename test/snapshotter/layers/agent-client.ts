import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { connect } from '../../../proto/client.ts'
import { snapshotsContract } from '../../../proto/load.ts'
import type { Mount__Output } from '../../../proto/types/containerd/types/Mount.ts'
import type { AgentProcess } from '../../support/agent.ts'
import { mountAll } from '../../support/mount-all.ts'
import type { Scratch } from '../../support/scratch.ts'
import { SnapshotsClient } from '../../support/snapshots-client.ts'
import type { PublishedImage } from './published-image.ts'

/** grpc.status of @grpc/grpc-js that containerd takes for "this layer is here". */
const ALREADY_EXISTS = 6

/** How long any one answer of an agent may take, in ms. 60 s: the agent's own limit for a manifest. */
const ANSWER_MS = 60_000

/** What containerd does with an agent, over the agent's own sockets. */
export class AgentClient implements Disposable {
  readonly snapshots: SnapshotsClient
  readonly #registryUrl: string
  readonly #close: () => void
  #views = 0

  constructor(agent: Pick<AgentProcess, 'registryUrl' | 'snapshotterSocket'>) {
    const { calls, ...connection } = connect(snapshotsContract(), agent.snapshotterSocket)
    this.snapshots = new SnapshotsClient(calls)
    this.#registryUrl = agent.registryUrl
    this.#close = connection[Symbol.dispose]
  }

  /** GET of the registry's, with its status and text. */
  async get(path: string): Promise<{ status: number; text: string }> {
    const signal = AbortSignal.timeout(ANSWER_MS)
    const response = await fetch(`${this.#registryUrl}/v2/${path}`, { signal })
    return { status: response.status, text: await response.text() }
  }

  /** Asks for the manifest, as every pull begins. Rejects with the registry's answer if it is no manifest. */
  async resolve({ root }: Pick<PublishedImage, 'root'>, reference = 'latest'): Promise<void> {
    const { status, text } = await this.get(`${root.toString()}/manifests/${reference}`)
    if (status !== 200) throw new Error(`${status} ${text}`)
  }

  /** Asks for one layer by its chain ID. Rejects as the snapshotter if it cannot be had. */
  async claim(chainId: string, parent = ''): Promise<void> {
    const labels = { 'containerd.io/snapshot.ref': chainId }
    try {
      await this.snapshots.prepare(`extract-${chainId}`, parent, labels)
    } catch (error) {
      if (error instanceof Error && 'code' in error && error.code === ALREADY_EXISTS) return
      throw error
    }
    throw new Error(`layer ${chainId} was not claimed: containerd would download it`)
  }

  async pull(image: PublishedImage): Promise<void> {
    await this.resolve(image)
    let parent: string | undefined
    for (const chainId of image.chainIds) {
      await this.claim(chainId, parent)
      parent = chainId
    }
  }

  /** A view of the image. */
  async view(image: PublishedImage): Promise<{ key: string; mounts: readonly Mount__Output[] }> {
    const key = `view-${this.#views++}`
    return { key, mounts: await this.snapshots.view(key, image.chainIds.at(-1) ?? '') }
  }

  /** Mounts a view of the image in `scratch`; the view outlives the mount. */
  async mount(
    image: PublishedImage,
    scratch: Scratch,
  ): Promise<{ key: string; path: string } & AsyncDisposable> {
    const { key, mounts } = await this.view(image)
    const path = join(scratch.dir, key)
    mkdirSync(path)
    const mounted = await mountAll(mounts, path)
    return { key, path, [Symbol.asyncDispose]: () => mounted[Symbol.asyncDispose]() }
  }

  [Symbol.dispose](): void {
    this.#close()
  }
}
