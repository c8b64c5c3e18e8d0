import { isEncrypted } from '../encryption/layer-encryption.ts'
import { ImageError } from '../errors.ts'
import { dropPageCache } from '../kernel/drop-page-cache.ts'
import type { ImageRecord, LayerRecord } from '../layers/catalog.ts'
import type { LayerMounts } from '../layers/layer-mounts.ts'
import { listTotals, type PrefetchList, RANGES_MAX } from './prefetch-list.ts'
import type { Prefetcher } from './prefetcher.ts'
import { REPLAY_BYTES_MAX } from './replay-list.ts'
import type { Recording, StartRecorder } from './start-recorder.ts'

/** A list of what was read of an image, and how much that is. */
export type RecordedList = {
  readonly list: PrefetchList
  readonly files: number
  /** Bytes that the list names, of layer files. */
  readonly bytes: number
  /** Bytes of all layer files of the image. */
  readonly imageBytes: number
}

type Parts = {
  readonly recorder: StartRecorder
  readonly mounts: LayerMounts
  readonly prefetcher: Prefetcher
}

/**
 * What is read of one image, by whatever container of this node, from now until `finish`. While it goes on, new mounts of the
 * image's layers go through FUSE even if they are complete.
 */
export class ImageRecording implements Disposable {
  readonly image: ImageRecord
  /** Sentences on what may not be seen. */
  readonly warnings: readonly string[]
  readonly #layers: readonly LayerRecord[]
  readonly #prefetcher: Prefetcher
  readonly #recording: Recording
  readonly #opened: DisposableStack

  private constructor(
    {
      image,
      layers,
      warnings,
    }: { image: ImageRecord; layers: readonly LayerRecord[]; warnings: string[] },
    prefetcher: Prefetcher,
    recording: Recording,
    opened: DisposableStack,
  ) {
    this.image = image
    this.warnings = warnings
    this.#layers = layers
    this.#prefetcher = prefetcher
    this.#recording = recording
    this.#opened = opened
  }

  /**
   * Begins to record; `layers` are those of the image, bottom first. What the page cache has of them is dropped. Rejects with
   * ImageError FAILED_PRECONDITION if one is encrypted: a list is published in plain text.
   */
  static async start(
    image: ImageRecord,
    layers: readonly LayerRecord[],
    { recorder, mounts, prefetcher }: Parts,
  ): Promise<ImageRecording> {
    using opened = new DisposableStack()
    if (layers.some(({ mediaType }) => isEncrypted(mediaType))) {
      throw new ImageError(
        'FAILED_PRECONDITION',
        `image ${image.rootCid} has encrypted layers, and a prefetch list beside it would name their files to everybody: nodes learn their own lists of it, which stay on the node`,
        { root: image.rootCid },
      )
    }
    const ids = layers.map(({ id }) => id)
    const warnings: string[] = []
    if (ids.some((id) => mounts.isMounted(id))) {
      await dropPageCache().catch((error: unknown) => {
        warnings.push(
          `layers of the image are mounted already, and the page cache could not be dropped (${String(error)}): what it has is not seen to be read`,
        )
      })
    }
    opened.use(mounts.readThroughFuse(ids))
    const recording = opened.use(
      recorder.record({ layers: new Set(ids), isBounded: false, bytesMax: REPLAY_BYTES_MAX }),
    )
    return new ImageRecording({ image, layers, warnings }, prefetcher, recording, opened.move())
  }

  /** How much was read so far. */
  progress(): { readonly ranges: number; readonly bytes: number } {
    const { ranges, bytes } = this.#recording.uses
    return { ranges: ranges.length, bytes }
  }

  /** Ends the recording and names what was read. Rejects with LayerError if a table of contents cannot be read. */
  async finish(): Promise<RecordedList> {
    this[Symbol.dispose]()
    const named = await this.#prefetcher.name(this.#layers, this.#recording)
    const list = { ...named, ranges: named.ranges.slice(0, RANGES_MAX) }
    const imageBytes = this.#layers.reduce((sum, { layerSize }) => sum + layerSize, 0)
    return { list, ...listTotals(list), imageBytes }
  }

  [Symbol.dispose](): void {
    this.#opened.dispose()
  }
}
