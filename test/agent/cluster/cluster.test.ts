import { hash } from 'node:crypto'
import { once } from 'node:events'
import { chmod } from 'node:fs/promises'
import type { ServerResponse } from 'node:http'
import { createServer, type Server } from 'node:https'
import { createServer as createTcpServer } from 'node:net'
import { join } from 'node:path'
import { Agent, request } from 'undici'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { ClusterClient } from '../../../agent/cluster/cluster-client.ts'
import { clusterService } from '../../../agent/cluster/cluster-service.ts'
import { readClusterTls } from '../../../agent/cluster/cluster-tls.ts'
import { rankedName, rankHomes } from '../../../agent/cluster/rank-homes.ts'
import { HttpServer } from '../../../agent/http-server.ts'
import { LayerError } from '../../../snapshotter/errors.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import {
  makeCertificates,
  type NodeCertificate,
  readCertificate,
} from '../../support/cluster-certificates.ts'
import { failureOf } from '../../support/failure-of.ts'
import { cidOf } from '../../support/memory-blocks.ts'
import { Scratch } from '../../support/scratch.ts'

const scratch = Scratch.open('cluster')
let ours: Record<'one' | 'two', NodeCertificate>
let theirs: Record<'stranger', NodeCertificate>

beforeAll(async () => {
  ours = await makeCertificates(join(scratch.dir, 'ours'), ['one', 'two'])
  theirs = await makeCertificates(join(scratch.dir, 'theirs'), ['stranger'])
})
afterAll(() => scratch[Symbol.asyncDispose]())

const signal = AbortSignal.timeout(60_000)
const cid = cidOf(Buffer.from('blob')).toString()
const chain = digestOf(Buffer.from('chain'))
const index = Buffer.alloc(300_000, 7)

/** A peer that knows one layer and one image. */
async function startPeer(
  certificate = ours.one,
  isKnown: (askedChain: string) => boolean = (asked) => asked === chain,
): Promise<{ url: string; answers: string[] }> {
  const answers: string[] = []
  const unknown = new LayerError('NOT_FOUND', 'it is not on this node')
  const service = clusterService({
    sideIndex: (asked) => (asked === cid ? Promise.resolve(index) : Promise.reject(unknown)),
    prefetchList: (asked) =>
      isKnown(asked) ? Promise.resolve(Buffer.from('list')) : Promise.reject(unknown),
    onAnswer: (what, found) => answers.push(`${what} ${found}`),
  })
  const tls = { ...readCertificate(certificate), requestCert: true, rejectUnauthorized: true }
  const server = await HttpServer.listen({ host: '127.0.0.1', port: 0 }, service, { tls })
  onTestFinished(() => server[Symbol.asyncDispose]())
  return { url: server.address, answers }
}

function clientOf(
  urls: readonly string[],
  certificate = ours.two,
  restMs = 0,
): { client: ClusterClient; warnings: string[] } {
  const warnings: string[] = []
  const log = { warn: (_facts: object, sentence: string) => void warnings.push(sentence) }
  const client = new ClusterClient(
    { self: undefined, others: urls },
    { tls: readCertificate(certificate), log },
    { restMs },
  )
  onTestFinished(() => client[Symbol.asyncDispose]())
  return { client, warnings }
}

test('a peer answers with the index of a layer and the list of an image that it knows, and says so of others', async () => {
  const { url, answers } = await startPeer()
  const { client, warnings } = clientOf([url])
  const found = await client.sideIndex(cid, signal)
  expect(Buffer.from(found?.bytes ?? []).equals(index)).toBe(true)
  expect(found?.peer).toBe(`peer ${url}`)
  expect(Buffer.from((await client.prefetchList(chain, signal))?.bytes ?? []).toString()).toBe(
    'list',
  )
  expect(await client.sideIndex(cidOf(Buffer.from('x')).toString(), signal)).toBeUndefined()
  expect(await client.prefetchList(digestOf(Buffer.from('x')), signal)).toBeUndefined()
  expect(answers).toEqual(['index true', 'prefetch true', 'index false', 'prefetch false'])
  expect(warnings).toEqual([])
})

test.each([
  ['/v1/indexes/..%2F..%2Fetc', 400],
  ['/v1/prefetch/latest', 400],
  ['/v1/other', 404],
])('a peer has no answer to %s', async (path, status) => {
  const { url } = await startPeer()
  const connect = { ...readCertificate(ours.two), checkServerIdentity: () => undefined }
  const dispatcher = new Agent({ connect })
  onTestFinished(() => dispatcher.destroy())
  const { statusCode, body } = await request(`${url}${path}`, { dispatcher })
  await body.dump()
  expect(statusCode).toBe(status)
})

test('whoever has no certificate of the cluster is not answered, and a peer without one is not believed', async () => {
  const { url, answers } = await startPeer()
  const stranger = clientOf([url], { ...theirs.stranger, caFile: ours.one.caFile })
  expect(await stranger.client.sideIndex(cid, signal)).toBeUndefined()
  await expect(fetch(`${url.replace('https', 'http')}/v1/indexes/${cid}`)).rejects.toThrow(
    /fetch failed/,
  )
  expect(answers).toEqual([])
  const impostor = await startPeer(theirs.stranger)
  const { client, warnings } = clientOf([impostor.url])
  expect(await client.sideIndex(cid, signal)).toBeUndefined()
  expect(impostor.answers).toEqual([])
  expect(warnings.join()).toMatch(
    /cannot be asked what it knows of a layer.*: .*(certificate|self-signed)/,
  )
})

test('of several peers the first that knows is taken, whatever the others do', async () => {
  const silent = await listenSilently()
  const { url } = await startPeer()
  const { client } = clientOf([silent, 'https://127.0.0.1:1', url])
  expect((await client.sideIndex(cid, signal))?.peer).toBe(`peer ${url}`)
})

test('of many peers a few are asked, a round at a time, and the same ones first by every node', async () => {
  const { urls, asked } = await startMany(40)
  const { client, warnings } = clientOf(urls)
  expect(await client.prefetchList(chain, signal)).toBeUndefined()
  const order = rankHomes(rankedBy(`/v1/prefetch/${chain}`), urls.map(rankedName))
    .map(({ name }) => name)
    .slice(0, 28)
  expect(asked.slice(0, 4).toSorted()).toEqual(order.slice(0, 4).toSorted())
  expect(asked.slice(4, 12).toSorted()).toEqual(order.slice(4, 12).toSorted())
  expect(asked.toSorted()).toEqual(order.toSorted())
  expect(warnings).toEqual([])
})

test('when one of the first knows no other is asked, while it sends its answer neither', async () => {
  const sending = Promise.withResolvers<void>()
  const { urls, asked } = await startMany(12, async (response) => {
    response.writeHead(200)
    response.write('li')
    await sending.promise
    response.end('st')
  })
  const { client } = clientOf(urls)
  const found = client.prefetchList(chain, signal)
  await expect.poll(() => asked.length).toBe(4)
  // What others would be asked after has passed twice when one that says nothing has been given up.
  await clientOf([await listenSilently()]).client.prefetchList(chain, signal)
  expect(asked).toHaveLength(4)
  sending.resolve()
  expect(Buffer.from((await found)?.bytes ?? []).toString()).toBe('list')
})

test('first ones that say nothing do not hold up the others', async () => {
  const { urls, asked } = await startMany(12, (response, at) => {
    if (at >= 4) response.end('list')
  })
  const { client, warnings } = clientOf(urls)
  expect(await client.prefetchList(chain, signal)).toBeDefined()
  expect(asked.length).toBeGreaterThan(4)
  expect(warnings).toEqual([])
})

test('of many peers one that alone knows is found, since those who are asked first name it, and none that is no peer is asked', async () => {
  let wanted = chain
  const alone = await startPeer(ours.one, (asked) => asked === wanted)
  const { urls, asked } = await startMany(40, (response) => {
    response.setHeader('ipdr-asked-by', ['https://127.0.0.1:1', alone.url].join(', '))
    response.writeHead(404).end()
  })
  const all = [alone.url, ...urls]
  // One that it would be asked for last.
  for (let at = 0; ; at++) {
    wanted = digestOf(Buffer.from(`chain ${at}`))
    const order = rankHomes(rankedBy(`/v1/prefetch/${wanted}`), all.map(rankedName))
    if (order.at(-1)?.name === alone.url) break
  }
  const { client, warnings } = clientOf(all)
  const found = await client.prefetchList(wanted, signal)
  expect(found?.peer).toBe(`peer ${alone.url}`)
  expect(asked.length).toBeLessThanOrEqual(4)
  expect(warnings).toEqual([])
})

test('a peer that does not know names those who asked it before', async () => {
  const [home, learner] = [await startPeer(), await startPeer()]
  const wanted = digestOf(Buffer.from('wanted'))
  const asking = (self: string): ClusterClient => {
    const client = clientOf([]).client
    client.follow({ self, others: [home.url, learner.url].filter((url) => url !== self) })
    return client
  }
  // The learner asks the home, in vain, and then learns it.
  expect(await asking(learner.url).prefetchList(wanted, signal)).toBeUndefined()
  const { statusCode, headers } = await askedAs(home.url, `/v1/prefetch/${wanted}`)
  expect({ statusCode, named: headers['ipdr-asked-by'] }).toEqual({
    statusCode: 404,
    named: learner.url,
  })
  const other = await askedAs(home.url, `/v1/prefetch/${digestOf(Buffer.from('x'))}`)
  expect(other.headers['ipdr-asked-by']).toBeUndefined()
})

/** The answer to a node of the cluster that does not tell its name. */
async function askedAs(
  url: string,
  path: string,
): Promise<{ statusCode: number; headers: Record<string, unknown> }> {
  const connect = { ...readCertificate(ours.two), checkServerIdentity: () => undefined }
  const dispatcher = new Agent({ connect })
  onTestFinished(() => dispatcher.destroy())
  const { statusCode, headers, body } = await request(`${url}${path}`, { dispatcher })
  await body.dump()
  return { statusCode, headers }
}

test('those that are peers by now are asked, and those that were are not', async () => {
  const { url, answers } = await startPeer()
  const later = await startPeer()
  const { client } = clientOf([url])
  client.follow({ self: undefined, others: [later.url] })
  expect((await client.sideIndex(cid, signal))?.peer).toBe(`peer ${later.url}`)
  client.follow({ self: undefined, others: [] })
  expect(await client.sideIndex(cid, signal)).toBeUndefined()
  expect(answers).toEqual([])
})

test('one that accepts and says nothing is left after half a second, and not asked again for a while', async () => {
  const silent = await listenSilently()
  const { client, warnings } = clientOf([silent], ours.two, 60_000)
  expect(await client.sideIndex(cid, signal)).toBeUndefined()
  expect(await client.sideIndex(cid, signal)).toBeUndefined()
  expect(warnings).toHaveLength(1)
  expect(warnings[0]).toMatch(/no answer in 500 ms|Connect Timeout/i)
})

test('one that sends without an end, or breaks off, is given up, and nothing of it is used', async () => {
  const endless = await listenTls((server) =>
    server.on('request', (_, response) => {
      response.writeHead(200)
      const more = (): void => {
        while (!response.destroyed && response.write(Buffer.alloc(1 << 20)));
        if (!response.destroyed) response.once('drain', more)
      }
      more()
    }),
  )
  const broken = await listenTls((server) =>
    server.on('request', (_, response) => {
      response.writeHead(200, { 'content-length': '1000' })
      response.write('half', () => response.destroy())
    }),
  )
  const wrong = await listenTls((server) =>
    server.on('request', (_, response) => void response.writeHead(500).end()),
  )
  const { client, warnings } = clientOf([endless, broken, wrong])
  expect(await client.sideIndex(cid, signal)).toBeUndefined()
  expect(warnings.some((sentence) => sentence.includes('more than 134217728 bytes'))).toBe(true)
  expect(warnings.some((sentence) => sentence.includes('it answers 500'))).toBe(true)
  expect(warnings).toHaveLength(3)
})

test('files that are not there, or that others may read, keep the agent from starting', async () => {
  const missing = await failureOf(() => readClusterTls({ ...ours.one, certFile: '/nowhere' }))
  expect(missing.message).toBe('cluster.tls.certFile: there is no file /nowhere')
  await chmod(ours.one.keyFile, 0o644)
  onTestFinished(() => chmod(ours.one.keyFile, 0o600))
  const loose = await failureOf(() => readClusterTls(ours.one))
  expect(loose.message).toMatch(/has mode 644.*run chmod 600/)
})

/** What decides on the order in which peers are asked for `path`. */
function rankedBy(path: string): Uint8Array {
  return hash('sha256', path, 'buffer')
}

/** Peers that do not know, or answer otherwise, each with an address of its own, and which were asked in which order. */
async function startMany(
  count: number,
  answer: (response: ServerResponse, at: number) => unknown = (response) =>
    response.writeHead(404).end(),
): Promise<{ urls: string[]; asked: string[] }> {
  const asked: string[] = []
  const server = createServer(readCertificate(ours.one), ({ socket }, response) => {
    asked.push(`https://${socket.localAddress}:${socket.localPort}`)
    answer(response, asked.length - 1)
  })
  server.listen(0, '0.0.0.0')
  await once(server, 'listening')
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
  const { port } = server.address() as { port: number }
  const urls = Array.from({ length: count }, (_, at) => `https://127.0.1.${at + 1}:${port}`)
  return { urls, asked }
}

async function listenSilently(): Promise<string> {
  const server = createTcpServer(() => {})
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => void server.close())
  return `https://127.0.0.1:${(server.address() as { port: number }).port}`
}

async function listenTls(prepare: (server: Server) => void): Promise<string> {
  const server = createServer(readCertificate(ours.one))
  prepare(server)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
  return `https://127.0.0.1:${(server.address() as { port: number }).port}`
}
