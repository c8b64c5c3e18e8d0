import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { startClientHost } from '../../agent/client/client-host.ts'
import { DeployClient } from '../../agent/client/deploy-client.ts'
import { IPDR } from '../agent/cli/support/run-ipdr.ts'
import { AgentClient } from '../snapshotter/layers/agent-client.ts'
import { indexedLayer, publishImage } from '../snapshotter/layers/published-image.ts'
import { AgentProcess, freePort } from '../support/agent.ts'
import { BlockPeer } from '../support/block-peer.ts'
import { childrenOf } from '../support/children-of.ts'
import { Daemon } from '../support/daemon.ts'
import { failureOf } from '../support/failure-of.ts'
import { makeTar } from '../support/make-tar.ts'
import { MemoryBlocks } from '../support/memory-blocks.ts'
import { NetworkNamespace } from '../support/network-namespace.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'

// Goal: what publishers do cannot harm what containers read, and the other way round. Method: an agent with both workers, as it is
// installed; each is killed. The cluster and the chain of its configuration are away all the time.

const patience = { timeout: 30_000, interval: 20 }

type Stage = {
  readonly agent: AgentProcess
  readonly client: AgentClient
  readonly monitoringUrl: string
}

async function setUp(): Promise<Stage> {
  const opened = new AsyncDisposableStack()
  onTestFinished(() => opened.disposeAsync())
  const scratch = opened.use(Scratch.open('control-worker'))
  const blocks = new MemoryBlocks()
  const peer = opened.use(await BlockPeer.serve(blocks.blocks))
  await publishImage(blocks, [await indexedLayer(makeTar({ name: 'a', content: 'a' }))])
  const monitoring = await freePort()
  const listen = [`/ip4/127.0.0.1/tcp/${await freePort()}`]
  const deploy = deployConfig(scratch, { listen, monitoringPort: monitoring })
  const agent = await AgentProcess.start(scratch, { gateways: [peer.url], deploy })
  const client = opened.use(new AgentClient(agent))
  const monitoringUrl = `http://127.0.0.1:${monitoring}`
  await expect.poll(() => isReady(monitoringUrl), patience).toBe(true)
  return { agent, client, monitoringUrl }
}

/** Of an operator whose cluster and chain are away. */
function deployConfig(
  scratch: Scratch,
  {
    listen,
    monitoringPort,
  }: { readonly listen: readonly string[]; readonly monitoringPort: number },
): object {
  const kubeconfig = join(scratch.dir, 'kubeconfig')
  writeFileSync(
    kubeconfig,
    JSON.stringify({
      apiVersion: 'v1',
      kind: 'Config',
      clusters: [{ name: 'c', cluster: { server: 'https://127.0.0.1:1' } }],
      users: [{ name: 'u', user: { token: 'none' } }],
      contexts: [{ name: 'x', context: { cluster: 'c', user: 'u' } }],
      'current-context': 'x',
    }),
  )
  const address = `0x${'1'.repeat(40)}`
  return {
    listen,
    kubeconfig,
    operator: address,
    chain: { id: 1, rpc: ['http://127.0.0.1:1'] },
    offers: [{ contract: address, token: address }],
    monitoring: { listen: `127.0.0.1:${monitoringPort}` },
  }
}

async function isReady(url: string): Promise<boolean> {
  return await fetch(`${url}/readyz`).then(
    ({ ok }) => ok,
    () => false,
  )
}

/** The worker of this kind among the agent's processes. */
function workerPid(agent: AgentProcess, command: string): number | undefined {
  return childrenOf(agent.pid).find((pid) =>
    readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(command),
  )
}

test('a control worker that is killed is back, and the data worker has not noticed', async () => {
  const { agent, monitoringUrl } = await setUp()
  const [control, data] = [workerPid(agent, 'control-worker'), workerPid(agent, 'data-worker')]
  if (control === undefined) throw new Error('there is no control worker')
  const key = readFileSync(join(agent.root, 'deploy/peer.key'))
  process.kill(control, 'SIGKILL')
  await expect.poll(() => workerPid(agent, 'control-worker') ?? control, patience).not.toBe(control)
  await expect.poll(() => isReady(monitoringUrl), patience).toBe(true)
  expect(workerPid(agent, 'data-worker')).toBe(data)
  expect(await isReady(agent.monitoringUrl)).toBe(true)
  // It is who it was.
  expect(readFileSync(join(agent.root, 'deploy/peer.key'))).toEqual(key)
}, 90_000)

test('a data worker that is killed is back, and the control worker has not noticed', async () => {
  const { agent, monitoringUrl } = await setUp()
  const [control, data] = [workerPid(agent, 'control-worker'), workerPid(agent, 'data-worker')]
  if (data === undefined) throw new Error('there is no data worker')
  process.kill(data, 'SIGKILL')
  expect(await isReady(monitoringUrl)).toBe(true)
  await expect.poll(() => workerPid(agent, 'data-worker') ?? data, patience).not.toBe(data)
  await expect.poll(() => isReady(agent.monitoringUrl), patience).toBe(true)
  expect(workerPid(agent, 'control-worker')).toBe(control)
}, 90_000)

test('both end with the agent', async () => {
  const { agent } = await setUp()
  const control = workerPid(agent, 'control-worker')
  await agent.stop()
  expect(() => process.kill(control ?? 0, 0)).toThrow('ESRCH')
}, 90_000)

test('a publisher hears that the cluster is away, and is counted', async () => {
  const { agent, monitoringUrl } = await setUp()
  const host = await startClientHost()
  onTestFinished(() => host.stop())
  const line = agent.lines.find(({ msg }) => msg === 'publishers can deploy')
  const nobody = { signTypedData: () => Promise.reject(new Error('nothing is signed here')) }
  const client = new DeployClient(host, line?.['addresses'] as string[], { signer: nobody })
  await expect(client.capacity()).rejects.toMatchObject({
    code: 14,
    rawMessage: expect.stringContaining('the cluster cannot be asked'),
  })
  const metrics = await (await fetch(`${monitoringUrl}/metrics`)).text()
  expect(metrics).toContain('ipdr_deploy_call_seconds_count{rpc="Capacity",code="unavailable"} 1')
  expect(metrics).toMatch(/^ipdr_deploy_connections 1$/m)
}, 90_000)

test('a publisher in another network, with nothing but a route to the agent, reaches it', async () => {
  const opened = new AsyncDisposableStack()
  onTestFinished(() => opened.disposeAsync())
  const scratch = opened.use(Scratch.open('two-networks'))
  const [near, far] = [await NetworkNamespace.start(scratch), await NetworkNamespace.start(scratch)]
  const ends = [
    'name',
    'wire',
    'netns',
    near.name,
    'type',
    'veth',
    'peer',
    'name',
    'wire',
    'netns',
    far.name,
  ]
  await runCommand('ip', ['link', 'add', ...ends])
  for (const [network, address] of [
    [near, '10.99.0.1/24'],
    [far, '10.99.0.2/24'],
  ] as const) {
    await network.run('ip', 'address', 'add', address, 'dev', 'wire')
    await network.run('ip', 'link', 'set', 'wire', 'up')
  }
  const configPath = join(scratch.dir, 'control.json')
  const deploy = deployConfig(scratch, {
    listen: ['/ip4/10.99.0.1/tcp/4002'],
    monitoringPort: 5083,
  })
  writeFileSync(
    configPath,
    JSON.stringify({ root: join(scratch.dir, 'control'), runDir: join(scratch.run, 'c'), deploy }),
  )
  const daemon = opened.use(
    await Daemon.start(scratch, 'control-worker', [
      ...near.words,
      process.execPath,
      join(import.meta.dirname, '../../agent/main.ts'),
      'control-worker',
      '--config',
      configPath,
    ]),
  )
  const said = (): string => readFileSync(daemon.logPath, 'utf8')
  await daemon.whenReady(async () => said().includes('publishers can deploy'))
  const address = /\/ip4\/10\.99\.0\.1\/[^"]+/.exec(said())?.[0] ?? ''
  const [file, ...words] = [...far.words, IPDR, 'providers', address, '-o', 'json']
  const asked = await failureOf(() => runCommand(file, words))
  // It has the agent's own answer, which is that the cluster is away.
  expect(asked.message).toContain('no cluster answered')
  expect(said()).not.toContain('"level":60')
  await expect.poll(() => callsOf(near), patience).toMatch(/rpc="Capacity",code="unavailable"\} 1/)
}, 90_000)

async function callsOf(network: NetworkNamespace): Promise<string> {
  const script = "fetch('http://127.0.0.1:5083/metrics').then((a) => a.text()).then(console.log)"
  return await network.run(process.execPath, '--eval', script)
}
