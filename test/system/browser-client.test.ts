import { once } from 'node:events'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import type { KubernetesObject } from '@kubernetes/client-node'
import type { Page } from 'playwright-core'
import type { Hex } from 'viem'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { namespaceOf } from '../../agent/deploy/pod-namespace.ts'
import { freePort } from '../support/agent.ts'
import { buildScript } from '../support/browser/build-script.ts'
import { PageServer } from '../support/browser/page-server.ts'
import { Chromium } from '../support/chromium.ts'
import { DeployAgent } from '../support/deploy-agent.ts'
import { Scratch } from '../support/scratch.ts'

const LISTEN = ['/ip4/127.0.0.1/tcp/0/ws', '/ip4/127.0.0.1/udp/0/webrtc-direct']

/** All of the client library in one script, in bytes by gzip. 300 KiB: half a second at 5 Mbit/s, as on a telephone; it has 217. */
const SCRIPT_BYTES_MAX = 300 * 1024

/** Until the agent knows that a page was closed, in ms. 30 s: at once by WebSockets, 8 s by WebRTC, which waits for what was lost. */
const CLOSED_PAGE_MS_MAX = 30_000

const opened = new AsyncDisposableStack()
let agent: DeployAgent
let chromium: Chromium
let script: string
let pageUrl: string

beforeAll(async () => {
  agent = opened.use(await DeployAgent.start('browser-agent', { listen: LISTEN }))
  script = await buildScript(join(import.meta.dirname, '../support/browser/deploy-page.ts'))
  pageUrl = opened.use(await PageServer.start(script)).url
  // Ends first, so that nobody sends to the agent when it stops listening.
  chromium = opened.use(await Chromium.start(opened.use(Scratch.open('browser'))))
})

afterAll(() => opened.disposeAsync())

test('the client library is a script of fewer than 300 KiB', () => {
  const bytes = gzipSync(script).length
  console.log(`the client library for pages: ${Math.round(bytes / 1024)} KiB by gzip`)
  expect(bytes).toBeLessThan(SCRIPT_BYTES_MAX)
})

describe.each([
  ['WebSockets', '/ws/'],
  ['WebRTC-direct', '/webrtc-direct/certhash/'],
])('a page that reaches the agent by %s', (_, transport) => {
  /** Without a key its wallet signs with zeros; `port` stands in place of the agent's own. */
  async function openPage({ key = agent.chain.publisherKey, port }: Opening = {}): Promise<Page> {
    const page = await chromium.open(pageUrl)
    const thrown: Error[] = []
    page.on('pageerror', (error) => thrown.push(error))
    onTestFinished(async () => {
      await page.context().close()
      expect(thrown).toEqual([])
    })
    const addresses = agent.endpoint.multiaddrs
      .filter((address) => address.includes(transport))
      .map((address) =>
        port === undefined ? address : address.replace(/(tcp|udp)\/\d+/, `$1/${port}`),
      )
    expect(addresses).toHaveLength(1)
    await page.evaluate(([addresses, key]) => deployPage.open(addresses, key), [
      addresses,
      key,
    ] as const)
    return page
  }

  test('asks what is there', async () => {
    const page = await openPage()
    expect(await page.evaluate(() => deployPage.capacity())).toEqual({
      agent: agent.endpoint.libp2p.peerId.toString(),
      evmChainId: agent.chain.evmChainId,
    })
  })

  test('deploys a pod, and hears of each step when it is done', async () => {
    const page = await openPage()
    await runningPod(page)
    expect(await heardBy(page)).toEqual(['accepted', 'applied', 'ready'])
  })

  test('follows a log until it leaves, which the agent notices', async () => {
    const page = await openPage()
    const podId = await runningPod(page)
    const log = followedLog('listening')
    const followed = failureOf(followLogs(page, podId))
    await expect.poll(() => heardBy(page)).toEqual(['listening'])
    expect(log.isRead()).toBe(true)
    await page.evaluate(() => deployPage.leave())
    expect(await followed).toContain('[canceled]')
    await expect.poll(log.isRead).toBe(false)
  })

  test('reads no log any more once it is closed', async () => {
    const page = await openPage()
    const podId = await runningPod(page)
    const log = followedLog('listening')
    const followed = failureOf(followLogs(page, podId))
    await expect.poll(() => heardBy(page)).toEqual(['listening'])
    await page.close()
    await followed
    await expect.poll(log.isRead, { timeout: CLOSED_PAGE_MS_MAX }).toBe(false)
  })

  test('shows what the agent says of a signature that is none', async () => {
    const page = await openPage({ key: null })
    const podId = await agent.fund()
    expect(await failureOf(deploy(page, podId))).toContain(
      '[unauthenticated] signed call: signature is none of secp256k1',
    )
  })

  test('is told what to look at when no agent is there', async () => {
    const page = await openPage({ port: await freePort() })
    const failure = await failureOf(page.evaluate(() => deployPage.capacity()))
    expect(failure).toMatch(
      /\[unavailable\] the agent at \/ip4\/127\.0\.0\.1\/\S+ cannot be reached: (the browser does not say why|signal timed out); is the address the one that its operator gives, and is it running\?/,
    )
  })

  test('does not take steps for all there are when the connection breaks in the middle', async () => {
    const page = await openPage()
    const deployed = failureOf(deploy(page, await agent.fund()))
    await expect.poll(() => heardBy(page)).toEqual(['accepted', 'applied'])
    // Not by stopping the agent: node-datachannel 0.33.4 may end the process when it stops listening while packets come.
    for (const connection of agent.endpoint.libp2p.getConnections()) {
      connection.abort(new Error('the cable was pulled'))
    }
    expect(await deployed).toContain('ConnectError')
  })
})

type Opening = { readonly key?: Hex | null; readonly port?: number }

function deploy(page: Page, podId: Hex): Promise<void> {
  return page.evaluate((podId) => deployPage.deploy(podId), podId)
}

function followLogs(page: Page, podId: Hex): Promise<void> {
  return page.evaluate((podId) => deployPage.followLogs(podId), podId)
}

async function heardBy(page: Page): Promise<string[]> {
  return await page.evaluate(() => deployPage.heard)
}

/** What the page shows of an error. */
async function failureOf(work: Promise<unknown>): Promise<string> {
  return await work.then(
    () => 'nothing',
    (error: unknown) => String(error),
  )
}

/** Has a pod be as its controller would once all replicas run. */
function makeReady(podId: Hex): void {
  const name = namespaceOf(agent.chain.publisher, podId).replace('tpod-', 'tpod-dep-')
  agent.cluster.set('Deployment', name, (object) => {
    const { replicas } = object['spec'] as { replicas: number }
    object['status'] = { replicas, readyReplicas: replicas, updatedReplicas: replicas }
  })
}

/** A pod that the page deployed, with a replica whose log can be read. It becomes ready once the page has heard of all before. */
async function runningPod(page: Page): Promise<Hex> {
  const podId = await agent.fund()
  await Promise.all([
    deploy(page, podId),
    (async () => {
      await expect.poll(() => heardBy(page)).toEqual(['accepted', 'applied'])
      makeReady(podId)
    })(),
  ])
  await agent.cluster.apply({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: 'web-0', namespace: namespaceOf(agent.chain.publisher, podId) },
    spec: { containers: [{ name: 'web' }] },
    status: { containerStatuses: [{ state: { running: {} } }] },
  } as KubernetesObject)
  return podId
}

/** Has the log of any replica be a line, and then silent for as long as somebody listens. */
function followedLog(line: string): { readonly isRead: () => boolean } {
  let readers = 0
  agent.cluster.logs = async function* (_pod, _options, signal) {
    readers++
    yield `2026-01-01T00:00:00Z ${line}`
    if (!signal.aborted) await once(signal, 'abort')
    readers--
  }
  return { isRead: () => readers > 0 }
}
