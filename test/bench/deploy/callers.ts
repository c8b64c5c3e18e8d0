import { type Client, createClient } from '@connectrpc/connect'
import { createConnectTransport } from '@connectrpc/connect-web'
import { multiaddr } from '@multiformats/multiaddr'
import { startClientHost } from '../../../agent/client/client-host.ts'
import { DEPLOY_PROTOCOL } from '../../../agent/client/deploy-client.ts'
import { streamFetch } from '../../../agent/client/stream-fetch.ts'
import { DeployService } from '../../../proto/messages/ipdr/deploy_pb.js'
import { answerQuestions, task } from './own-process.ts'

/** Whoever asks for Capacity, in a process of its own: over one libp2p connection, or by Node's HTTP client. */
export type CallersTask = { readonly over: 'libp2p' | 'http'; readonly address: string }

export type CallsQuestion = { readonly atOnce: number; readonly seconds: number }

export type CallsCount = { readonly calls: number; readonly seconds: number }

const { over, address } = task() as CallersTask
const client = over === 'libp2p' ? await overLibp2p() : overHttp()

answerQuestions({}, async ({ atOnce, seconds }: CallsQuestion): Promise<CallsCount> => {
  let calls = 0
  const startedAt = performance.now()
  const endsAt = startedAt + seconds * 1_000
  await Promise.all(
    Array.from({ length: atOnce }, async () => {
      for (; performance.now() < endsAt; calls++) await client.capacity({})
    }),
  )
  return { calls, seconds: (performance.now() - startedAt) / 1_000 }
})

async function overLibp2p(): Promise<Client<typeof DeployService>> {
  const host = await startClientHost()
  const peer = multiaddr(address)
  await host.dial(peer)
  const fetch = streamFetch(() => host.dialProtocol(peer, DEPLOY_PROTOCOL))
  const transport = createConnectTransport({
    baseUrl: 'http://agent',
    fetch,
    useBinaryFormat: true,
  })
  return createClient(DeployService, transport)
}

function overHttp(): Client<typeof DeployService> {
  return createClient(
    DeployService,
    createConnectTransport({ baseUrl: address, useBinaryFormat: true }),
  )
}
