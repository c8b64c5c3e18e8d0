import { create } from '@bufbuild/protobuf'
import type { Hex } from 'viem'
import { privateKeyToAccount } from 'viem/accounts'
import { startBrowserHost } from '../../../agent/client/browser-host.ts'
import { DeployClient } from '../../../agent/client/deploy-client.ts'
import { type CapacityResponse, PodSchema } from '../../../proto/messages/ipdr/deploy_pb.js'

declare global {
  /** In the page that has this script. */
  var deployPage: DeployPage
}

/** What a test has a page do: one stream at a time. */
export class DeployPage {
  /** What came of the stream: steps by their names, or lines. */
  heard: string[] = []
  #client: DeployClient | undefined
  #stop = new AbortController()

  /** Without a key the wallet signs with zeros. Nothing is dialled yet. */
  async open(addresses: readonly string[], key: Hex | null): Promise<void> {
    const signer =
      key === null
        ? { signTypedData: () => Promise.resolve<Hex>(`0x${'00'.repeat(65)}`) }
        : privateKeyToAccount(key)
    this.#client = new DeployClient(await startBrowserHost(), addresses, { signer })
  }

  async capacity(): Promise<Pick<CapacityResponse, 'agent' | 'evmChainId'>> {
    const { agent, evmChainId } = await this.#open.capacity()
    return { agent, evmChainId }
  }

  /** Deploys a pod of one container, `web`. Resolves when it is ready. */
  async deploy(podId: Hex): Promise<void> {
    const container = {
      name: 'web',
      image: 'ghcr.io/some/image:1',
      cpuMillis: 500,
      memoryBytes: 2n ** 26n,
    }
    const pod = create(PodSchema, { name: 'shop', containers: [container] })
    this.heard = []
    for await (const { step } of this.#open.deploy(podId, { pod })) this.heard.push(`${step.case}`)
  }

  /** Lists lines until `leave`, whereupon it rejects. */
  async followLogs(podId: Hex): Promise<void> {
    this.heard = []
    this.#stop = new AbortController()
    const lines = this.#open.logs(podId, { follow: true }, this.#stop.signal)
    for await (const { line } of lines) this.heard.push(line)
  }

  leave(): void {
    this.#stop.abort()
  }

  get #open(): DeployClient {
    if (this.#client === undefined) throw new Error('the page was not opened')
    return this.#client
  }
}

globalThis.deployPage = new DeployPage()
