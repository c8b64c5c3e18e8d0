import { type Command, defineCommand } from '../command.ts'
import { count, formatBytes } from '../quantity.ts'
import { completeDigest } from '../short-digest.ts'

/** `ipdr cache rm` */
export const cacheRm: Command = defineCommand({
  name: 'cache rm',
  usage: '<digests..>',
  summary: 'Remove layers from this node',
  description: [
    'Drops layers, their bytes and their tables of contents from this node. A layer that is mounted is refused, and the layers named after it are left alone. Images that have the layer still run: it is fetched again.',
    'A digest may be shortened, as ipdr cache ls prints it, as long as it names one layer.',
  ],
  args: {
    digests: { type: 'string', array: true, demandOption: true, describe: 'Digests of layers' },
  },
  options: {},
  examples: [['ipdr cache rm sha256:9f2c4a01b7de', 'remove one layer']],
  seeAlso: ['ipdr cache ls', 'ipdr cache gc'],
  async run({ digests }, { output, agentSocket, signal }) {
    const { ask, connectAgent } = await import('../agent-connection.ts')
    using agent = await connectAgent(agentSocket)
    const { layers } = await ask((call) => agent.calls.ListLayers({}, call), signal)
    const known = layers.map(({ digest }) => digest)
    // All are looked up before the first is removed: a wrong one removes nothing.
    const chosen = [...new Set(digests.map((written) => completeDigest(written, known)))]
    let freedBytes = 0
    for (const digest of chosen) {
      const freed = await agent.calls.RemoveLayer({ digest }, { signal })
      freedBytes += Number(freed.freedBytes)
    }
    output.answer(
      { removed: chosen, freedBytes },
      () => `Removed ${count(chosen.length, 'layer')}, freed ${formatBytes(freedBytes)}.`,
    )
  },
})
