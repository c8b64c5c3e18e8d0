import { createReadStream } from 'node:fs'
import { mkdir, stat } from 'node:fs/promises'
import { addAbortSignal, type Readable } from 'node:stream'
import { IMAGE_HOST } from '../../../snapshotter/oci/reference.ts'
import { type Command, defineCommand } from '../command.ts'
import { count, formatBytes } from '../quantity.ts'
import { REPOSITORY_OPTION, repositoryDirectory } from '../repository-option.ts'
import { fields } from '../table.ts'

/** `ipdr import` */
export const importCommand: Command = defineCommand({
  name: 'import',
  usage: '<file>',
  summary: 'Take an image from a CAR file into the repository',
  description: [
    'Reads a CAR (version 1, one root), checks every block against its CID, and puts the blocks into the repository; ipdr serve offers them to others. Blocks that are there already need not be in the file.',
    'The image is listed once it is whole and can be opened as an image. What is refused leaves blocks that ipdr repository gc removes. With --quiet it prints the image reference alone.',
  ],
  args: {
    file: { type: 'string', demandOption: true, describe: 'A CAR file, or - for standard input' },
  },
  options: { repository: REPOSITORY_OPTION },
  examples: [
    ['ipdr import app.car', 'an image that ipdr export or another tool wrote'],
    ['ssh build ipdr export <cid> | ipdr import -', 'from one repository into another'],
  ],
  seeAlso: ['ipdr export', 'ipdr serve', 'ipdr repository ls'],
  async run({ file, repository: given }, { output, progress, signal }) {
    const isStdin = file === '-'
    const totalBytes = isStdin ? undefined : (await stat(file)).size
    const source = isStdin
      ? addAbortSignal(signal, process.stdin)
      : createReadStream(file, { signal })
    const { BlockRepository } = await import('../../ipfs/repository.ts')
    const { importCar } = await import('../../ipfs/import-car.ts')
    const directory = repositoryDirectory(given)
    await mkdir(directory, { recursive: true, mode: 0o755 })
    await using repository = await BlockRepository.open(directory)
    const item = isStdin ? 'standard input' : file
    const counted = countBytes(source, (doneBytes) => {
      const step = doneBytes === totalBytes ? 'checking' : 'importing'
      progress.update({ item, doneBytes, totalBytes, step })
    })
    const imported = await importCar(counted, { repository, name: item, signal })
    progress.finish()
    const root = imported.root.toString()
    const { tags, blocks, bytes } = imported
    // The only tag there is needs no naming: latest stands for it.
    const document = { root, reference: `${IMAGE_HOST}/${root}`, tags, blocks, bytes }
    output.answer(document, () => {
      if (output.quiet) return document.reference
      return [
        `${count(blocks, 'block')}, ${formatBytes(bytes)}`,
        fields([
          ['Root CID', root],
          ['Reference', document.reference],
          ['Tags', tags.join(', ') || 'none'],
        ]),
        'Offer it to others: ipdr serve',
      ].join('\n')
    })
  },
})

async function* countBytes(
  source: Readable,
  onBytes: (doneBytes: number) => void,
): AsyncGenerator<Uint8Array, void, void> {
  let doneBytes = 0
  for await (const chunk of source as AsyncIterable<Uint8Array>) {
    doneBytes += chunk.length
    onBytes(doneBytes)
    yield chunk
  }
}
