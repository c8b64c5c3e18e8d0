import type { PublishedImage } from '../../demo/publish.ts'
import type { ContainerdOptions } from '../../support/containerd.ts'
import type { OciLayout } from '../../support/images/oci-layout.ts'
import type { Scratch } from '../../support/scratch.ts'
import type { Optimized } from '../optimize.ts'
import type { Site } from './site.ts'
import type { Workload } from './workloads.ts'

/** A way to start containers. */
export type Arm = {
  /** By which `--arms` finds it. */
  readonly name: string
  /** In a table or a picture. */
  readonly title: string
  /** A container starts only once all of its image is here. */
  readonly isWhole: boolean
  /** Makes what is lacking on this machine, as long as it has the network: programs that have to be unpacked or built. */
  readonly prepare?: () => Promise<void>
  /** Puts an image where this arm's nodes fetch it, in the form in which they want it; resolves to the reference to pull. */
  readonly publish: (image: ImageToStart, site: Site) => Promise<string>
  /** Starts what this arm has on a node beside containerd, with nothing in it. */
  readonly openNode: (scratch: Scratch, site: Site) => Promise<ArmNode>
}

/** An image with all that arms may want to know of it. */
export type ImageToStart = {
  readonly workload: Workload
  readonly layout: OciLayout
  /** As `ipdr push` published it, with a list by `ipdr optimize`, and pushed again with that list. */
  readonly published: PublishedImage
  readonly listed: Optimized
  readonly optimised: PublishedImage
  /** Compressed bytes that a start needs. */
  readonly neededBytes: number
}

/** What containerd is to know of an arm's node. Disposed of after containerd. */
export type ArmNode = AsyncDisposable & {
  readonly snapshotter: ContainerdOptions['snapshotter']
  /** Hosts of images, by name, and where they are reached. */
  readonly hosts: Readonly<Record<string, string>>
  /** What this arm alone can tell of a start, once the container is ready. */
  readonly counters?: () => Promise<Readonly<Record<string, number>>>
}

/** Where containerd finds a registry that it reaches under its own name. */
export function registryHosts(host: string): Record<string, string> {
  return { [host]: `http://${host}` }
}
