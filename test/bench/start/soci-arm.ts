import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { runCommand } from '../../support/run-command.ts'
import { Scratch } from '../../support/scratch.ts'
import { SuitePrograms } from '../../support/suite-programs.ts'
import type { Arm, ArmNode, ImageToStart } from './arm.ts'
import { registryHosts } from './arm.ts'
import { LoopbackRegistry } from './loopback-registry.ts'
import { startNode } from './node.ts'
import type { Site } from './site.ts'

/** SOCI asks for its indexes by HTTPS, whatever it is told: here the nodes of this arm find the registry. */
const LOOPBACK_PORT = 5000
const LOOPBACK_REGISTRY = `127.0.0.1:${LOOPBACK_PORT}`

/** It keeps things below /var/lib whatever it is told, and shall not touch those of this machine. */
const OWN_VAR = join(import.meta.dirname, '../../support/own-var.sh')

/**
 * Both in the same /var: what the first one makes is what the second one pushes. With an index of small layers too: for one that has none,
 * 0.4.1 asks docker-registry nine times for a manifest, for 8 s, before it leaves it to containerd.
 */
const INDEX_SCRIPT =
  'mkdir /var/lib; "$SOCI" create --min-layer-size 0 "$IMAGE"; "$SOCI" push --plain-http "$IMAGE"'
const SERVE_SCRIPT = 'mkdir /var/lib; exec "$@"'

/** How long it may take until it listens, in ms. */
const START_DEADLINE_MS = 30_000
/** And to index an image: it reads all layers once. */
const INDEX_DEADLINE_MS = 1_200_000

/** soci-snapshotter as Debian packages it, with the index that `soci create` makes of an image that stays as it is. */
export const soci: Arm = {
  name: 'soci',
  title: 'soci-snapshotter',
  isWhole: false,
  prepare: async () => void programs(),
  publish,
  openNode,
}

function programs(): SuitePrograms {
  return SuitePrograms.unpack('trixie', 'soci-snapshotter', 'soci-snapshotter')
}

async function publish({ workload, layout }: ImageToStart, { registry }: Site): Promise<string> {
  const image = await registry.push(layout, workload.name)
  await using scratch = Scratch.open('bench-soci-index')
  const hosts = registryHosts(registry.host)
  await using node = await startNode(scratch, { snapshotter: 'overlayfs', hosts })
  const { containerd } = node
  await containerd.ctr(['content', 'fetch', '--plain-http', image])
  await runCommand(OWN_VAR, [join(scratch.run, 'soci'), 'sh', '-euc', INDEX_SCRIPT], {
    env: {
      ...process.env,
      SOCI: programs().path('usr/bin/soci'),
      CONTAINERD_ADDRESS: containerd.socketPath,
      IMAGE: image,
    },
    signal: AbortSignal.timeout(INDEX_DEADLINE_MS),
  })
  return image.replace(registry.host, LOOPBACK_REGISTRY)
}

async function openNode(scratch: Scratch, { registry }: Site): Promise<ArmNode> {
  await using opened = new AsyncDisposableStack()
  const root = join(scratch.dir, 'soci')
  mkdirSync(root)
  const loopback = opened.use(await LoopbackRegistry.open(root, LOOPBACK_PORT, registry.host))
  const socketPath = join(scratch.run, 'soci.sock')
  const [configPath, logPath] = [join(scratch.dir, 'soci.toml'), join(scratch.dir, 'soci.log')]
  writeFileSync(configPath, '')
  const log = openSync(logPath, 'a')
  const child = spawn(
    OWN_VAR,
    [
      root,
      'sh',
      '-euc',
      SERVE_SCRIPT,
      'sh',
      programs().path('usr/bin/soci-snapshotter-grpc'),
      '--address',
      socketPath,
      '--root',
      join(root, 'root'),
      '--config',
      configPath,
    ],
    {
      env: { ...process.env, SSL_CERT_FILE: loopback.certificatePath },
      stdio: ['ignore', log, log],
    },
  )
  closeSync(log)
  if (child.pid !== undefined) scratch.own(child.pid)
  const exited = once(child, 'exit')
  opened.defer(async () => {
    child.kill()
    await exited
  })
  const deadline = Date.now() + START_DEADLINE_MS
  while (!(await answers(socketPath))) {
    if (child.exitCode !== null || Date.now() > deadline) {
      throw new Error(`soci-snapshotter does not serve\n${readFileSync(logPath, 'utf8')}`)
    }
    await setTimeout(20)
  }
  const kept = opened.move()
  return {
    snapshotter: { name: 'soci', socketPath },
    hosts: { [LOOPBACK_REGISTRY]: `http://${registry.host}` },
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  }
}

async function answers(socketPath: string): Promise<boolean> {
  const socket = connect(socketPath)
  try {
    await once(socket, 'connect')
    return true
  } catch {
    return false
  } finally {
    socket.destroy()
  }
}
