import { type ImageReference, parseImageReference } from '../../snapshotter/oci/reference.ts'
import { asUsageFailure } from './failure.ts'

/** The argument of the commands that take one image. */
export const IMAGE_ARGUMENT = {
  type: 'string',
  demandOption: true,
  describe: 'A CID, or ipdr.internal/<cid>[:tag|@digest]',
} as const

/** Reads an image named on the command line. Throws CommandFailure (usage) with what to write instead. */
export function imageReference(text: string): ImageReference {
  try {
    return parseImageReference(text)
  } catch (error) {
    throw asUsageFailure(error)
  }
}
