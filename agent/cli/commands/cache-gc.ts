import { type Command, defineCommand } from '../command.ts'
import { count, formatBytes, parseSize } from '../quantity.ts'

/** `ipdr cache gc` */
export const cacheGc: Command = defineCommand({
  name: 'cache gc',
  usage: '',
  summary: 'Free layer bytes that nothing uses',
  description: [
    'Asks the agent to drop layer bytes that no mount needs, least recently used first. Nothing is lost: what is read again is fetched again. The agent does the same by itself when its store is full; this does it now.',
    'With --keep it stops as soon as the store is no larger than that; without, all that is not in use goes.',
  ],
  args: {},
  options: {
    keep: {
      type: 'string',
      requiresArg: true,
      describe: 'Stop once the store is no larger than SIZE, like 10GiB',
      valueName: 'SIZE',
    },
  },
  examples: [
    ['ipdr cache gc --keep 10GiB', 'free the least recently used, down to 10 GiB'],
    ['ipdr cache gc', 'free all that no container uses'],
  ],
  seeAlso: ['ipdr cache ls', 'ipdr cache rm'],
  async run({ keep }, { output, agentSocket, signal }) {
    const targetBytes = keep === undefined ? 0 : parseSize(keep)
    const { connectAgent } = await import('../agent-connection.ts')
    using agent = await connectAgent(agentSocket)
    // Without a deadline: freeing a large store takes as long as the disk takes.
    const freed = await agent.calls.CollectGarbage({ targetBytes: String(targetBytes) }, { signal })
    const freedBytes = Number(freed.freedBytes)
    output.answer(
      { freedBytes, removedLayers: freed.removedLayers },
      () => `Freed ${formatBytes(freedBytes)} of ${count(freed.removedLayers, 'layer')}.`,
    )
  },
})
