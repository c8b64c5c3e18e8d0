import { type Command, defineCommand } from '../command.ts'
import { EXIT_CODES } from '../exit-codes.ts'
import { CommandFailure } from '../failure.ts'
import { imageReference } from '../image-argument.ts'
import { count } from '../quantity.ts'
import { openExistingRepository, REPOSITORY_OPTION } from '../repository-option.ts'

/** `ipdr repository rm` */
export const repositoryRm: Command = defineCommand({
  name: 'repository rm',
  usage: '<images..>',
  summary: 'Stop keeping an image that you published',
  description: [
    'Forgets roots. Their blocks stay, and are still offered, until ipdr repository gc removes those that no other root needs. Copies that others fetched are theirs.',
  ],
  args: {
    images: {
      type: 'string',
      array: true,
      demandOption: true,
      describe: 'Root CIDs, or references with one',
    },
  },
  options: { repository: REPOSITORY_OPTION },
  examples: [['ipdr repository rm <cid> && ipdr repository gc', 'remove an image and its blocks']],
  seeAlso: ['ipdr repository ls', 'ipdr repository gc'],
  async run({ images, repository: directory }, { output }) {
    const roots = images.map((text) => imageReference(text).root)
    await using repository = await openExistingRepository(directory)
    const kept = new Set((await repository.roots()).map(({ cid }) => cid.toString()))
    // All are looked up before the first is removed: a wrong one removes nothing.
    for (const root of roots) {
      if (kept.has(root.toString())) continue
      throw new CommandFailure(
        EXIT_CODES.notFound,
        `${root.toString()} is not a root of this repository`,
        'List them: ipdr repository ls',
      )
    }
    for (const root of roots) await repository.removeRoot(root)
    output.answer(
      { removed: roots.map(String) },
      () => `Removed ${count(roots.length, 'root')}; ipdr repository gc frees the blocks.`,
    )
  },
})
