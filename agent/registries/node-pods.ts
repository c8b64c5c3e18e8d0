import {
  formatRegistryReference,
  parseRegistryReference,
} from '../../snapshotter/oci/registry-reference.ts'

/** Pods of a node. 1,000: the kubelet runs 110 unless told otherwise. */
const PODS_MAX = 1_000

/** A pod as Kubernetes' API gives it, as far as we look into it. */
export type KubePod = {
  readonly metadata?: { readonly namespace?: string; readonly name?: string }
  readonly spec?: {
    readonly containers?: readonly { readonly image?: string }[]
    readonly initContainers?: readonly { readonly image?: string }[]
    readonly ephemeralContainers?: readonly { readonly image?: string }[]
  }
}

type Known = { readonly namespace: string; readonly images: ReadonlySet<string> }

/** The pods that are to run on this node: for whom an image is pulled, where no pull itself tells. */
export class NodePods {
  readonly #pods = new Map<string, Known>()

  put(pod: KubePod): void {
    const { namespace = '' } = pod.metadata ?? {}
    const { containers = [], initContainers = [], ephemeralContainers = [] } = pod.spec ?? {}
    const named = [...containers, ...initContainers, ...ephemeralContainers]
    const images = new Set(named.flatMap(({ image = '' }) => spelled(image) ?? []))
    if (this.#pods.size < PODS_MAX && namespace !== '') {
      this.#pods.set(keyOf(pod), { namespace, images })
    }
  }

  remove(pod: KubePod): void {
    this.#pods.delete(keyOf(pod))
  }

  /** Namespaces of pods that name the image, however it is spelled. */
  namespacesPulling(reference: string): readonly string[] {
    const wanted = spelled(reference)
    if (wanted === undefined) return []
    const naming = [...this.#pods.values()].filter(({ images }) => images.has(wanted))
    return [...new Set(naming.map(({ namespace }) => namespace))].toSorted()
  }
}

function keyOf({ metadata }: KubePod): string {
  return `${metadata?.namespace ?? ''}/${metadata?.name ?? ''}`
}

function spelled(image: string): string | undefined {
  try {
    return formatRegistryReference(parseRegistryReference(image))
  } catch {
    return undefined
  }
}
