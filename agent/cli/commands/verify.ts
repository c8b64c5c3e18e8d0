import { readFile } from 'node:fs/promises'
import { type Command, defineCommand } from '../command.ts'
import { EXIT_CODES } from '../exit-codes.ts'
import { CommandFailure } from '../failure.ts'
import { IMAGE_ARGUMENT, imageReference } from '../image-argument.ts'
import { openInspectionBlocks } from '../inspection-blocks.ts'
import { PLACES_OPTIONS } from '../places-options.ts'
import { count } from '../quantity.ts'
import { REPOSITORY_OPTION } from '../repository-option.ts'

/** `ipdr verify` */
export const verify: Command = defineCommand({
  name: 'verify',
  usage: '<image>',
  summary: 'Say who of those you trust has signed an image',
  description: [
    'Looks for signatures beside an image, as cosign, skopeo and ipdr sign put them there, and tells which of the given public keys made one of them: of the manifest or index that the reference names, or of an index that names it. It fails with 76 unless each key did, or as many as --min says. No agent is asked, and no layer is read.',
  ],
  args: {
    image: IMAGE_ARGUMENT,
  },
  options: {
    key: {
      type: 'string',
      array: true,
      demandOption: true,
      requiresArg: true,
      describe: 'A public key in PEM; may be repeated',
      valueName: 'FILE',
    },
    min: {
      type: 'number',
      requiresArg: true,
      describe: 'How many of the keys must have signed; by default all',
      valueName: 'N',
    },
    repository: REPOSITORY_OPTION,
    ...PLACES_OPTIONS,
  },
  examples: [['ipdr verify <cid> --key cosign.pub', 'before you put it into a pod']],
  seeAlso: ['ipdr sign', 'ipdr inspect'],
  async run({ image, key: paths, min = paths.length, ...places }, { output, signal }) {
    if (!Number.isInteger(min) || min < 1 || min > paths.length) {
      throw new CommandFailure(
        EXIT_CODES.usage,
        `--min takes a whole number from 1 to ${paths.length}, the number of keys`,
      )
    }
    const reference = imageReference(image)
    const { parseVerificationKey } = await import('../../../snapshotter/trust.ts')
    const { verifyImage } = await import('../../../snapshotter/sign-image.ts')
    const signers = await Promise.all(
      paths.map(async (name) => ({ name, key: parseVerificationKey(await readFile(name), name) })),
    )
    await using opened = new AsyncDisposableStack()
    const blocks = await openInspectionBlocks(places, opened)
    const found = await verifyImage(reference, signers, { blocks, signal })
    const document = {
      digest: found.manifestDigest,
      signedBy: found.by,
      signatures: found.signatures,
    }
    if (found.by.length < min) {
      throw new CommandFailure(
        EXIT_CODES.verification,
        `${found.manifestDigest} is signed by ${found.by.length} of ${paths.length} keys${found.by.length === 0 ? '' : ` (${found.by.join(', ')})`}, ${min} are needed; beside it lie ${count(found.signatures, 'signature')}`,
        'Signing makes a new CID: verify the one that ipdr sign printed.',
      )
    }
    output.answer(document, () => `${found.manifestDigest} is signed by ${found.by.join(', ')}.`)
  },
})
