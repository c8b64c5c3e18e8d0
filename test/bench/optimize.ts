import { dirname, join } from 'node:path'
import { runIpdr } from '../agent/cli/support/run-ipdr.ts'
import { AgentProcess } from '../support/agent.ts'
import { Containerd, writeHostsFile } from '../support/containerd.ts'
import { debianPath } from '../support/debian-programs.ts'
import { Scratch } from '../support/scratch.ts'
import type { BenchPublisher } from './bench-node.ts'

/** An image with its prefetch list beside it. */
export type Optimized = {
  readonly reference: string
  readonly ranges: number
  /** Of layers unpacked, that the start read. */
  readonly bytes: number
  readonly shareOfImage: number
}

/** `ipdr optimize` on a node of its own: runs the command, until it ends or has read nothing new for a while. `more` are words for it. */
export async function optimize(
  publisher: BenchPublisher,
  reference: string,
  command: readonly string[],
  more: readonly string[] = [],
): Promise<Optimized> {
  await using opened = new AsyncDisposableStack()
  const scratch = opened.use(Scratch.open('bench-optimize'))
  const agent = opened.use(await AgentProcess.start(scratch, { gateways: [publisher.gatewayUrl] }))
  const certsDir = join(scratch.dir, 'certs.d')
  writeHostsFile(certsDir, 'ipdr.internal', agent.registryUrl)
  const snapshotter = { name: 'ipdr', socketPath: agent.snapshotterSocket }
  const containerd = opened.use(await Containerd.start({ scratch, snapshotter, certsDir }))
  const places = ['--agent', agent.adminSocket, '--address', containerd.socketPath]
  const flags = [
    '--net-host',
    `--cgroup=${containerd.cgroup}/optimize`,
    `--runc-root=${join(scratch.run, 'runc')}`,
    `--fifo-dir=${join(scratch.run, 'fifo')}`,
  ].map((flag) => `--run-flag=${flag}`)
  const words = ['--repository', publisher.repository, '--timeout', '300', '--output', 'json']
  const { exitCode, stdout, stderr } = await runIpdr(
    ['optimize', reference, ...places, ...flags, ...words, ...more, '--', ...command],
    { env: { PATH: `${dirname(process.execPath)}:${debianPath}` } },
  )
  if (exitCode !== 0) throw new Error(`ipdr optimize: ${stderr}`)
  return JSON.parse(stdout) as Optimized
}
