import { type Command, defineCommand } from '../command.ts'
import { EXIT_CODES } from '../exit-codes.ts'
import { CommandFailure } from '../failure.ts'
import { count } from '../quantity.ts'
import { completeDigest, shortDigest } from '../short-digest.ts'

/** What was found of one layer. */
type Checked = {
  readonly digest: string
  readonly state: 'intact' | 'healed' | 'incomplete' | 'damaged'
  readonly healedUnits: number
  readonly healedTables: boolean
  readonly error: string | null
}

/** `ipdr cache check` */
export const cacheCheck: Command = defineCommand({
  name: 'cache check',
  usage: '[digests..]',
  summary: 'Read layers from the disk, and heal what it damaged',
  description: [
    'Reads what is here of layers, all of them unless some are named, from the disk instead of from memory, and compares it with what was written, and whole layers with what their images promise. Parts that the disk has damaged are fetched again; tables of contents and metadata images are made again.',
    'A layer is incomplete if bytes of it are still missing; those that are here are as they should be. Containers go on meanwhile; it takes as long as the disk takes to read its layers.',
    'The exit code is 1 if a layer is damaged and could not be healed.',
  ],
  args: {
    digests: { type: 'string', array: true, describe: 'Digests of layers, or their beginnings' },
  },
  options: {},
  examples: [
    ['ipdr cache check', 'check all layers'],
    ['ipdr cache check sha256:9f2c4a01b7de', 'check one'],
  ],
  seeAlso: ['ipdr cache ls', 'ipdr cache rm'],
  async run({ digests = [] }, { output, agentSocket, signal, progress }) {
    const { ask, connectAgent } = await import('../agent-connection.ts')
    using agent = await connectAgent(agentSocket)
    const { layers } = await ask((call) => agent.calls.ListLayers({}, call), signal)
    const known = layers.map(({ digest }) => digest)
    const chosen = new Set(
      digests.length === 0 ? known : digests.map((written) => completeDigest(written, known)),
    )
    const found: Checked[] = []
    for (const { digest, presentBytes } of layers) {
      if (!chosen.delete(digest)) continue
      const bytes = Number(presentBytes)
      progress.update({
        item: shortDigest(digest),
        doneBytes: 0,
        totalBytes: bytes,
        step: 'reading',
      })
      const checked = await checkLayer(digest)
      progress.update({
        item: shortDigest(digest),
        doneBytes: bytes,
        totalBytes: bytes,
        step: checked.state,
      })
      found.push(checked)
    }
    progress.finish()
    const states = (['intact', 'healed', 'incomplete', 'damaged'] as const).map(
      (state) => [state, found.filter((each) => each.state === state).length] as const,
    )
    output.answer({ layers: found, ...Object.fromEntries(states) }, () => {
      const counted = states.filter(([, layers]) => layers > 0)
      const summary = counted.map(([state, layers]) => `${layers} ${state}`).join(', ')
      return `Checked ${count(found.length, 'layer')}${summary === '' ? '' : `: ${summary}`}.`
    })
    const [first, ...others] = found.filter(({ error }) => error !== null)
    if (first === undefined) return
    throw new CommandFailure(
      EXIT_CODES.failure,
      `${first.error}${others.length > 0 ? `, and ${count(others.length, 'more layer')}` : ''}`,
      'The log of the agent says more; a disk that damages data should be replaced.',
    )

    async function checkLayer(digest: string): Promise<Checked> {
      try {
        // Without a deadline: it takes as long as the disk takes.
        const { whole, healedUnits, healedTables } = await agent.calls.CheckLayer(
          { digest },
          { signal },
        )
        const isHealed = healedUnits > 0 || healedTables
        const state = isHealed ? 'healed' : whole ? 'intact' : 'incomplete'
        return { digest, state, healedUnits, healedTables, error: null }
      } catch (error) {
        signal.throwIfAborted()
        const reason = error instanceof Error ? error.message : String(error)
        return { digest, state: 'damaged', healedUnits: 0, healedTables: false, error: reason }
      }
    }
  },
})
