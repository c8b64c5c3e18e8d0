import { type Command, defineCommand } from '../command.ts'
import { EXIT_CODES } from '../exit-codes.ts'
import { CommandFailure } from '../failure.ts'
import { count, formatBytes } from '../quantity.ts'
import { openExistingRepository, REPOSITORY_OPTION } from '../repository-option.ts'

/** `ipdr repository gc` */
export const repositoryGc: Command = defineCommand({
  name: 'repository gc',
  usage: '',
  summary: 'Remove blocks that no published image needs',
  description: [
    'Removes blocks that no root leads to. Young ones are left alone, because an ipdr push that is still running has no root yet; --min-age 0 takes them too.',
    'Blocks that a root needs and that are not there are counted: such an image cannot be fetched whole. Push it again.',
  ],
  args: {},
  options: {
    repository: REPOSITORY_OPTION,
    'min-age': {
      type: 'number',
      default: 60,
      requiresArg: true,
      describe: 'Leave blocks alone that are younger than this many minutes',
      valueName: 'MINUTES',
    },
  },
  examples: [
    ['ipdr repository gc', 'after ipdr repository rm'],
    ['ipdr repository gc --min-age 0', 'when nothing is being pushed'],
  ],
  seeAlso: ['ipdr repository rm', 'ipdr repository ls'],
  async run({ repository: directory, 'min-age': minutes }, { output, signal }) {
    if (!(minutes >= 0)) {
      throw new CommandFailure(EXIT_CODES.usage, '--min-age must be a number of minutes, 0 or more')
    }
    await using repository = await openExistingRepository(directory)
    const { removed, removedBytes, kept, missing } = await repository.collect({
      signal,
      minAgeMs: minutes * 60_000,
    })
    output.answer(
      { removedBlocks: removed, removedBytes, keptBlocks: kept, missingBlocks: missing },
      () => {
        const lost =
          missing === 0
            ? ''
            : ` ${count(missing, 'block')} of what is kept is missing: push it again.`
        return `Removed ${count(removed, 'block')} (${formatBytes(removedBytes)}), kept ${kept.toLocaleString('en')}.${lost}`
      },
    )
  },
})
