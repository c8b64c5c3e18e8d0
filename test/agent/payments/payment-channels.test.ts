import { once } from 'node:events'
import { createServer, type RequestListener, type ServerResponse } from 'node:http'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { checkChannel } from '../../../agent/payments/check-channel.ts'
import { type ChannelId, PaymentChannels } from '../../../agent/payments/payment-channels.ts'
import { TestChain } from '../../support/chain/test-chain.ts'
import { failureOf } from '../../support/failure-of.ts'
import { Scratch } from '../../support/scratch.ts'

/** Of tests in which a server answers: any that is quick enough for a loaded machine. */
const TIMEOUT_MS = 20_000
/** Of tests in which it does not. */
const SHORT_MS = 100

const { signal } = new AbortController()
const scratch = Scratch.open('payment-channels')
afterAll(() => scratch[Symbol.asyncDispose]())

let chain: TestChain
beforeAll(async () => {
  chain = await TestChain.start(scratch)
})

let pods = 0
/** Of a pod that no other test has. */
function newId(on = chain): ChannelId {
  const { publisher, operator, contract, evmChainId } = on
  pods++
  return {
    publisher,
    operator,
    contract,
    evmChainId,
    podId: `0x${pods.toString(16).padStart(64, '0')}`,
  }
}

function channelsOf(
  rpcUrls: readonly string[],
  { evmChainId = 31337n, timeoutMs = TIMEOUT_MS } = {},
): { channels: PaymentChannels; warnings: string[] } {
  const warnings: string[] = []
  const log = { warn: (_: unknown, sentence: string) => void warnings.push(sentence) }
  return { channels: new PaymentChannels({ rpcUrls, evmChainId, timeoutMs }, { log }), warnings }
}

const TERMS = { fundedSecondsMin: 10n, unlockSecondsMin: 300n }
const NEEDS = { perGigasecond: 10n ** 9n }

test('a channel is read as its contract has it: what was paid in, taken out, and how it is locked', async () => {
  const { channels } = channelsOf([chain.rpcUrl])
  const id = newId()
  await chain.createChannel(id.podId, { unlockSeconds: 300n, amount: 500n })
  const created = { deposit: 500n, redeemed: 0n, unlockSeconds: 300n, unlockedAt: 0n }
  expect(await channels.read(id, signal)).toEqual(created)
  await chain.deposit(id.podId, 250n)
  await chain.withdrawUpTo(id.podId, 100n)
  expect(await channels.read(id, signal)).toEqual({ ...created, deposit: 750n, redeemed: 100n })
  await chain.unlock(id.podId)
  const { timestamp } = await chain.client.getBlock()
  const unlocking = await channels.read(id, signal)
  expect(unlocking?.unlockedAt).toBe(timestamp + 300n)
})

test('amounts and times are exact up to the last of their 256 bits', async () => {
  const [a, b, c, d] = [2n ** 256n - 1n, 2n ** 255n + 1n, 2n ** 64n + 1n, 2n ** 53n + 1n]
  await using server = await rpcServer({ channels: words(a, b, c, d) })
  expect(await channelsOf([server.url]).channels.read(newId(), signal)).toEqual({
    deposit: a,
    redeemed: b,
    unlockSeconds: c,
    unlockedAt: d,
  })
})

test('there is no channel before one is created, for another pod, or after it was closed', async () => {
  const { channels, warnings } = channelsOf([chain.rpcUrl])
  const id = newId()
  expect(await channels.read(id, signal)).toBeUndefined()
  await chain.createChannel(id.podId, { unlockSeconds: 0n, amount: 1n })
  expect(await channels.read(newId(), signal)).toBeUndefined()
  expect(await channels.read({ ...id, operator: id.publisher }, signal)).toBeUndefined()
  expect(await channels.read(id, signal)).toBeDefined()
  await chain.unlock(id.podId)
  await chain.closeChannel(id.podId)
  expect(await channels.read(id, signal)).toBeUndefined()
  expect(warnings).toEqual([])
})

test('the token of a contract is read from it', async () => {
  expect(await channelsOf([chain.rpcUrl]).channels.readToken(chain.contract, signal)).toBe(
    chain.token,
  )
})

test('a channel that was emptied and created again without its lock is seen through, and locks again by a deposit', async () => {
  const { channels } = channelsOf([chain.rpcUrl])
  const id = newId()
  const before = await chain.balanceOf(chain.publisher)
  const check = async () => checkChannel(await channels.read(id, signal), TERMS, NEEDS)

  await chain.createChannel(id.podId, { unlockSeconds: 300n, amount: 1_000n })
  expect(await check()).toEqual({ ok: true, fundedSeconds: 1_000n })
  await chain.unlock(id.podId)
  expect(await check()).toMatchObject({ reason: 'unlocking' })
  expect(await failureOf(() => chain.withdrawUnlocked(id.podId))).toMatchObject({
    message: expect.stringContaining('ChannelLocked'),
  })
  await chain.advance(301)
  await chain.withdrawUnlocked(id.podId)
  expect(await check()).toMatchObject({ reason: 'missing' })

  await chain.createChannel(id.podId, { unlockSeconds: 300n, amount: 1_000n })
  expect(await chain.available(id.podId)).toBe(1_000n)
  expect(await check()).toMatchObject({ ok: false, reason: 'unlocking' })
  // It was right to refuse it: all is gone again at once.
  await chain.withdrawUnlocked(id.podId)
  expect(await chain.balanceOf(chain.publisher)).toBe(before)

  await chain.createChannel(id.podId, { unlockSeconds: 300n, amount: 1_000n })
  await chain.deposit(id.podId, 1n)
  expect(await check()).toEqual({ ok: true, fundedSeconds: 1_001n })
  expect((await failureOf(() => chain.withdrawUnlocked(id.podId))).message).toContain(
    'ChannelLocked',
  )
})

test('a channel on another chain is refused without asking for it', async () => {
  await using server = await rpcServer({})
  const failure = await failureOf(() =>
    channelsOf([server.url]).channels.read({ ...newId(), evmChainId: 1n }, signal),
  )
  expect(failure).toEqual({
    name: 'ChannelError',
    code: 'INVALID_ARGUMENT',
    message: 'the payment channel is on EVM chain 1, payments are taken on 31337: create one there',
  })
  expect(server.asked).toEqual([])
})

test('an RPC server of another chain than the configured one is refused, and asked for it only once if it is right', async () => {
  const { channels } = channelsOf([chain.rpcUrl], { evmChainId: 10n })
  expect(await failureOf(() => channels.read({ ...newId(), evmChainId: 10n }, signal))).toEqual({
    name: 'ChannelError',
    code: 'FAILED_PRECONDITION',
    message: `RPC server ${hostOf(chain.rpcUrl)} is of EVM chain 31337, the configuration says 10: correct the one that is wrong`,
  })
  await using server = await rpcServer({ channels: words(1n, 0n, 0n, 0n) })
  const right = channelsOf([server.url]).channels
  await right.read(newId(), signal)
  await right.read(newId(), signal)
  expect(server.asked).toEqual(['eth_chainId', 'eth_call', 'eth_call'])
})

test('after an error the chain is asked for again: another server may stand behind the URL now', async () => {
  await using server = await rpcServer({ channels: words(1n, 0n, 0n, 0n) })
  const { channels } = channelsOf([server.url])
  await channels.read(newId(), signal)
  server.answers.channels = (response) => void response.writeHead(502).end()
  expect((await failureOf(() => channels.read(newId(), signal))).code).toBe('UNAVAILABLE')
  server.answers.chainId = '0x1'
  server.answers.channels = words(1n, 0n, 0n, 0n)
  expect((await failureOf(() => channels.read(newId(), signal))).code).toBe('FAILED_PRECONDITION')
})

test('an address without a contract, or with another one, is not taken for a channel that is missing', async () => {
  const { channels } = channelsOf([chain.rpcUrl])
  const nowhere = `0x${'12'.repeat(20)}` as const
  expect(await failureOf(() => channels.read({ ...newId(), contract: nowhere }, signal))).toEqual({
    name: 'ChannelError',
    code: 'FAILED_PRECONDITION',
    message: `there is no contract at ${nowhere} on EVM chain 31337: check the address of the payment contract, and on which chain it is`,
  })
  expect(
    await failureOf(() => channels.read({ ...newId(), contract: chain.token }, signal)),
  ).toEqual({
    name: 'ChannelError',
    code: 'FAILED_PRECONDITION',
    message: `the contract at ${chain.token} on EVM chain 31337 is no payment contract: check its address`,
  })
})

test('a contract that answers nothing is told from an address where there is none', async () => {
  await using server = await rpcServer({ channels: '0x', code: '0x00' })
  const failure = await failureOf(() => channelsOf([server.url]).channels.read(newId(), signal))
  expect(failure.code).toBe('FAILED_PRECONDITION')
  expect(failure.message).toContain('is no payment contract')
})

test('a server that is still catching up does not say that there is no channel, or no contract', async () => {
  const syncing = { startingBlock: '0x0', currentBlock: '0x10', highestBlock: '0xffff' }
  await using server = await rpcServer({ channels: words(0n, 0n, 0n, 0n), syncing })
  const { channels } = channelsOf([server.url])
  const expected = {
    code: 'UNAVAILABLE',
    message: `RPC server ${hostOf(server.url)} is still catching up with its chain: try again later`,
  }
  expect(await failureOf(() => channels.read(newId(), signal))).toMatchObject(expected)
  server.answers.channels = '0x'
  expect(await failureOf(() => channels.read(newId(), signal))).toMatchObject(expected)
  server.answers.channels = words(0n, 0n, 0n, 0n)
  server.answers.syncing = false
  expect(await channels.read(newId(), signal)).toBeUndefined()
})

test('a server that does not know how to say whether it is catching up is believed', async () => {
  await using server = await rpcServer({
    channels: words(0n, 0n, 0n, 0n),
    syncing: rpcError(-32601, 'the method eth_syncing does not exist'),
  })
  expect(await channelsOf([server.url]).channels.read(newId(), signal)).toBeUndefined()
})

test('a node that hangs is given up in time, and asked again once it is back', async () => {
  await using own = await TestChain.start(scratch)
  const id = newId(own)
  await own.createChannel(id.podId, { unlockSeconds: 1n, amount: 5n })
  const { channels } = channelsOf([own.rpcUrl], { timeoutMs: SHORT_MS })
  own.pause()
  const start = performance.now()
  expect(await failureOf(() => channels.read(id, signal))).toMatchObject({
    code: 'UNAVAILABLE',
    message: `RPC server ${hostOf(own.rpcUrl)} has not answered in 100 ms: try again, or have another server configured beside it`,
  })
  expect(performance.now() - start).toBeLessThan(5_000)
  own.resume()
  const patient = channelsOf([own.rpcUrl]).channels
  expect(await patient.read(id, signal)).toMatchObject({ deposit: 5n })
  await own.stop()
  expect(await failureOf(() => patient.read(id, signal))).toMatchObject({
    code: 'UNAVAILABLE',
    message: `RPC server ${hostOf(own.rpcUrl)} cannot be reached (ECONNREFUSED): check that it runs, and its URL in the configuration`,
  })
})

const NO_ANSWERS: readonly {
  readonly title: string
  readonly answer: Answer
  readonly says: string
}[] = [
  {
    title: 'HTTP 502',
    answer: (response) => void response.writeHead(502).end('<h1>Bad gateway</h1>'),
    says: 'answers HTTP 502',
  },
  {
    title: 'a rate limit of HTTP',
    answer: (response) => void response.writeHead(429, { 'retry-after': '3600' }).end(),
    says: 'asked too often (HTTP 429)',
  },
  {
    title: 'a rate limit of JSON-RPC',
    answer: rpcError(-32005, 'daily request count exceeded'),
    says: 'asked too often (code -32005)',
  },
  {
    title: 'refused credentials',
    answer: (response) => void response.writeHead(401).end(),
    says: 'answers HTTP 401: check the credentials',
  },
  {
    title: 'a rate limit of HTTP in words of JSON-RPC',
    answer: (response) => {
      response.writeHead(429).end('{"error":{"code":-32029,"message":"Too many requests"}}')
    },
    says: 'asked too often (HTTP 429)',
  },
  {
    title: 'refused credentials in words of JSON-RPC',
    answer: (response) => {
      response.writeHead(401).end('{"error":{"code":-32600,"message":"Must be authenticated"}}')
    },
    says: 'answers HTTP 401: check the credentials',
  },
  {
    title: 'an error of JSON-RPC',
    answer: rpcError(-32000, 'header not found'),
    says: 'answers with an error, code -32000',
  },
  {
    title: 'an error that is not as JSON-RPC has them',
    answer: (response) => void response.end('{"error":{"code":{},"message":[]}}'),
    says: 'answers with an error, code unknown',
  },
  { title: 'a web page', answer: (response) => void response.end('<html>'), says: 'no JSON-RPC' },
  { title: 'null', answer: (response) => void response.end('null'), says: 'no JSON-RPC' },
  { title: 'nothing', answer: (response) => void response.end(), says: 'are no bytes' },
  { title: 'no result', answer: (response) => void response.end('{}'), says: 'are no bytes' },
  {
    title: 'a number',
    answer: (response) => void response.end('{"result":0}'),
    says: 'are no bytes',
  },
  { title: 'what is no hex', answer: `0x${'zz'.repeat(128)}`, says: 'are no bytes' },
  { title: 'fewer words', answer: words(0n, 0n, 0n), says: 'with 96 bytes in place of 128' },
  { title: 'more words', answer: words(0n, 0n, 0n, 0n, 0n), says: 'with 160 bytes in place' },
  {
    title: 'a number of more than 256 bits',
    answer: `${words(1n, 0n, 0n, 0n)}0`,
    says: 'with 128.5 bytes in place',
  },
  { title: 'more taken than paid in', answer: words(1n, 2n, 0n, 0n), says: 'more was redeemed' },
  {
    title: 'a closed connection',
    answer: (response) => void response.destroy(),
    says: 'cannot be reached',
  },
  {
    title: 'a half of an answer',
    answer: (response) => {
      response.writeHead(200, { 'content-length': '1000' })
      response.write('{"jsonrpc"', () => response.destroy())
    },
    says: 'cannot be reached',
  },
]

for (const { title, answer, says } of NO_ANSWERS) {
  test(`${title} is no answer, and not a missing channel`, async () => {
    await using server = await rpcServer({ channels: answer })
    const failure = await failureOf(() => channelsOf([server.url]).channels.read(newId(), signal))
    expect(failure).toMatchObject({ name: 'ChannelError', code: 'UNAVAILABLE' })
    expect(failure.message).toContain(`RPC server ${hostOf(server.url)} `)
    expect(failure.message).toContain(says)
    expect(server.asked).toEqual(['eth_chainId', 'eth_call'])
  })
}

test('a redirect is not followed: only servers that are configured are asked and believed', async () => {
  await using elsewhere = await rpcServer({ channels: words(0n, 0n, 0n, 0n) })
  await using server = await rpcServer({
    channels: (response) => void response.writeHead(307, { location: elsewhere.url }).end(),
  })
  const failure = await failureOf(() => channelsOf([server.url]).channels.read(newId(), signal))
  expect(failure.code).toBe('UNAVAILABLE')
  expect(failure.message).toContain(`RPC server ${hostOf(server.url)} cannot be reached`)
  expect(elsewhere.asked).toEqual([])
})

test('a chain ID that is no number is no answer', async () => {
  for (const chainId of [null, 31337, '31337', '0x', `0x${'1'.repeat(1_000)}`]) {
    await using server = await rpcServer({ chainId })
    const failure = await failureOf(() => channelsOf([server.url]).channels.read(newId(), signal))
    expect(failure.code).toBe('UNAVAILABLE')
    expect(failure.message).toContain('answers eth_chainId with what is no number')
  }
})

test('an endless answer is broken off at a mebibyte', async () => {
  let sent = 0
  const closed = Promise.withResolvers<void>()
  await using server = await rpcServer({
    channels: (response) => {
      response.on('close', closed.resolve)
      const piece = Buffer.alloc(64 * 1024, ' ')
      const send = (): void => {
        sent += piece.length
        response.write(piece, (error) => {
          if (!error) send()
        })
      }
      send()
    },
  })
  const failure = await failureOf(() => channelsOf([server.url]).channels.read(newId(), signal))
  expect(failure.code).toBe('UNAVAILABLE')
  expect(failure.message).toContain('answers more than 1048576 bytes')
  await closed.promise
  // What the sockets of both sides hold comes on top.
  expect(sent).toBeLessThan(32 * 1024 * 1024)
})

test('an answer that comes byte by byte is broken off in time', async () => {
  const closed = Promise.withResolvers<void>()
  await using server = await rpcServer({
    channels: (response) => {
      const drip = setInterval(() => response.write(' '), 10)
      response.on('close', () => {
        clearInterval(drip)
        closed.resolve()
      })
    },
  })
  const { channels } = channelsOf([server.url], { timeoutMs: 500 })
  const failure = await failureOf(() => channels.read(newId(), signal))
  expect(failure.code).toBe('UNAVAILABLE')
  expect(failure.message).toContain('has not answered in 500 ms')
  await closed.promise
})

test('the next server is asked where one fails, and the log says why', async () => {
  await using limited = await rpcServer({
    channels: (response) => void response.writeHead(429).end(),
  })
  await using foreign = await rpcServer({ chainId: '0x1' })
  await using good = await rpcServer({ channels: words(7n, 0n, 1n, 0n) })
  await using spare = await rpcServer({})
  const { channels, warnings } = channelsOf([limited.url, foreign.url, good.url, spare.url])
  expect(await channels.read(newId(), signal)).toMatchObject({ deposit: 7n })
  expect(warnings).toEqual([
    `RPC server ${hostOf(limited.url)} says that it is asked too often (HTTP 429): try again later, or have another server configured beside it`,
    `RPC server ${hostOf(foreign.url)} is of EVM chain 1, the configuration says 31337: correct the one that is wrong`,
  ])
  expect(spare.asked).toEqual([])
})

test('where none can tell, all reasons are told, and it is worth asking again if one of them may pass', async () => {
  await using limited = await rpcServer({
    channels: (response) => void response.writeHead(429).end(),
  })
  await using foreign = await rpcServer({ chainId: '0x1' })
  const failure = await failureOf(() =>
    channelsOf([foreign.url, limited.url]).channels.read(newId(), signal),
  )
  expect(failure.code).toBe('UNAVAILABLE')
  expect(failure.message).toMatch(
    /^none of 2 RPC servers can tell: .* is of EVM chain 1, .*; .* asked too often/,
  )
  const twice = channelsOf([foreign.url, foreign.url]).channels
  expect((await failureOf(() => twice.read(newId(), signal))).code).toBe('FAILED_PRECONDITION')
})

test('neither errors nor the log show more of a URL than its host, not even where the server repeats it', async () => {
  const secrets = ['alice', 'passw0rd', 'path-key', 'query-key']
  const answers: readonly Answer[] = [
    (response) => void response.writeHead(401).end('path-key?k=query-key'),
    rpcError(-32000, 'no project path-key'),
    (response) => void response.destroy(),
    (response) => void response.end('path-key'),
  ]
  for (const answer of answers) {
    await using server = await rpcServer({ channels: answer })
    const url = `http://alice:passw0rd@${hostOf(server.url)}/v3/revert-path-key?k=query-key`
    const { channels, warnings } = channelsOf([url])
    const error: unknown = await channels.read(newId(), signal).catch((error: unknown) => error)
    expect(error).toMatchObject({ code: 'UNAVAILABLE', facts: { host: hostOf(server.url) } })
    const shown = JSON.stringify([everythingOf(error), warnings])
    expect(secrets.filter((secret) => shown.includes(secret))).toEqual([])
    expect(server.seen.at(-1)).toEqual({
      path: '/v3/revert-path-key?k=query-key',
      authorization: `Basic ${btoa('alice:passw0rd')}`,
    })
  }
  const wrong = await failureOf(() => channelsOf(['ftp://alice:passw0rd@rpc.example/path-key']))
  expect(wrong).toEqual({
    name: 'ChannelError',
    code: 'INVALID_ARGUMENT',
    message:
      'the URL of an RPC server must begin with https:// or http://, that of rpc.example too',
  })
  expect((await failureOf(() => channelsOf(['passw0rd']))).message).not.toContain('passw0rd')
})

test('whoever stops waiting gets his own reason, and no other server is asked', async () => {
  await using spare = await rpcServer({})
  for (const others of [[], [spare.url]]) {
    const asked = Promise.withResolvers<void>()
    await using silent = await rpcServer({ channels: () => asked.resolve() })
    const { channels } = channelsOf([silent.url, ...others])
    const stop = new AbortController()
    const reading = failureOf(() => channels.read(newId(), stop.signal))
    await asked.promise
    stop.abort(new Error('the publisher hung up'))
    expect((await reading).message).toBe('the publisher hung up')
  }
  expect(spare.asked).toEqual([])
})

test('payments without an RPC server are refused at once', async () => {
  expect(await failureOf(() => channelsOf([]))).toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: 'payments need the URL of at least one RPC server of their chain',
  })
})

/** The result of a method, or what is done in its place. */
type Answer = string | number | boolean | object | null | ((response: ServerResponse) => void)

type Answers = { channels?: Answer; chainId?: Answer; syncing?: Answer; code?: Answer }

type RpcServer = AsyncDisposable & {
  readonly url: string
  /** May be changed at any time. */
  readonly answers: Answers
  /** The methods, in order. */
  readonly asked: readonly string[]
  readonly seen: readonly { readonly path: string; readonly authorization: string }[]
}

/** An RPC server that answers as told: by itself a good one of anvil's chain, on which nothing is. */
async function rpcServer(answers: Answers): Promise<RpcServer> {
  const asked: string[] = []
  const seen: { path: string; authorization: string }[] = []
  const listener: RequestListener = (request, response) => {
    const pieces: Buffer[] = []
    request.on('data', (piece: Buffer) => pieces.push(piece))
    request.on('end', () => {
      const { method, id }: { method: string; id: number } = JSON.parse(
        Buffer.concat(pieces).toString(),
      )
      asked.push(method)
      seen.push({
        path: request.url ?? '',
        authorization: request.headers.authorization ?? '',
      })
      const { channels = '0x', chainId = '0x7a69', syncing = false, code = '0x' } = answers
      const answer = {
        eth_call: channels,
        eth_chainId: chainId,
        eth_syncing: syncing,
        eth_getCode: code,
      }[method]
      if (typeof answer === 'function') answer(response)
      else response.end(JSON.stringify({ jsonrpc: '2.0', id, result: answer }))
    })
  }
  const server = createServer(listener).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('no port')
  return {
    url: `http://127.0.0.1:${address.port}`,
    answers,
    asked,
    seen,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      await server[Symbol.asyncDispose]()
    },
  }
}

function rpcError(code: number, message: string): Answer {
  return (response) =>
    void response.end(JSON.stringify({ jsonrpc: '2.0', error: { code, message } }))
}

function words(...values: readonly bigint[]): string {
  return `0x${values.map((value) => value.toString(16).padStart(64, '0')).join('')}`
}

function hostOf(url: string): string {
  return new URL(url).host
}

/** Whatever a logger might print of an error, its causes included. */
function everythingOf(error: unknown): unknown {
  if (!(error instanceof Error)) return error
  const properties = Object.getOwnPropertyNames(error)
  return properties.map((name) => [name, everythingOf(Reflect.get(error, name))])
}
