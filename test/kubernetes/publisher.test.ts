import { chownSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { CoreV1Api } from '@kubernetes/client-node'
import type { Hex } from 'viem'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { namespaceOf } from '../../agent/deploy/pod-namespace.ts'
import { type Ended, ended, runIpdr, startIpdr } from '../agent/cli/support/run-ipdr.ts'
import { TestChain } from '../support/chain/test-chain.ts'
import { containerdPath } from '../support/containerd-programs.ts'
import { Daemon } from '../support/daemon.ts'
import { deployAccount } from '../support/deploy-account.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { KubeCluster } from '../support/kube-cluster.ts'
import { Kubelet, NODE_NAME } from '../support/kubelet.ts'
import { LazyNode } from '../support/lazy-node.ts'
import { makeTar } from '../support/make-tar.ts'
import { enterOwnNetwork } from '../support/own-network.ts'
import { Scratch } from '../support/scratch.ts'

// Goal: a publisher who has nothing but ipdr, a key and a channel runs a pod from IPFS in somebody else's cluster. Method: a whole Kubernetes with
// RBAC and a kubelet, on a containerd with the agent; the control worker as a process of its own, with the rights that
// node-image/kubernetes gives it and no root; a payment contract on a chain; the real command.

const AGENT = join(import.meta.dirname, '../../agent/main.ts')
/** A user without any right. */
const NOBODY_ID = 65_534
const NOBODY = ['setpriv', `--reuid=${NOBODY_ID}`, `--regid=${NOBODY_ID}`, '--clear-groups']

const opened = new AsyncDisposableStack()
let scratch: Scratch
let cluster: KubeCluster
let chain: TestChain
let image: string
let kubeconfig: string
let adminSocket: string
let worker: Worker

beforeAll(async () => {
  await KubeCluster.fetch()
  scratch = opened.use(Scratch.open('publisher'))
  await containerdPath('2', scratch)
  await enterOwnNetwork([NODE_NAME])
  cluster = opened.use(await KubeCluster.start(scratch))
  const node = opened.use(
    await LazyNode.start('publisher-node', { version: '2', hasPodNetwork: true }),
  )
  const { containerd } = node
  opened.use(
    await Kubelet.start({ scratch: node.scratch, api: cluster.api, containerd, isReached: true }),
  )
  chain = opened.use(await TestChain.start(scratch))
  const layer = await packLayer(
    Readable.from([makeTar(...busyboxFiles('sh', 'sleep', 'id'))]),
    'gzip',
    join(scratch.dir, 'layers'),
  )
  const script =
    'trap "exit 0" TERM; echo "$GREETING from user $(id -u)"; n=0; while sleep 0.2; do n=$((n+1)); echo "tick $n"; done'
  const layout = writeOciLayout(join(scratch.dir, 'layout'), {
    layers: [layer],
    process: { Entrypoint: ['/bin/sh', '-c', script], Env: ['PATH=/bin'], User: '1000:1000' },
  })
  image = `ipdr.internal/${await node.publisher.push(layout)}`
  adminSocket = node.agent.adminSocket
  kubeconfig = (await deployAccount(cluster.api)).kubeconfig
  worker = await startWorker(NOBODY)
}, 1_800_000)
afterAll(async () => {
  await opened.disposeAsync()
}, 120_000)

type Worker = { readonly daemon: Daemon; readonly address: string }

/** The control worker alone, on the same state each time. */
async function startWorker(user: readonly string[]): Promise<Worker> {
  const root = join(scratch.dir, 'control')
  const config = join(scratch.dir, 'control.json')
  mkdirSync(root, { recursive: true })
  chownSync(root, NOBODY_ID, NOBODY_ID)
  const deploy = {
    listen: ['/ip4/127.0.0.1/tcp/4002', '/ip4/127.0.0.1/tcp/4003/ws'],
    kubeconfig,
    operator: chain.operator,
    chain: { id: Number(chain.evmChainId), rpc: [chain.rpcUrl] },
    offers: [{ contract: chain.contract, token: chain.token, prices: { cpu: '1000000000000' } }],
    monitoring: { listen: '127.0.0.1:5083' },
  }
  writeFileSync(
    config,
    JSON.stringify({
      root,
      runDir: join(scratch.run, 'c'),
      // Of the node's agent, which says what has arrived.
      admin: { socketPath: adminSocket },
      deploy,
    }),
  )
  const daemon = opened.use(
    await Daemon.start(scratch, 'control-worker', [
      ...user,
      process.execPath,
      AGENT,
      'control-worker',
      '--config',
      config,
    ]),
  )
  await daemon.whenReady(async () => {
    const answer = await fetch('http://127.0.0.1:5083/readyz').catch(() => undefined)
    return answer?.ok === true
  })
  const said = readFileSync(daemon.logPath, 'utf8').trimEnd().split('\n')
  const ready = said.findLast((line) => line.includes('publishers can deploy')) ?? '{}'
  const { addresses = [] } = JSON.parse(ready) as { addresses?: string[] }
  return { daemon, address: addresses[0] ?? '' }
}

function environment(): Readonly<Record<string, string>> {
  return { IPDR_KEY: chain.publisherKey, IPDR_PROVIDER: worker.address }
}

async function ipdr(...words: readonly string[]): Promise<Ended> {
  return await runIpdr(words, { env: environment() })
}

type Described = { readonly file: string; readonly podId: Hex; readonly namespace: string }

let pods = 0

async function described(greeting: string, podId?: Hex): Promise<Described> {
  const id: Hex = podId ?? `0x${(++pods).toString(16).padStart(64, '0')}`
  if (podId === undefined)
    await chain.createChannel(id, { unlockSeconds: 300n, amount: 36_000_000n })
  const file = join(scratch.dir, `${id}.yaml`)
  const lines = [
    'name: greeter',
    'containers:',
    '  greeter:',
    `    image: ${image}`,
    '    cpu: 10m',
    '    memory: 64MiB',
    `    environment: { GREETING: ${greeting} }`,
    '    volumes: [ "key:/key" ]',
    'volumes:',
    `  key: { secret: { text: "${greeting}" } }`,
  ]
  writeFileSync(file, lines.join('\n'))
  return { file, podId: id, namespace: namespaceOf(chain.publisher, id) }
}

test('a pod from IPFS is deployed, and ready when the command ends', async () => {
  const { file, podId } = await described('hello')
  const deployed = await ipdr('deploy', file, '--pod-id', podId, '--watch', '-o', 'json')
  expect(deployed.stderr).toMatch(/Pod\/.*: (Pulled|Started|Created)/)
  expect(JSON.parse(deployed.stdout)).toMatchObject({ podId, isReady: true, replicas: 1 })
}, 300_000)

test('its log is followed, from the first line on', async () => {
  const { file, podId } = await described('listen')
  await ipdr('deploy', file, '--pod-id', podId, '--watch', '-q')
  const following = startIpdr(['logs', file, '--pod-id', podId, '-f'], { env: environment() })
  onTestFinished(() => void following.kill('SIGKILL'))
  let seen = ''
  let hasEnough = false
  following.stdout.on('data', (text: string) => {
    seen += text
    if (!seen.includes('tick 5') || hasEnough) return
    hasEnough = true
    following.kill('SIGINT')
  })
  const { stdout, exitCode } = await ended(following)
  expect(stdout).toMatch(/^listen from user 1000\ntick 1\ntick 2\n/)
  expect(exitCode).toBe(0)
  const tail = await ipdr('logs', file, '--pod-id', podId, '--tail', '1', '-o', 'json')
  expect(JSON.parse(tail.stdout)).toMatchObject({
    container: 'greeter',
    line: expect.stringContaining('tick'),
  })
}, 300_000)

test('a change of it starts new replicas, and a mistake in one leaves the old ones running', async () => {
  const { file, podId, namespace } = await described('before')
  await ipdr('deploy', file, '--pod-id', podId, '--watch', '-q')
  await described('after', podId)
  expect(await ipdr('update', file, '--pod-id', podId, '--watch', '-q')).toMatchObject({
    exitCode: 0,
  })
  expect((await ipdr('logs', file, '--pod-id', podId)).stdout).toContain('after from user 1000')
  writeFileSync(file, readFileSync(file, 'utf8').replace('memory: 64MiB', 'memory: 900GiB'))
  const failed = await ipdr('update', file, '--pod-id', podId, '--watch', '--timeout', '10')
  expect(failed.exitCode).not.toBe(0)
  const core = cluster.api.admin.makeApiClient(CoreV1Api)
  const { items } = await core.listNamespacedPod({ namespace })
  const ready = items.filter(
    ({ metadata, status }) =>
      metadata?.deletionTimestamp === undefined &&
      status?.conditions?.some(({ type, status }) => type === 'Ready' && status === 'True'),
  )
  expect(ready).toHaveLength(1)
  expect((await ipdr('status', file, '--pod-id', podId)).stdout).toMatch(
    /no node takes it|starting/,
  )
}, 300_000)

test('the control worker may be killed at any time: what it was told is done when it is back', async () => {
  const { file, podId, namespace } = await described('survivor')
  const deploying = startIpdr(['deploy', file, '--pod-id', podId, '--watch'], {
    env: environment(),
  })
  onTestFinished(() => void deploying.kill('SIGKILL'))
  const end = ended(deploying)
  const core = cluster.api.admin.makeApiClient(CoreV1Api)
  await expect
    .poll(
      () =>
        core.readNamespace({ name: namespace }).then(
          () => true,
          () => false,
        ),
      { timeout: 60_000, interval: 5 },
    )
    .toBe(true)
  await worker.daemon.kill()
  expect((await end).exitCode).not.toBe(0)
  // As that of a node's agent, which may ask what has arrived of images.
  worker = await startWorker([])
  await expect
    .poll(
      async () =>
        (await core.readNamespace({ name: namespace })).metadata?.labels?.['ipdr.dev/state'],
      { timeout: 120_000 },
    )
    .toBe('applied')
  const deployed = await ipdr('deploy', file, '--pod-id', podId, '--watch', '--progress', 'json')
  expect(deployed).toMatchObject({ exitCode: 0 })
  expect(deployed.stderr).toMatch(/"item":"greeter","doneBytes":[1-9]/)
}, 300_000)

test('a pod is deleted with all that belongs to it, and not before its finalizers agree', async () => {
  const { file, podId, namespace } = await described('goodbye')
  await ipdr('deploy', file, '--pod-id', podId, '--watch', '-q')
  const core = cluster.api.admin.makeApiClient(CoreV1Api)
  const held = { namespace, name: 'held', finalizers: ['test.ipdr.dev/held'] }
  await core.createNamespacedConfigMap({ namespace, body: { metadata: held } })
  const deleting = startIpdr(['delete', file, '--pod-id', podId], { env: environment() })
  onTestFinished(() => void deleting.kill('SIGKILL'))
  const end = ended(deleting)
  await new Promise<void>((resolve) => {
    deleting.stderr.on('data', (text: string) => {
      if (text.includes('test.ipdr.dev/held')) resolve()
    })
  })
  expect((await ipdr('status', file, '--pod-id', podId, '-o', 'json')).stdout).toContain(
    '"deleting"',
  )
  await core.replaceNamespacedConfigMap({
    namespace,
    name: 'held',
    body: { metadata: { ...held, finalizers: [] } },
  })
  expect(await end).toMatchObject({ exitCode: 0, stdout: 'The pod is gone.\n' })
  await expect(core.readNamespace({ name: namespace })).rejects.toMatchObject({ code: 404 })
}, 300_000)
