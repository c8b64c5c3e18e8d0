import { type Command, defineCommand } from '../command.ts'
import { plain } from '../failure.ts'
import { FILE_ARGUMENT, openPod, PUBLISHER_OPTIONS } from '../publisher-options.ts'

/** `ipdr delete` */
export const deletePod: Command = defineCommand({
  name: 'delete',
  usage: '[file]',
  summary: 'Delete a pod from its cluster, with its volumes',
  description: [
    'Everything of the pod goes: containers, secrets, host names, and the data in its volumes. Ends when it is gone; interrupted, the cluster goes on. The payment channel stays: what is left in it is yours to take.',
  ],
  args: { file: FILE_ARGUMENT },
  options: PUBLISHER_OPTIONS,
  examples: [['ipdr delete', 'the pod of ./ipdr.yaml']],
  seeAlso: ['ipdr deploy', 'ipdr status'],
  async run({ file, ...values }, { output, signal }) {
    await using opened = new AsyncDisposableStack()
    const { client, podId } = await openPod(file, values, opened)
    let told = ''
    for await (const { remaining } of client.delete(podId, signal)) {
      const text = remaining.join('; ')
      if (text !== '' && text !== told && !output.quiet) process.stderr.write(`${plain(text)}\n`)
      told = text
    }
    output.answer({ podId, deleted: true }, () => (output.quiet ? podId : 'The pod is gone.'))
  },
})
