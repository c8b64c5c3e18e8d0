import { createHash } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Hex } from 'viem'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { namespaceOf } from '../../../agent/deploy/pod-namespace.ts'
import { DeployAgent } from '../../support/deploy-agent.ts'
import { type Ended, ended, runIpdr, startIpdr } from './support/run-ipdr.ts'
import { scratchDir } from './support/scratch-dir.ts'

let agent: DeployAgent
let address: string

beforeAll(async () => {
  agent = await DeployAgent.start('deploy-cli')
  agent.becomesReady()
  address = agent.endpoint.multiaddrs[0] ?? ''
}, 60_000)
afterAll(() => agent[Symbol.asyncDispose]())

const CID = 'bafybeifsgierqdgmnlaawzggr4glgew5wnyzxwx3sqbx2bexjizsgp4aay'

/** The pod of a file that names it so. */
function podIdOf(name: string): Hex {
  return `0x${createHash('sha256').update(`ipdr pod ${name}`).digest('hex')}`
}

type Shop = { readonly file: string; readonly name: string; readonly podId: Hex }

/** A file of `ipdr init`, whose pod is paid for. */
async function shop(name: string, { isPaid = true } = {}): Promise<Shop> {
  const file = join(await scratchDir(), 'ipdr.yaml')
  const image = `ipdr.internal/${CID}`
  const written = await runIpdr([
    'init',
    file,
    '--image',
    image,
    '--name',
    name,
    '--http',
    `80:${name}.example.com`,
  ])
  expect(written).toMatchObject({ exitCode: 0 })
  const podId = podIdOf(name)
  if (isPaid) await agent.fund(podId)
  return { file, name, podId }
}

async function run(
  words: readonly string[],
  key: string = agent.chain.publisherKey,
): Promise<Ended> {
  return await runIpdr(words, { env: { IPDR_KEY: key, IPDR_PROVIDER: address } })
}

describe('a pod', () => {
  test('is described by init, deployed, looked at, and deleted', async () => {
    const { file, name, podId } = await shop('first')
    const deployed = await run(['deploy', file, '--watch'])
    expect(deployed.stderr).toContain('in the cluster')
    expect(deployed).toMatchObject({ exitCode: 0 })
    expect(deployed.stdout).toContain(`${name} is ready, 1 running`)
    expect(deployed.stdout).toContain('http://first.example.com')
    expect(deployed.stdout).toContain(podId)

    const status = await run(['status', file, '-o', 'json'])
    expect(JSON.parse(status.stdout)).toMatchObject({
      podId,
      name,
      namespace: namespaceOf(agent.chain.publisher, podId),
      state: 'ready',
      addresses: [{ container: name, containerPort: 80, url: 'http://first.example.com' }],
    })
    expect((await run(['status', file])).stdout).toContain('first is ready')

    expect(await run(['delete', file])).toMatchObject({ exitCode: 0, stdout: 'The pod is gone.\n' })
    expect(await run(['status', file])).toMatchObject({
      exitCode: 66,
      stderr: expect.stringContaining('there is no pod'),
    })
  }, 60_000)

  test('is changed by update, and only where it is', async () => {
    const { file } = await shop('second')
    expect(await run(['update', file])).toMatchObject({
      exitCode: 66,
      stderr: expect.stringContaining('deploy it first'),
    })
    expect(await run(['deploy', file, '-q'])).toMatchObject({ exitCode: 0 })
    const text = await readFile(file, 'utf8')
    await writeFile(file, text.replace('second.example.com', 'renamed.example.com'))
    const updated = await run(['update', file, '-w', '-o', 'json'])
    expect(JSON.parse(updated.stdout)).toMatchObject({
      isReady: true,
      addresses: [{ url: 'http://renamed.example.com' }],
    })
  }, 60_000)

  test('of the existing client is deployed from its own file and state', async () => {
    const dir = await scratchDir()
    const [file, state] = [join(dir, 'manifest.yaml'), join(dir, 'state.yaml')]
    const podId = await agent.fund()
    const base64 = (hex: string): string => Buffer.from(hex.slice(2), 'hex').toString('base64')
    await writeFile(
      file,
      [
        'containers:',
        '  - name: web',
        '    image: { url: docker.io/nginxdemos/nginx-hello:latest }',
        '    ports: [{ name: http, containerPort: "8080", servicePort: "80", hostHttpHost: guestbook.localhost }]',
        '    resourceRequests: [{ resource: cpu, amountMillis: "100" }, { resource: memory, amount: "134217728" }]',
        'replicas: { min: 1, max: 1 }',
      ].join('\n'),
    )
    await writeFile(
      state,
      [
        `provider: { libp2pAddress: ${address} }`,
        `payment: { chainID: ${base64('0x7a69')}, paymentContractAddress: ${base64(agent.chain.contract)}, publisherAddress: ${base64(agent.chain.publisher)}, podID: ${base64(podId)} }`,
      ].join('\n'),
    )
    const deployed = await runIpdr(['deploy', file, '--state', state, '-w', '-o', 'json'], {
      env: { IPDR_KEY: agent.chain.publisherKey },
    })
    expect(deployed).toMatchObject({ exitCode: 0 })
    expect(JSON.parse(deployed.stdout)).toMatchObject({
      podId,
      addresses: [{ url: 'http://guestbook.localhost' }],
    })
  }, 60_000)

  test('has its logs printed as they come, until interrupted', async () => {
    const { file, podId } = await shop('logging')
    await run(['deploy', file, '-q'])
    const namespace = namespaceOf(agent.chain.publisher, podId)
    await agent.cluster.apply({
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { namespace, name: 'replica-1' },
      spec: { containers: [{ name: 'logging' }] },
      status: { containerStatuses: [{ name: 'logging', state: { running: {} } }] },
    } as never)
    agent.cluster.lines = [
      '2026-11-27T12:00:00.5Z one',
      '2026-11-27T12:00:01Z   two\t\u001b[31mred',
    ]
    expect(await run(['logs', file])).toMatchObject({
      exitCode: 0,
      stdout: 'one\n  two\t[31mred\n',
    })
    expect((await run(['logs', file, '--times'])).stdout).toContain('2026-11-27T12:00:00.500Z one')
    const document = JSON.parse(
      (await run(['logs', file, '-o', 'json'])).stdout.split('\n')[0] ?? '',
    )
    expect(document).toEqual({
      replica: 'replica-1',
      container: 'logging',
      time: '1795780800500000000',
      line: 'one',
    })
    const following = startIpdr(['logs', file, '-f'], {
      env: { IPDR_KEY: agent.chain.publisherKey, IPDR_PROVIDER: address },
    })
    onTestFinished(() => void following.kill('SIGKILL'))
    following.stdout?.once('data', () => following.kill('SIGINT'))
    expect(await ended(following)).toMatchObject({
      exitCode: 0,
      stdout: expect.stringContaining('one'),
    })
    expect(await run(['logs', file, '-c', 'other'])).toMatchObject({
      exitCode: 65,
      stderr: expect.stringContaining("there is no 'other'; the pod has logging"),
    })
  }, 60_000)

  test('that is not ready in time is said to be on its way', async () => {
    const { file } = await shop('slow')
    const { after } = agent.cluster
    agent.cluster.after = () => undefined
    try {
      expect(await run(['deploy', file, '-w', '--timeout', '3'])).toMatchObject({
        exitCode: 75,
        stderr: expect.stringContaining('not ready after 3 s: see ipdr status'),
      })
    } finally {
      agent.cluster.after = after
    }
  }, 60_000)
})

describe('who makes a mistake is told', () => {
  test('that there is no deployment file, and how to get one', async () => {
    expect(await run(['deploy', join(await scratchDir(), 'none.yaml')])).toMatchObject({
      exitCode: 66,
      stderr: expect.stringContaining('write one with ipdr init'),
    })
  })

  test('each fault of the file with its line and column', async () => {
    const { file } = await shop('faulty', { isPaid: false })
    const text = await readFile(file, 'utf8')
    await writeFile(file, text.replace('cpu: 250m', 'cpus: 250m'))
    expect(await run(['deploy', file])).toMatchObject({
      exitCode: 65,
      stderr: expect.stringMatching(/ipdr\.yaml:\d+:\d+: containers\.faulty\.cpus: .*cpu/),
    })
  })

  test('that the pod is not paid for, and what is missing', async () => {
    const { file } = await shop('unpaid', { isPaid: false })
    expect(await run(['deploy', file])).toMatchObject({
      exitCode: 1,
      stderr: expect.stringContaining('there is no payment channel for this pod: create one'),
    })
  })

  test('that nobody said whom to ask, or with which key', async () => {
    const { file } = await shop('nowhere', { isPaid: false })
    const key = agent.chain.publisherKey
    expect(await runIpdr(['deploy', file], { env: { IPDR_KEY: key } })).toMatchObject({
      exitCode: 2,
      stderr: expect.stringContaining('give --provider'),
    })
    expect(await runIpdr(['deploy', file, '--provider', address])).toMatchObject({
      exitCode: 2,
      stderr: expect.stringContaining('give --key-file'),
    })
    expect(await run(['deploy', file], 'not a key')).toMatchObject({
      exitCode: 65,
      stderr: expect.not.stringContaining('not a key'),
    })
    expect(await run(['deploy', file, '--provider', 'nonsense'])).toMatchObject({
      exitCode: 2,
      stderr: expect.stringContaining('is no multiaddr'),
    })
    expect(await run(['deploy', file, '--pod-id', '0x12'])).toMatchObject({ exitCode: 2 })
    expect(await run(['deploy', file, '--contract', '0x12'])).toMatchObject({ exitCode: 2 })
  }, 60_000)

  test('that the agent is not there', async () => {
    const { file } = await shop('away', { isPaid: false })
    const gone = address.replace(/\/tcp\/\d+/, '/tcp/1')
    expect(await run(['deploy', file, '--provider', gone])).toMatchObject({
      exitCode: 69,
      stderr: expect.stringContaining('cannot be reached'),
    })
  })

  test('that a file is there already, and is not written over', async () => {
    const { file } = await shop('twice', { isPaid: false })
    expect(await run(['init', file, '--image', 'debian'])).toMatchObject({
      exitCode: 1,
      stderr: expect.stringContaining('is there already'),
    })
  })
})

test('providers are asked at once, and those that are away do not keep the others', async () => {
  const gone = '/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGRUfpdQxJQmcMuJwbkBBWiVCHJbnmcuGLgCKJGdPzCmT'
  const asked = await runIpdr(['providers', address, gone, '-o', 'json'])
  expect(asked).toMatchObject({ exitCode: 0 })
  expect(JSON.parse(asked.stdout)).toMatchObject([
    {
      address,
      operator: agent.chain.operator.toLowerCase(),
      offers: [{ prices: { cpu: '1000000000000' } }],
    },
    { address: gone, error: expect.stringContaining('cannot be reached') },
  ])
  const text = await runIpdr(['providers', address])
  expect(text.stdout).toMatch(/CORE\/s/)
  expect(text.stdout).toMatch(/ 1000 /)
  expect(await runIpdr(['providers', gone])).toMatchObject({ exitCode: 69 })
}, 60_000)
