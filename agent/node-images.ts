import { connect, type ServiceClient } from '../proto/client.ts'
import { agentContract } from '../proto/load.ts'
import type { AgentDefinition, AgentHandlers } from '../proto/types/ipdr/v1/Agent.ts'
import { IMAGE_HOST, parseImageReference } from '../snapshotter/oci/reference.ts'

/** How long the data worker may take to answer, in ms: it only reads its own memory and disk, and progress is not worth more. */
const ANSWER_MS_MAX = 1_000

/** How much of an image is on this node. */
export type ImageArrival = { readonly hereBytes: number; readonly allBytes: number }

/** What the data worker of this node has of images, asked over its admin socket. */
export class NodeImages implements Disposable {
  readonly #agent: ServiceClient<AgentDefinition, AgentHandlers>

  constructor(adminSocketPath: string) {
    this.#agent = connect(agentContract(), adminSocketPath)
  }

  /** Undefined: it is not an image of ours, this node has not begun with it, or no data worker answers. */
  async arrivalOf(image: string): Promise<ImageArrival | undefined> {
    if (!image.startsWith(`${IMAGE_HOST}/`)) return undefined
    const root = parseImageReference(image).root.toString()
    try {
      const { calls } = this.#agent
      const call = { signal: AbortSignal.timeout(ANSWER_MS_MAX) }
      const { images } = await calls.ListImages({}, call)
      const found = images.find(({ rootCid }) => rootCid === root)
      if (found === undefined) return undefined
      const { layers } = await calls.ListLayers({}, call)
      const own = layers.filter(({ digest }) => found.layers.includes(digest))
      const sum = (of: (layer: (typeof own)[number]) => string): number =>
        own.reduce((total, layer) => total + Number(of(layer)), 0)
      // A layer that nothing was read of yet is not listed, so that the whole is what the manifest says.
      const allBytes = Math.max(
        Number(found.size),
        sum(({ blobSize }) => blobSize),
      )
      return {
        hereBytes: Math.min(
          sum(({ presentBytes }) => presentBytes),
          allBytes,
        ),
        allBytes,
      }
    } catch {
      // Whoever deploys is not told less of anything else.
      return undefined
    }
  }

  [Symbol.dispose](): void {
    this.#agent[Symbol.dispose]()
  }
}
