import type { LogLine } from '../../../proto/messages/ipdr/deploy_pb.js'
import { type Command, defineCommand } from '../command.ts'
import { FILE_ARGUMENT, openPod, PUBLISHER_OPTIONS } from '../publisher-options.ts'

/** `ipdr logs` */
export const logs: Command = defineCommand({
  name: 'logs',
  usage: '[file]',
  summary: "Print what a pod's containers write",
  description: [
    'Lines of all replicas, each in its order; with more than one, each line begins with the name of its replica. With --output json one document a line, with its time in nanoseconds.',
  ],
  args: { file: FILE_ARGUMENT },
  options: {
    ...PUBLISHER_OPTIONS,
    container: {
      alias: 'c',
      type: 'string',
      requiresArg: true,
      describe: 'Which one, where the pod has several',
      valueName: 'NAME',
    },
    follow: { alias: 'f', type: 'boolean', default: false, describe: 'Go on until interrupted' },
    tail: {
      type: 'number',
      requiresArg: true,
      describe: 'Only the last lines',
      valueName: 'LINES',
    },
    since: {
      type: 'number',
      requiresArg: true,
      describe: 'Only what is not older',
      valueName: 'SECONDS',
    },
    previous: {
      type: 'boolean',
      default: false,
      describe: 'Of the container before its last restart',
    },
    times: { type: 'boolean', default: false, describe: 'Begin lines with their time' },
  },
  examples: [
    ['ipdr logs -f', 'of the pod of ./ipdr.yaml, as it comes'],
    ['ipdr logs --previous --tail 20', 'why it was started again'],
  ],
  seeAlso: ['ipdr status', 'ipdr deploy'],
  async run({ file, container, follow, tail, since, previous, times, ...values }, session) {
    const { output, signal } = session
    await using opened = new AsyncDisposableStack()
    const { client, podId } = await openPod(file, values, opened)
    const wanted = {
      ...(container !== undefined && { container }),
      follow,
      previous,
      ...(tail !== undefined && { tail: wholeNumber(tail) }),
      ...(since !== undefined && { sinceSeconds: wholeNumber(since) }),
    }
    const replicas = new Set<string>()
    try {
      for await (const line of client.logs(podId, wanted, signal)) {
        replicas.add(line.replica)
        output.line(documentOf(line), () => textOf(line, { times, replicas: replicas.size }))
      }
    } catch (error) {
      // Being interrupted is how following ends.
      if (!(follow && signal.aborted)) throw error
    }
  },
})

function wholeNumber(value: number): number {
  return Math.max(0, Math.min(0xffff_ffff, Math.floor(value)))
}

function documentOf({ replica, container, time, line }: LogLine): object {
  return { replica, container, time: String(time), line }
}

/** As it was written, but for what a terminal would take for an order: a container may write anything. */
function printable(line: string): string {
  return line.replaceAll(/[^\P{Cc}\t]/gu, '')
}

function textOf(
  { replica, time, line }: LogLine,
  { times, replicas }: { readonly times: boolean; readonly replicas: number },
): string {
  const at = times ? `${new Date(Number(time / 1_000_000n)).toISOString()} ` : ''
  return `${replicas > 1 ? `${replica} ` : ''}${at}${printable(line)}`
}
