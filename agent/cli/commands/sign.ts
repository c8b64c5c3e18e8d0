import { readFile } from 'node:fs/promises'
import { DEFAULT_TAG, IMAGE_HOST } from '../../../snapshotter/oci/reference.ts'
import { type Command, defineCommand } from '../command.ts'
import { IMAGE_ARGUMENT, imageReference } from '../image-argument.ts'
import { openInspectionBlocks } from '../inspection-blocks.ts'
import { PLACES_OPTIONS } from '../places-options.ts'
import { openPublishingSink } from '../publishing-sink.ts'
import { count } from '../quantity.ts'
import { REPOSITORY_OPTION } from '../repository-option.ts'
import { fields } from '../table.ts'

/** `ipdr sign` */
export const sign: Command = defineCommand({
  name: 'sign',
  usage: '<image>',
  summary: 'Sign an image, so that nodes whose policy demands it run it',
  description: [
    "Signs the digest of a manifest or index, in cosign's way: the signature lies beside the image under the tag sha256-<hex>.sig, where cosign and skopeo find it too. The image stays what it is; its directory, and so its CID, is a new one, and nodes find the signature by that. Signing an index signs every platform in it. Signatures that are there stay.",
    'The key is a private key in PEM, or as cosign generate-key-pair writes it; its password comes from --password-file or from COSIGN_PASSWORD. Only the new blocks go into the repository.',
  ],
  args: {
    image: IMAGE_ARGUMENT,
  },
  options: {
    key: {
      type: 'string',
      demandOption: true,
      requiresArg: true,
      describe: 'The private key',
      valueName: 'FILE',
    },
    'password-file': {
      type: 'string',
      requiresArg: true,
      describe: 'File with the password of the key; else COSIGN_PASSWORD has it',
      valueName: 'FILE',
    },
    identity: {
      type: 'string',
      requiresArg: true,
      describe: 'Name under which the image is signed, if not its own: who verifies may demand one',
      valueName: 'REFERENCE',
    },
    repository: REPOSITORY_OPTION,
    ...PLACES_OPTIONS,
  },
  examples: [
    ['ipdr sign <cid> --key cosign.key', 'sign an image that lies in your repository'],
    ['image=$(ipdr sign -q $(ipdr push -q app.tar) --key cosign.key)', 'publish and sign'],
  ],
  seeAlso: ['ipdr verify', 'ipdr push', 'ipdr serve'],
  async run({ image, key: path, identity, ...values }, { output, signal }) {
    const { 'password-file': passwordFile, ...places } = values
    const reference = imageReference(image)
    const { parseSigningKey } = await import('../../../snapshotter/trust.ts')
    const password = await passwordOf(passwordFile)
    const key = parseSigningKey(await readFile(path), path, password)
    await using opened = new AsyncDisposableStack()
    const sink = opened.use(await openPublishingSink(places))
    const blocks = await openInspectionBlocks(places, opened)
    const { signImage } = await import('../../../snapshotter/sign-image.ts')
    const signed = await signImage(reference, { key, identity, blocks, sink, signal })
    const root = signed.root.toString()
    await sink.addRoot(signed.root, `signature of ${reference.root.toString()}`)
    const joint = reference.selector.includes(':') ? '@' : ':'
    const suffix = reference.selector === DEFAULT_TAG ? '' : `${joint}${reference.selector}`
    const document = {
      root,
      reference: `${IMAGE_HOST}/${root}${suffix}`,
      digest: signed.manifestDigest,
      signatures: signed.signatures,
    }
    output.answer(document, () => {
      if (output.quiet) return document.reference
      return [
        `Signed ${signed.manifestDigest}; ${count(signed.signatures, 'signature')} beside the image.`,
        fields([
          ['Root CID', root],
          ['Reference', document.reference],
        ]),
        'Offer it to others: ipdr serve',
      ].join('\n')
    })
  },
})

/** Never from the command line, which everybody on the machine can read. */
async function passwordOf(file: string | undefined): Promise<string | undefined> {
  if (file === undefined) return process.env['COSIGN_PASSWORD']
  return (await readFile(file, 'utf8')).replace(/\r?\n$/, '')
}
