import { ImageError } from '../errors.ts'
import type { Digest } from '../oci/digest.ts'
import type { ImageManifest } from '../oci/manifest.ts'

/**
 * Which layers of an image `positions` choose: from 0, the lowest, or from -1, the highest, downwards; all if undefined. A layer that
 * the image has twice is chosen wherever it stands. Throws ImageError OUT_OF_RANGE if there is no such layer.
 */
export function layersToEncrypt(
  { layers }: Pick<ImageManifest, 'layers'>,
  positions: readonly number[] | undefined,
  what: string,
): ReadonlySet<Digest> {
  if (positions === undefined) return new Set(layers.map(({ digest }) => digest))
  return new Set(
    positions.map((position) => {
      const layer = layers.at(position)
      // `at` counts from the end by itself; -0 is 0.
      if (layer !== undefined) return layer.digest
      throw new ImageError(
        'OUT_OF_RANGE',
        `layer ${position} was to be encrypted, and ${what} has layers ${-layers.length} to ${layers.length - 1}`,
      )
    }),
  )
}
