import { z } from 'zod'
import {
  formatRegistryReference,
  parseRegistryReference,
} from '../../snapshotter/oci/registry-reference.ts'

/** Pods of a node. 1,000: the kubelet runs 110 unless told otherwise. */
const PODS_MAX = 1_000

const containers = z.array(z.object({ image: z.string().max(1_024).nullish() })).nullish()

const nameSchema = z.object({
  metadata: z.object({ namespace: z.string().min(1).max(63), name: z.string().min(1).max(253) }),
})

/** A pod as Kubernetes' API gives it, as far as we look into it. */
const podSchema = nameSchema.extend({
  spec: z.object({
    containers,
    initContainers: containers,
    ephemeralContainers: containers,
  }),
})

type Known = { readonly namespace: string; readonly images: ReadonlySet<string> }

/** The pods that are to run on this node: for whom an image is pulled, where no pull itself tells. */
export class NodePods {
  readonly #pods = new Map<string, Known>()

  put(object: unknown): void {
    const { data: pod } = podSchema.safeParse(object)
    if (pod === undefined) return
    if (this.#pods.size >= PODS_MAX && !this.#pods.has(keyOf(pod))) return
    const { containers, initContainers, ephemeralContainers } = pod.spec
    const named = [containers, initContainers, ephemeralContainers].flatMap((each) => each ?? [])
    const images = new Set(named.flatMap(({ image }) => spelled(image ?? '') ?? []))
    this.#pods.set(keyOf(pod), { namespace: pod.metadata.namespace, images })
  }

  remove(object: unknown): void {
    const { data: pod } = nameSchema.safeParse(object)
    if (pod !== undefined) this.#pods.delete(keyOf(pod))
  }

  /** Namespaces of pods that name the image, however it is spelled. */
  namespacesPulling(reference: string): readonly string[] {
    const wanted = spelled(reference)
    if (wanted === undefined) return []
    const naming = [...this.#pods.values()].filter(({ images }) => images.has(wanted))
    return [...new Set(naming.map(({ namespace }) => namespace))].toSorted()
  }
}

function keyOf({ metadata }: z.infer<typeof nameSchema>): string {
  return `${metadata.namespace}/${metadata.name}`
}

function spelled(image: string): string | undefined {
  try {
    return formatRegistryReference(parseRegistryReference(image))
  } catch {
    return undefined
  }
}
