import { yamux } from '@chainsafe/libp2p-yamux'
import { circuitRelayServer } from '@libp2p/circuit-relay-v2'
import { generateKeyPair } from '@libp2p/crypto/keys'
import { identify } from '@libp2p/identify'
import type { Libp2p } from '@libp2p/interface'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { createLibp2p } from 'libp2p'
import { expect, onTestFinished, test } from 'vitest'
import { startClientHost } from '../../../agent/client/client-host.ts'
import { streamFetch } from '../../../agent/client/stream-fetch.ts'
import { type DeployHostConfig, startDeployHost } from '../../../agent/deploy/deploy-host.ts'
import { StreamServer } from '../../../agent/deploy/stream-server.ts'

const PROTOCOL = '/ipdr/deploy/1.0.0'

async function startHost(changes: Partial<DeployHostConfig>): Promise<Libp2p> {
  const host = await startDeployHost(
    { listen: [], announce: [], connectionsMax: 100, denied: [], ...changes },
    await generateKeyPair('Ed25519'),
  )
  onTestFinished(() => host.stop())
  return host
}

async function client(): Promise<Libp2p> {
  const host = await startClientHost()
  onTestFinished(() => host.stop())
  return host
}

/** Answers with who asked, and from which address. */
async function answering(libp2p: Libp2p, takes?: (host: string) => boolean): Promise<void> {
  const server = await StreamServer.listen(
    { protocols: [PROTOCOL], ...(takes && { takes }) },
    (request, response) => void response.end(request.socket.remoteAddress),
    { libp2p },
  )
  onTestFinished(() => server[Symbol.asyncDispose]())
}

async function ask(
  from: Libp2p,
  addresses: Parameters<Libp2p['dialProtocol']>[0],
): Promise<Response> {
  const fetch = streamFetch(() =>
    from.dialProtocol(addresses, PROTOCOL, { runOnLimitedConnection: true }),
  )
  return await fetch('http://agent/')
}

test('a host that can open no port is reached through a relay', async () => {
  const relay = await createLibp2p({
    addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    services: { identify: identify(), relay: circuitRelayServer() },
  })
  onTestFinished(() => relay.stop())
  const [through] = relay.getMultiaddrs()
  const host = await startHost({ listen: [`${through?.toString()}/p2p-circuit`] })
  await answering(host)
  await expect.poll(() => host.getMultiaddrs().length, { timeout: 20_000 }).toBeGreaterThan(0)
  const publisher = await client()
  const answer = await ask(publisher, host.getMultiaddrs())
  expect(await answer.text()).toBe(publisher.peerId.toString())
  expect(publisher.getConnections(host.peerId)[0]?.remoteAddr.toString()).toContain('/p2p-circuit')
})

test('by WebRTC without a certificate, for browsers', async () => {
  const host = await startHost({ listen: ['/ip4/127.0.0.1/udp/0/webrtc-direct'] })
  expect(host.getMultiaddrs()[0]?.toString()).toMatch(/\/webrtc-direct\/certhash\//)
})

test('takes no connection from a network that is denied', async () => {
  const host = await startHost({
    listen: ['/ip4/127.0.0.1/tcp/0'],
    denied: ['/ip4/127.0.0.0/ipcidr/8'],
  })
  await answering(host)
  await expect(ask(await client(), host.getMultiaddrs())).rejects.toThrow(
    /closed|reset|EOF|ended|abort/i,
  )
})

test('tells others the addresses that it is told to', async () => {
  const host = await startHost({
    listen: ['/ip4/127.0.0.1/tcp/0'],
    announce: ['/dns4/node.example.com/tcp/30402'],
  })
  expect(host.getMultiaddrs().map(String)).toEqual([
    `/dns4/node.example.com/tcp/30402/p2p/${host.peerId.toString()}`,
  ])
})

test('an address that cannot be read or had is named', async () => {
  const key = await generateKeyPair('Ed25519')
  const config = { announce: [], connectionsMax: 1, denied: [] }
  await expect(startDeployHost({ ...config, listen: ['/ip4/nonsense'] }, key)).rejects.toThrow(
    'deploy: /ip4/nonsense is not a multiaddr',
  )
  const taken = await startHost({ listen: ['/ip4/127.0.0.1/tcp/0'] })
  const address =
    taken
      .getMultiaddrs()[0]
      ?.toString()
      .replace(/\/p2p\/.*/, '') ?? ''
  await expect(startDeployHost({ ...config, listen: [address] }, key)).rejects.toThrow(
    `deploy.listen: cannot listen on ${address}`,
  )
})

test('an address that asks too often is told to wait, and by which address it is known', async () => {
  const host = await startHost({ listen: ['/ip4/127.0.0.1/tcp/0'] })
  const hosts: string[] = []
  await answering(host, (one) => hosts.push(one) <= 2)
  const publisher = await client()
  const codes: number[] = []
  for (let request = 0; request < 3; request++) {
    codes.push((await ask(publisher, host.getMultiaddrs())).status)
  }
  expect(codes).toEqual([200, 200, 429])
  expect(hosts).toEqual(['127.0.0.1', '127.0.0.1', '127.0.0.1'])
})
