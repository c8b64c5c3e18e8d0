import { type ImageReference, parseImageReference } from '../../snapshotter/oci/reference.ts'
import { asUsageFailure } from './failure.ts'

/** Reads an image named on the command line. Throws CommandFailure (usage) with what to write instead. */
export function imageReference(text: string): ImageReference {
  try {
    return parseImageReference(text)
  } catch (error) {
    throw asUsageFailure(error)
  }
}
