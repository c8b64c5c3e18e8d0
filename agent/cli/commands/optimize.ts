import { mkdir } from 'node:fs/promises'
import { CID } from 'multiformats/cid'
import type { FinishRecordingResponse__Output } from '../../../proto/types/ipdr/v1/FinishRecordingResponse.ts'
import { isDigest } from '../../../snapshotter/oci/digest.ts'
import { DEFAULT_TAG, IMAGE_HOST, type ImageReference } from '../../../snapshotter/oci/reference.ts'
import type { Agent } from '../agent-connection.ts'
import { type Command, defineCommand } from '../command.ts'
import type { FetchedBlocks } from '../complete-dag.ts'
import type { RunEnd } from '../container-run.ts'
import { EXIT_CODES } from '../exit-codes.ts'
import { CommandFailure } from '../failure.ts'
import { IMAGE_ARGUMENT, imageReference } from '../image-argument.ts'
import { openInspectionBlocks } from '../inspection-blocks.ts'
import { PLACES_OPTIONS, type Places } from '../places-options.ts'
import { count, formatBytes, formatMs } from '../quantity.ts'
import { type ReadySign, readySign } from '../ready-sign.ts'
import { REPOSITORY_OPTION, repositoryDirectory } from '../repository-option.ts'
import type { Session } from '../session.ts'
import { fields } from '../table.ts'

/** How long the container may run, in seconds, unless --timeout says otherwise: a minute, as long as nodes learn from a start. */
const TIMEOUT_SECONDS = 60

/** `ipdr optimize` */
export const optimize: Command = defineCommand({
  name: 'optimize',
  usage: '<image> [command..]',
  summary: 'Run an image once, and publish it again with a list of what its start reads',
  description: [
    'Runs the image for real, on this node and through its agent, and records which bytes it reads in order of first use. Then it writes a new root into the repository: the same image, with the same digests, and the list beside it. Nodes that pull it fetch what the list names before it is read, so that a cold start does not wait for one block after the other. Blocks of the image that the repository lacks are fetched.',
    'The container is run by ctr, from an image pulled over CRI into the namespace k8s.io; its output goes to standard error. After -- stands what it runs; nothing: what the image runs by itself. The recording ends when it ends, when a line of its output holds the text of --ready or its address answers a GET, or after --timeout, whichever is first; then the container is stopped. A command that fails, or that is never ready, makes no list.',
    'What the page cache has is not seen to be read: if layers of the image are in use on this node, the agent drops the page cache of the machine, but what a running container has mapped stays unseen. Run it where the image does not run. The list survives a new build of the image: ipdr push --optimize takes it over, and then writes what a start reads into blocks of its own, so that hardly anything else is fetched.',
  ],
  args: {
    image: IMAGE_ARGUMENT,
    command: { type: 'string', array: true, describe: 'After --: what to run, and its arguments' },
  },
  options: {
    ready: {
      type: 'string',
      requiresArg: true,
      describe:
        'The start is over when a line of the output holds this text, or when this http:// address answers',
      valueName: 'SIGN',
    },
    timeout: {
      type: 'number',
      default: TIMEOUT_SECONDS,
      requiresArg: true,
      describe: 'Stop the container after this many seconds',
      valueName: 'SECONDS',
    },
    repository: REPOSITORY_OPTION,
    ...PLACES_OPTIONS,
    address: {
      type: 'string',
      default: '/run/containerd/containerd.sock',
      requiresArg: true,
      describe: 'Socket of containerd',
      valueName: 'SOCKET',
      env: 'CONTAINERD_ADDRESS',
    },
    snapshotter: {
      type: 'string',
      default: 'ipdr',
      requiresArg: true,
      describe: 'Name of the agent in the configuration of containerd',
      valueName: 'NAME',
      env: 'CONTAINERD_SNAPSHOTTER',
    },
    'run-flag': {
      type: 'string',
      array: true,
      requiresArg: true,
      default: [] as string[],
      describe:
        'Flag of ctr run, such as --run-flag=--net-host or --run-flag=--env=A=B; may be repeated',
      valueName: 'FLAG',
    },
  },
  examples: [
    ['ipdr optimize <cid> -- python3 -c "import numpy"', 'a command that ends'],
    ['ipdr optimize <cid> --ready "listening on"', 'a server, until it says that it listens'],
    [
      'ipdr optimize <cid> --run-flag=--net-host --ready http://127.0.0.1:8080/',
      'until it has answered, which reads more',
    ],
    ['new=$(ipdr optimize -q <cid> -- app --version)', 'the new reference, in a script'],
    ['ipdr push ipfs:$new --optimize $new', 'and its layers written anew for that start'],
  ],
  seeAlso: ['ipdr push', 'ipdr inspect', 'ipdr waited'],
  async run(values, session) {
    const reference = imageReference(values.image)
    if (!(values.timeout > 0)) {
      throw new CommandFailure(EXIT_CODES.usage, '--timeout must be a number of seconds above 0')
    }
    const ready = values.ready === undefined ? undefined : readySign(values.ready)
    const startedAt = performance.now()
    const { recorded, end, warnings } = await recordRun(reference, { ...values, ready }, session)
    const { root, fetched } = await publishList(reference, recorded, values, session)
    session.progress.finish()
    const bytes = Number(recorded.bytes)
    const imageBytes = Number(recorded.imageBytes)
    const document = {
      root: root.toString(),
      reference: referenceTo(root, reference.selector),
      previousRoot: reference.root.toString(),
      manifest: recorded.manifestDigest,
      ranges: Number(recorded.ranges),
      files: Number(recorded.files),
      bytes,
      imageBytes,
      shareOfImage: imageBytes === 0 ? 0 : Number((bytes / imageBytes).toFixed(4)),
      endedBy: end.kind,
      fetchedBlocks: fetched.blocks,
      fetchedBytes: fetched.bytes,
      warnings,
      elapsedMs: Math.round(performance.now() - startedAt),
    }
    session.output.answer(document, () => {
      if (session.output.quiet) return document.reference
      const percent = (document.shareOfImage * 100).toFixed(1)
      return [
        `${count(document.ranges, 'range')} of ${count(document.files, 'file')}, ${formatBytes(bytes)} of ${formatBytes(imageBytes)} unpacked (${percent} %), read ${SPANS[end.kind]} in ${formatMs(document.elapsedMs)}`,
        ...(fetched.blocks === 0
          ? []
          : [
              `Fetched into the repository: ${count(fetched.blocks, 'block')}, ${formatBytes(fetched.bytes)}`,
            ]),
        ...warnings.map((warning) => `Note: ${warning}`),
        fields([
          ['Root CID', document.root],
          ['Reference', document.reference],
        ]),
        'Offer it to others: ipdr serve',
      ].join('\n')
    })
  },
})

const SPANS: Readonly<Record<RunEnd['kind'], string>> = {
  exit: 'until the command ended,',
  ready: 'until it was ready,',
  timeout: 'until it was stopped,',
}

type RunValues = {
  readonly command: readonly string[] | undefined
  readonly ready: ReadySign | undefined
  readonly timeout: number
  readonly address: string
  readonly snapshotter: string
  readonly 'run-flag': readonly string[]
}

type Recorded = {
  readonly recorded: FinishRecordingResponse__Output
  readonly end: RunEnd
  readonly warnings: readonly string[]
}

/** Pulls the image, runs it once, and gives back what the agent has seen. Nothing of the container or the image is left. */
async function recordRun(
  { root, selector }: ImageReference,
  values: RunValues,
  { agentSocket, progress, output, signal }: Session,
): Promise<Recorded> {
  const { connectAgent, ask } = await import('../agent-connection.ts')
  const { ContainerRun, pullByCri } = await import('../container-run.ts')
  using agent = await connectAgent(agentSocket)
  const node = { socketPath: values.address, snapshotter: values.snapshotter }
  const reference = referenceTo(root, selector, { isExplicit: true })
  const show = (step: string, doneBytes: number): void =>
    progress.update({ item: 'start', doneBytes, totalBytes: undefined, step })
  show('pulling', 0)
  await using _image = await pullByCri(reference, node, signal)
  using recording = await Recorder.start(agent, reference, signal, (bytes) =>
    show('recording', bytes),
  )
  const request = { reference, flags: values['run-flag'], ready: values.ready }
  await using container = ContainerRun.start(
    { ...request, command: values.command ?? [], quiet: output.quiet },
    node,
  )
  const end = await container.end(values.timeout * 1000, signal)
  checkEnd(end, values)
  const recorded = await ask(
    (call) => agent.calls.FinishRecording({ recordingId: recording.id }, call),
    signal,
  )
  if (Number(recorded.ranges) > 0) return { recorded, end, warnings: recording.warnings }
  throw new CommandFailure(
    EXIT_CODES.failure,
    'nothing that the container read came through the agent, so there is nothing to list',
    `Is ${values.snapshotter} this agent's name in containerd's configuration? ipdr status lists what is mounted.`,
  )
}

function checkEnd(end: RunEnd, { ready, timeout }: RunValues): void {
  if (end.kind === 'exit' && end.exitCode !== 0) {
    throw new CommandFailure(
      EXIT_CODES.failure,
      `the command ended with exit code ${end.exitCode}, so what it read says little: no list was written`,
      'What it said stands above. --run-flag gives ctr run what it lacks: --net-host, --env=A=B, --mount=…',
    )
  }
  if (end.kind === 'ready' || ready === undefined) return
  const [did, didNot, mend] =
    ready.kind === 'line'
      ? [`said '${ready.text}'`, `say '${ready.text}'`, 'Check the text']
      : [
          `answered at ${ready.url.href}`,
          `answer at ${ready.url.href}`,
          'Check the address, and that the container shares the network (--run-flag=--net-host)',
        ]
  throw new CommandFailure(
    EXIT_CODES.temporary,
    end.kind === 'exit'
      ? `the command ended before it ${did}: no list was written`
      : `the command did not ${didNot} within ${timeout} s: no list was written`,
    `${mend}, or give it longer with --timeout.`,
  )
}

/** A recording of the agent's, which it throws away when this is disposed of. */
class Recorder implements Disposable {
  readonly id: string
  readonly warnings: readonly string[]
  readonly #stop: AbortController

  private constructor(id: string, warnings: readonly string[], stop: AbortController) {
    this.id = id
    this.warnings = warnings
    this.#stop = stop
  }

  static async start(
    agent: Agent,
    reference: string,
    signal: AbortSignal,
    onBytes: (bytes: number) => void,
  ): Promise<Recorder> {
    const stop = new AbortController()
    const call = { signal: AbortSignal.any([signal, stop.signal]) }
    const steps = agent.calls.Record({ reference }, call)[Symbol.asyncIterator]()
    const first = await steps.next()
    if (first.done === true) {
      throw new CommandFailure(EXIT_CODES.failure, 'the agent ended the recording at once')
    }
    const follow = async (): Promise<void> => {
      for (let step = await steps.next(); step.done !== true; step = await steps.next()) {
        onBytes(Number(step.value.bytes))
      }
    }
    // If the agent goes away, FinishRecording says so.
    follow().catch(() => undefined)
    return new Recorder(first.value.recordingId, first.value.warnings, stop)
  }

  [Symbol.dispose](): void {
    this.#stop.abort()
  }
}

/** Writes the image's directory again with the list in it, and fetches what the repository lacks of the image. */
async function publishList(
  { root, selector }: ImageReference,
  { list: bytes, manifestDigest }: FinishRecordingResponse__Output,
  places: Places,
  { progress, signal }: Session,
): Promise<{ root: CID; fetched: FetchedBlocks }> {
  const { addPublishedLists, decodePrefetchList } = await import('../../../snapshotter/optimize.ts')
  const { BlockRepository } = await import('../../ipfs/repository.ts')
  const { completeDag } = await import('../complete-dag.ts')
  if (!isDigest(manifestDigest)) {
    throw new CommandFailure(EXIT_CODES.badData, `the agent names the manifest '${manifestDigest}'`)
  }
  const directory = repositoryDirectory(places.repository)
  await mkdir(directory, { recursive: true, mode: 0o755 })
  await using repository = await BlockRepository.open(directory)
  await using opened = new AsyncDisposableStack()
  const blocks = await openInspectionBlocks({ ...places, repository: directory }, opened)
  const lists = new Map([[manifestDigest, decodePrefetchList(bytes)]])
  const optimized = await addPublishedLists(root, lists, { blocks, sink: repository, signal })
  const fetched = await completeDag(optimized, repository, {
    source: blocks,
    signal,
    onFetched: ({ bytes: doneBytes }) =>
      progress.update({ item: 'image', doneBytes, totalBytes: undefined, step: 'fetching' }),
  })
  const known = (await repository.roots()).find(({ cid }) => cid.equals(root.toV1()))
  const name = known?.name ?? referenceTo(root, selector)
  await repository.addRoot(optimized, name.endsWith(' (optimized)') ? name : `${name} (optimized)`)
  return { root: optimized, fetched }
}

/** `explicit`: with the tag that others leave away. */
function referenceTo(
  root: CID,
  selector: string,
  { isExplicit = false }: { isExplicit?: boolean } = {},
): string {
  const image = `${IMAGE_HOST}/${root.toV1().toString()}`
  if (isDigest(selector)) return `${image}@${selector}`
  return selector === DEFAULT_TAG && !isExplicit ? image : `${image}:${selector}`
}
