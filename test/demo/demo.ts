import { copyFileSync, existsSync, mkdirSync } from 'node:fs'
import { release } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { EXIT_CODES } from '../../agent/cli/exit-codes.ts'
import { CommandFailure, describeFailure, Interrupted } from '../../agent/cli/failure.ts'
import { count, formatBytes, formatMs } from '../../agent/cli/quantity.ts'
import { AgentProcess } from '../support/agent.ts'
import { Containerd, writeHostsFile } from '../support/containerd.ts'
import { Cri } from '../support/cri.ts'
import type { OciLayout } from '../support/images/oci-layout.ts'
import { Scratch } from '../support/scratch.ts'
import { fetchedBytes, totalBytes } from './fetched-bytes.ts'
import { showIpdr } from './ipdr.ts'
import { checkKernel, checkMachine } from './machine.ts'
import { runProgram } from './program.ts'
import { Publisher, pushImage } from './publish.ts'
import { type Figures, report } from './report.ts'
import { Steps } from './steps.ts'
import { type TimedRun, timedRun } from './timed-run.ts'

// `make demo`: an image from its publisher's hands to the first line of a container, all on this machine.

const USAGE = `usage: demo.ts [--bitswap]
  --bitswap  fetch by bitswap alone, not from the publisher's HTTP gateway`

/** What runs in the container: enough of numpy that its libraries are needed too. */
const COMMAND = [
  'python3',
  '-c',
  'import numpy; print("numpy", numpy.__version__, "says", numpy.linalg.norm([3, 4]))',
]

/** Files shown of those that were waited for: half a screen. */
const FILES_SHOWN = 10

/** Logs of a demo that failed; the folders in which they were written are gone by then. */
const LOGS = join(import.meta.dirname, '../../build/demo-logs')

const steps = new Steps(process.stdout, [
  'Check the kernel',
  'Make an image',
  'Publish it: ipdr push',
  'Offer it: ipdr serve',
  'Start the agent',
  'Start a containerd',
  'Pull by CID and run',
  'Run it again',
  'Clean up',
])

process.exitCode = await main()

async function main(): Promise<number> {
  const stop = new AbortController()
  const stopBy = (signal: 'SIGINT' | 'SIGTERM') => () => stop.abort(new Interrupted(signal))
  // Once: a second Ctrl-C ends us at once, and the next demo removes what is left.
  process.once('SIGINT', stopBy('SIGINT')).once('SIGTERM', stopBy('SIGTERM'))
  // The terminal was closed; whoever read has left.
  process.once('SIGHUP', stopBy('SIGTERM'))
  process.stdout.on('error', stopBy('SIGTERM'))
  try {
    const { bitswap } = parseFlags()
    checkMachine()
    const figures = await demo(bitswap, stop.signal)
    console.log(`\n${report(figures, process.stdout)}`)
    return EXIT_CODES.ok
  } catch (error) {
    const { sentence, nextStep, exitCode } = describeFailure(error, stop.signal)
    console.error(`\ndemo: ${sentence}${nextStep === undefined ? '' : `\n${nextStep}`}`)
    return exitCode
  }
}

function parseFlags(): { bitswap: boolean } {
  try {
    return parseArgs({ options: { bitswap: { type: 'boolean', default: false } } }).values
  } catch (error) {
    throw new CommandFailure(EXIT_CODES.usage, (error as Error).message, USAGE)
  }
}

async function demo(bitswapOnly: boolean, signal: AbortSignal): Promise<Figures> {
  const opened = new AsyncDisposableStack()
  const scratch = opened.use(Scratch.open('demo'))
  try {
    return await publishAndRun(bitswapOnly, { scratch, opened, signal })
  } catch (error) {
    if (!signal.aborted) keepLogs(scratch)
    throw error
  } finally {
    await steps.run(
      'Clean up',
      async () => await opened.disposeAsync(),
      () => 'no process or mount is left, and no file outside build/',
    )
  }
}

type Shared = {
  readonly scratch: Scratch
  readonly opened: AsyncDisposableStack
  readonly signal: AbortSignal
}

async function publishAndRun(
  bitswapOnly: boolean,
  { scratch, opened, signal }: Shared,
): Promise<Figures> {
  const repository = join(scratch.dir, 'repository')
  const certsDir = join(scratch.dir, 'certs.d')

  await steps.run(
    'Check the kernel',
    async () => checkKernel(scratch.dir),
    () => `Linux ${release()} mounts layers before their bytes are here`,
  )
  const layout = await steps.run(
    'Make an image',
    async (say) => {
      const program = [process.execPath, join(import.meta.dirname, 'make-image.ts')]
      const answer = await runProgram(scratch, program, { signal, onError: say })
      return JSON.parse(answer) as OciLayout
    },
    ({ layers }) => `Debian, python3, numpy and more in ${count(layers.length, 'layer')}`,
  )
  const image = await steps.run(
    'Publish it: ipdr push',
    (say) => pushImage(scratch, layout, { repository, signal, say }),
    ({ reference, publishedBytes, blocks }) =>
      `${formatBytes(publishedBytes)} in ${count(blocks, 'block')}

      ${reference}
`,
  )
  const publisher = await steps.run(
    'Offer it: ipdr serve',
    async () => opened.use(await Publisher.start(scratch, { repository, signal })),
    ({ addresses }) => `${addresses.gateway} and libp2p, from a process of its own`,
  )
  const { gateway, multiaddrs } = publisher.addresses
  const agent = await steps.run(
    'Start the agent',
    async () => {
      const gateways = bitswapOnly ? [] : [gateway]
      return opened.use(await AgentProcess.start(scratch, { gateways, peers: multiaddrs }))
    },
    () =>
      bitswapOnly ? 'it fetches by bitswap alone' : 'it fetches from the gateway, else by bitswap',
  )
  const { cri, pod } = await steps.run(
    'Start a containerd',
    async () => {
      writeHostsFile(certsDir, 'ipdr.internal', agent.registryUrl)
      const snapshotter = { name: 'ipdr', socketPath: agent.snapshotterSocket }
      const containerd = opened.use(await Containerd.start({ scratch, snapshotter, certsDir }))
      const cri = opened.use(await Cri.connect(containerd))
      return { cri, pod: await cri.runPodSandbox() }
    },
    () => 'of its own, with an empty pod; the machine’s is not touched',
  )

  const run = { pod, image: image.reference, command: COMMAND }
  const outcome = ({ totalMs, firstLine }: TimedRun): string =>
    `“${firstLine}” after ${formatMs(totalMs)}`
  signal.throwIfAborted()
  const cold = await steps.run(
    'Pull by CID and run',
    (say) => timedRun(cri, run, { signal, say }),
    outcome,
  )
  const coldFetched = await fetchedBytes(agent)
  const filesWaitedFor = await countFilesWaitedFor(agent, signal)
  const shown = ['waited', '--sort', 'longest', '--limit', `${FILES_SHOWN}`]
  await showIpdr(agent.adminSocket, shown, signal)

  const warm = await steps.run(
    'Run it again',
    (say) => timedRun(cri, run, { signal, say }),
    outcome,
  )
  const warmFetchedBytes = totalBytes(await fetchedBytes(agent)) - totalBytes(coldFetched)
  await showIpdr(agent.adminSocket, ['status'], signal)
  return { image, cold, coldFetched, filesWaitedFor, warm, warmFetchedBytes }
}

async function countFilesWaitedFor(agent: AgentProcess, signal: AbortSignal): Promise<number> {
  using admin = agent.admin()
  const { reads } = await admin.calls.WaitedFor({ subject: '' }, { signal })
  return new Set(reads.map(({ path }) => path)).size
}

function keepLogs(scratch: Scratch): void {
  const logs = { 'agent.log': 'agent.log', 'containerd.log': 'containerd/log' }
  for (const [name, path] of Object.entries(logs)) {
    if (!existsSync(join(scratch.dir, path))) continue
    mkdirSync(LOGS, { recursive: true })
    copyFileSync(join(scratch.dir, path), join(LOGS, name))
    console.error(`kept: build/demo-logs/${name}`)
  }
}
