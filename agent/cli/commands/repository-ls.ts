import { IMAGE_HOST } from '../../../snapshotter/oci/reference.ts'
import { type Command, defineCommand } from '../command.ts'
import { openExistingRepository, REPOSITORY_OPTION } from '../repository-option.ts'
import { table } from '../table.ts'

/** `ipdr repository ls` */
export const repositoryLs: Command = defineCommand({
  name: 'repository ls',
  usage: '',
  summary: 'List the images that you published',
  description: [
    'Lists the roots that the repository keeps, oldest first: what they were published from, and when. Everything under a root stays until it is removed and garbage is collected.',
  ],
  args: {},
  options: { repository: REPOSITORY_OPTION },
  examples: [
    ['ipdr repository ls', 'what was published'],
    ["ipdr repository ls -o json | jq -r '.roots[-1].root'", 'the newest'],
  ],
  seeAlso: ['ipdr push', 'ipdr repository rm', 'ipdr inspect'],
  async run({ repository: directory }, { output }) {
    await using repository = await openExistingRepository(directory)
    const roots = (await repository.roots()).map(({ cid, name, addedAt }) => ({
      root: cid.toString(),
      reference: `${IMAGE_HOST}/${cid.toString()}`,
      name,
      addedAt: addedAt.toISOString(),
    }))
    output.answer({ roots }, () => {
      if (roots.length === 0) return 'Nothing is published.'
      if (output.quiet) return roots.map(({ root }) => root).join('\n')
      const columns = [{ heading: 'ROOT' }, { heading: 'ADDED' }, { heading: 'FROM' }]
      return table(
        columns,
        roots.map(({ root, addedAt, name }) => [root, addedAt, name]),
        output,
      )
    })
  },
})
