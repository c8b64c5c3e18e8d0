import type { PullProgress__Output } from '../../../proto/types/ipdr/v1/PullProgress.ts'
import { type Command, defineCommand } from '../command.ts'
import { EXIT_CODES } from '../exit-codes.ts'
import { CommandFailure } from '../failure.ts'
import { IMAGE_ARGUMENT, imageReference } from '../image-argument.ts'
import { count, formatBytes, formatMs, formatRate } from '../quantity.ts'
import { shortDigest } from '../short-digest.ts'

/** `ipdr pull` */
export const pull: Command = defineCommand({
  name: 'pull',
  usage: '<image>',
  summary: 'Make an image ready to run on this node',
  description: [
    'Asks the agent to prepare every layer of an image, so that containers start without waiting for tables of contents. The bytes of layers that can be read lazily stay where they are until a process reads them; with --all they are fetched too, and the image runs with no peer in reach.',
    'It does not tell containerd about the image: crictl pull, ctr image pull or the kubelet do, and find it prepared.',
  ],
  args: {
    image: IMAGE_ARGUMENT,
  },
  options: {
    all: { type: 'boolean', default: false, describe: 'Fetch every byte of every layer' },
  },
  examples: [
    ['ipdr pull <cid>', 'prepare an image'],
    ['ipdr pull --all ipdr.internal/<cid>:v2', 'have all of it on this node'],
  ],
  seeAlso: ['ipdr inspect', 'ipdr cache ls', 'ipdr status'],
  async run({ image, all }, { output, progress, agentSocket, signal }) {
    imageReference(image)
    const { connectAgent } = await import('../agent-connection.ts')
    using agent = await connectAgent(agentSocket)
    const startedAt = performance.now()
    const layers = new Map<string, PullProgress__Output>()
    const startedWith = new Map<string, number>()
    for await (const update of agent.calls.Pull({ reference: image, all }, { signal })) {
      layers.set(update.layerDigest, update)
      const doneBytes = Number(update.presentBytes)
      if (!startedWith.has(update.layerDigest)) startedWith.set(update.layerDigest, doneBytes)
      progress.update({
        item: shortDigest(update.layerDigest),
        doneBytes,
        totalBytes: Number(update.totalBytes),
        step: update.error !== '' ? 'failed' : update.done ? 'done' : 'fetching',
      })
    }
    progress.finish()
    const elapsedMs = Math.round(performance.now() - startedAt)
    const results = [...layers.values()].map((layer) => ({
      digest: layer.layerDigest,
      presentBytes: Number(layer.presentBytes),
      totalBytes: Number(layer.totalBytes),
      done: layer.done,
      error: layer.error === '' ? null : layer.error,
    }))
    const before = [...startedWith.values()].reduce((sum, bytes) => sum + bytes, 0)
    const presentBytes = results.reduce((sum, layer) => sum + layer.presentBytes, 0)
    const totalBytes = results.reduce((sum, layer) => sum + layer.totalBytes, 0)
    const fetchedBytes = presentBytes - before
    checkDone(results)
    output.answer(
      { image, all, layers: results, presentBytes, totalBytes, fetchedBytes, elapsedMs },
      () =>
        `${count(results.length, 'layer')} ready, ${formatBytes(presentBytes)} of ${formatBytes(totalBytes)} on this node; fetched ${formatBytes(fetchedBytes)} in ${formatMs(elapsedMs)} (${formatRate(fetchedBytes, elapsedMs)})`,
    )
  },
})

function checkDone(
  layers: readonly { digest: string; done: boolean; error: string | null }[],
): void {
  const failed = layers.filter(({ done, error }) => error !== null || !done)
  const [first] = failed
  if (first === undefined) return
  const others = failed.length > 1 ? `, and ${count(failed.length - 1, 'more layer')}` : ''
  throw new CommandFailure(
    EXIT_CODES.failure,
    `layer ${first.digest}: ${first.error ?? 'the agent stopped before it was done'}${others}`,
    'Run it again: what was fetched is kept.',
  )
}
