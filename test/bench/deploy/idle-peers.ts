import { setTimeout } from 'node:timers/promises'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import type { Connection, Libp2p, Stream } from '@libp2p/interface'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { DEPLOY_PROTOCOL } from '../../../agent/client/deploy-client.ts'
import { answerQuestions, task } from './own-process.ts'

/** Peers in a process of their own, each with a libp2p host: they connect, open streams, and say nothing. */
export type PeersTask = { readonly peers: number; readonly address: string }

export type PeersQuestion =
  | { readonly kind: 'connect'; readonly perSecond: number }
  | { readonly kind: 'open'; readonly streamsOfEach: number }
  | { readonly kind: 'count' }

/** What is open. */
export type PeersCount = {
  readonly connections: number
  /** Streams whose protocol was agreed on, and how many of them are still open. */
  readonly agreed: number
  readonly open: number
}

/** How often a peer tries to connect. */
const ATTEMPTS = 5

const { peers, address } = task() as PeersTask
const hosts = await Promise.all(Array.from({ length: peers }, startHost))
let connections: Connection[] = []
let streams: Stream[] = []

answerQuestions({}, async (question: PeersQuestion): Promise<PeersCount> => {
  if (question.kind === 'connect') await connect(question.perSecond)
  if (question.kind === 'open') await open(question.streamsOfEach)
  return {
    connections: connections.filter(({ status }) => status === 'open').length,
    agreed: streams.length,
    open: streams.filter(({ status }) => status === 'open').length,
  }
})

/** Evenly: the endpoint takes only so many a second from one address. */
async function connect(perSecond: number): Promise<void> {
  const dials = hosts.map(async (host, n) => {
    await setTimeout((n * 1_000) / perSecond)
    return await dial(host)
  })
  // One that was given up is one fewer: the endpoint counts its half of a broken connection for a while, too.
  connections = (await Promise.allSettled(dials)).flatMap((dial) =>
    dial.status === 'fulfilled' ? [dial.value] : [],
  )
}

/** Again if it was refused: the endpoint takes some at once, and the machine may have had something else to do for a while. */
async function dial(host: Libp2p): Promise<Connection> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await host.dial(multiaddr(address))
    } catch (error) {
      if (attempt === ATTEMPTS) throw error
      await setTimeout(attempt * 1_000)
    }
  }
}

async function open(streamsOfEach: number): Promise<void> {
  const opening = connections.flatMap((connection) =>
    Array.from({ length: streamsOfEach }, () => connection.newStream(DEPLOY_PROTOCOL)),
  )
  streams = (await Promise.allSettled(opening)).flatMap((stream) =>
    stream.status === 'fulfilled' ? [stream.value] : [],
  )
}

/** Without the looks that libp2p takes at its own connections: here hundreds of hosts share a process, and would give up on the endpoint. */
async function startHost(): Promise<Libp2p> {
  return await createLibp2p({
    addresses: { listen: [] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionMonitor: { enabled: false },
    services: { identify: identify(), ping: ping() },
  })
}
