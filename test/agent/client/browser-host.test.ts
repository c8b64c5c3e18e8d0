import { yamux } from '@chainsafe/libp2p-yamux'
import { circuitRelayServer } from '@libp2p/circuit-relay-v2'
import { generateKeyPair } from '@libp2p/crypto/keys'
import { identify } from '@libp2p/identify'
import type { Libp2p } from '@libp2p/interface'
import { noise } from '@libp2p/noise'
import { webSockets } from '@libp2p/websockets'
import { createLibp2p } from 'libp2p'
import { expect, onTestFinished, test } from 'vitest'
import { startBrowserHost } from '../../../agent/client/browser-host.ts'
import { startDeployHost } from '../../../agent/deploy/deploy-host.ts'

async function startAgent(listen: string): Promise<Libp2p> {
  const config = { listen: [listen], announce: [], connectionsMax: 10, denied: [] }
  return stopped(await startDeployHost(config, await generateKeyPair('Ed25519')))
}

async function startRelay(): Promise<Libp2p> {
  const relay = await createLibp2p({
    addresses: { listen: ['/ip4/127.0.0.1/tcp/0/ws'] },
    transports: [webSockets()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    services: { identify: identify(), relay: circuitRelayServer() },
  })
  return stopped(relay)
}

function stopped(libp2p: Libp2p): Libp2p {
  onTestFinished(() => libp2p.stop())
  return libp2p
}

test('a page reaches an agent in its own network, by an address that it names', async () => {
  const agent = await startAgent('/ip4/127.0.0.1/tcp/0/ws')
  const page = stopped(await startBrowserHost())
  const { remotePeer } = await page.dial(agent.getMultiaddrs())
  expect(remotePeer.toString()).toBe(agent.peerId.toString())
})

test('a page reaches an agent behind a relay in its own network', async () => {
  const [relayAddress] = (await startRelay()).getMultiaddrs()
  const agent = await startAgent(`${relayAddress?.toString()}/p2p-circuit`)
  await expect.poll(() => agent.getMultiaddrs()).toHaveLength(1)
  const page = stopped(await startBrowserHost())
  const { remotePeer, limits } = await page.dial(agent.getMultiaddrs())
  expect(remotePeer.toString()).toBe(agent.peerId.toString())
  expect(limits).toBeDefined()
})

test('a page does not dial private addresses that others tell of', async () => {
  const [agent, other] = [
    await startAgent('/ip4/127.0.0.1/tcp/0/ws'),
    await startAgent('/ip4/127.0.0.1/tcp/0/ws'),
  ]
  const page = stopped(await startBrowserHost())
  await page.dial(agent.getMultiaddrs())
  await page.peerStore.patch(other.peerId, { multiaddrs: other.getMultiaddrs() })
  await expect(page.dial(other.peerId)).rejects.toMatchObject({ name: 'DialDeniedError' })
})
