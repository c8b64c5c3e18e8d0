import type { PublishedImage } from '../demo/publish.ts'
import type { OciLayout } from '../support/images/oci-layout.ts'
import type { BenchPublisher } from './bench-node.ts'
import type { Figure } from './figure.ts'

/** What every measurement is given. */
export type BenchContext = {
  readonly publisher: BenchPublisher
  /** How often each arm of a comparison is measured. */
  readonly rounds: number
  /** How long a measurement goes on that goes by time. */
  readonly minutes: number
  /** Tells what is being done, for whoever waits. */
  readonly say: (what: string) => void
  /** The demo's image, and as it was published; made and pushed at the first call. */
  demo(): Promise<{
    readonly layout: OciLayout
    readonly published: PublishedImage & { readonly ms: number }
  }>
}

/** A part of the benchmark, and the names of the figures that it gives. */
export type Measurement = {
  readonly names: readonly string[]
  /** It takes an hour: only measured where it is named. */
  readonly isLong?: true
  readonly measure: (context: BenchContext) => Promise<Figure[]>
}
