import { CID } from 'multiformats/cid'
import { create } from 'multiformats/hashes/digest'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import {
  type BlockErrand,
  type BlockProvider,
  ProviderHealth,
} from '../../../agent/ipfs/block-provider.ts'
import { BlockSources } from '../../../agent/ipfs/block-sources.ts'
import type { Priority } from '../../../snapshotter/block-source.ts'
import { BlockError, type ErrorCode } from '../../../snapshotter/errors.ts'
import { ReusedMemory } from '../../../snapshotter/reused-memory.ts'
import { failureOf } from '../../support/failure-of.ts'
import { cidOf } from '../../support/memory-blocks.ts'

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] }))
afterEach(() => void vi.useRealTimers())

const log = { debug() {}, info() {}, warn() {}, error() {} }
const signal = new AbortController().signal
const foreground = { priority: 'foreground', signal } as const
const block = (text: string): Buffer => Buffer.from(text)

/** A provider that answers when the test says so. */
class ScriptedProvider implements BlockProvider {
  readonly name: string
  readonly kind: BlockProvider['kind']
  readonly health = new ProviderHealth()
  readonly asked: {
    cid: string
    answer: (result: Uint8Array | ErrorCode) => void
    signal: AbortSignal
    errand: BlockErrand | undefined
  }[] = []
  /** Answers at once if set. */
  reply: Uint8Array | ErrorCode | undefined

  constructor(
    name: string,
    reply?: Uint8Array | ErrorCode,
    kind: BlockProvider['kind'] = 'gateway',
  ) {
    this.name = name
    this.kind = kind
    this.reply = reply
  }

  get(cid: CID, signal: AbortSignal, errand?: BlockErrand): Promise<Uint8Array> {
    const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>()
    const answer = (result: Uint8Array | ErrorCode): void => {
      if (typeof result !== 'string') resolve(result)
      else reject(new BlockError(result, `${this.name} says ${result}`))
    }
    this.asked.push({ cid: cid.toString(), answer, signal, errand })
    signal.addEventListener('abort', () => reject(new BlockError('CANCELLED', 'stopped')))
    if (this.reply !== undefined) answer(this.reply)
    return promise
  }
}

const cid = cidOf(block('x'))
const turn = (): Promise<unknown> => vi.advanceTimersByTimeAsync(0)

test('gateways are asked before peers, the quickest first, those that failed lately later and liars last', async () => {
  const providers = ['liar', 'resting', 'slow', 'quick'].map(
    (name) => new ScriptedProvider(name, 'NOT_FOUND'),
  )
  const [liar, resting, slow, quick] = providers
  const peer = new ScriptedProvider('peer', 'NOT_FOUND', 'bitswap')
  liar?.health.sentWrongBytes()
  resting?.health.failed()
  slow?.health.succeeded(500)
  quick?.health.succeeded(5)
  const sources = new BlockSources([peer, ...providers], { log })
  const failure = await failureOf(() => sources.get(cid, foreground))
  expect(failure.message).toBe(
    `block ${cid.toString()} cannot be had: ${['quick', 'slow', 'peer', 'resting', 'liar']
      .map((name) => `${name} says NOT_FOUND`)
      .join('; ')}`,
  )
})

test.each<[ErrorCode[], ErrorCode]>([
  [['NOT_FOUND', 'NOT_FOUND'], 'NOT_FOUND'],
  [['NOT_FOUND', 'UNAVAILABLE'], 'UNAVAILABLE'],
  [['DATA_LOSS', 'NOT_FOUND'], 'DATA_LOSS'],
  [['DATA_LOSS', 'UNAVAILABLE'], 'UNAVAILABLE'],
  [['UNIMPLEMENTED', 'NOT_FOUND'], 'UNIMPLEMENTED'],
])('answers %j make the failure %s', async (answers, code) => {
  const providers = answers.map((answer, index) => new ScriptedProvider(`p${index}`, answer))
  const failure = await failureOf(() => new BlockSources(providers, { log }).get(cid, foreground))
  expect(failure).toMatchObject({ name: 'BlockError', code })
})

test('with nobody to ask, the error says what to configure', async () => {
  const failure = await failureOf(() => new BlockSources([], { log }).get(cid, foreground))
  expect(failure.code).toBe('UNAVAILABLE')
  expect(failure.message).toMatch(/nobody to ask: put gateways or peers in the config/)
})

test('after wrong bytes the next provider is asked, and the sender is reported', async () => {
  const reported: string[] = []
  const bytes: string[] = []
  const sources = new BlockSources(
    [new ScriptedProvider('liar', 'DATA_LOSS'), new ScriptedProvider('honest', block('x'))],
    {
      log,
      onVerificationFailure: (provider, cid) => reported.push(`${provider} ${cid.toString()}`),
      onBytes: (kind, count) => bytes.push(`${kind} ${count}`),
    },
  )
  expect(Buffer.from(await sources.get(cid, foreground))).toEqual(block('x'))
  expect(reported).toEqual([`liar ${cid.toString()}`])
  expect(bytes).toEqual(['gateway 1'])
})

test('a block asked for by several at once is fetched once, and each gets bytes of its own', async () => {
  const provider = new ScriptedProvider('p')
  const sources = new BlockSources([provider], { log })
  const gets = [1, 2, 3].map(() => sources.get(cid, foreground))
  await turn()
  expect(provider.asked).toHaveLength(1)
  provider.asked[0]?.answer(block('x'))
  const got = await Promise.all(gets)
  got[0]?.fill(0)
  expect(got.map((bytes) => Buffer.from(bytes).toString())).toEqual(['\0', 'x', 'x'])
})

test('a block is received in the memory of whoever asked first, and others have theirs when that one gives it back', async () => {
  using memory = new ReusedMemory()
  const provider = new ScriptedProvider('p')
  const sources = new BlockSources([provider], { log })
  const getAndGiveBack = async (): Promise<void> => {
    memory.giveBack(await sources.get(cid, { ...foreground, memory }))
    memory.take(1).fill(0)
  }
  const first = getAndGiveBack()
  const second = sources.get(cid, foreground)
  await turn()
  const into = provider.asked[0]?.errand?.memory?.take(1)
  into?.set(block('x'))
  provider.asked[0]?.answer(into ?? 'NOT_FOUND')
  await first
  expect(into?.[0]).toBe(0)
  expect(Buffer.from(await second).toString()).toBe('x')
})

test('one of several who leaves does not stop the fetch, the last one does', async () => {
  const provider = new ScriptedProvider('p')
  const sources = new BlockSources([provider], { log })
  const [first, second] = [new AbortController(), new AbortController()]
  const gets = [first, second].map(({ signal }) =>
    failureOf(() => sources.get(cid, { priority: 'foreground', signal })),
  )
  await turn()
  first.abort()
  expect((await gets[0])?.code).toBe('CANCELLED')
  expect(provider.asked[0]?.signal.aborted).toBe(false)
  second.abort(new DOMException('late', 'TimeoutError'))
  const late = await gets[1]
  expect(late?.code).toBe('DEADLINE_EXCEEDED')
  expect(late?.message).toMatch(/did not arrive in time; p has not answered yet/)
  expect(provider.asked[0]?.signal.aborted).toBe(true)
  provider.reply = block('x')
  expect(Buffer.from(await sources.get(cid, foreground))).toEqual(block('x'))
})

test('one who joins just as the last one leaves gets a fetch of their own', async () => {
  const provider = new ScriptedProvider('p')
  const sources = new BlockSources([provider], { log })
  const leaver = new AbortController()
  const left = failureOf(() => sources.get(cid, { priority: 'foreground', signal: leaver.signal }))
  await turn()
  provider.reply = block('x')
  leaver.abort()
  expect(Buffer.from(await sources.get(cid, foreground))).toEqual(block('x'))
  expect((await left).code).toBe('CANCELLED')
})

test.each<[Priority, number]>([
  ['foreground', 2],
  ['prefetch', 2],
  ['background', 1],
])('for %s, %i are asked when the first is slow', async (priority, asked) => {
  const [slow, quick] = [new ScriptedProvider('slow'), new ScriptedProvider('quick')]
  const sources = new BlockSources([slow, quick], { log })
  const got = sources.get(cid, { priority, signal })
  await turn()
  expect(quick.asked).toHaveLength(0)
  await vi.advanceTimersByTimeAsync(2_000)
  expect(slow.asked.length + quick.asked.length).toBe(asked)
  ;(quick.asked[0] ?? slow.asked[0])?.answer(block('x'))
  expect(Buffer.from(await got)).toEqual(block('x'))
  // Who was too late is told; who answered has nothing to break off.
  expect(slow.asked[0]?.signal.aborted).toBe(asked > 1)
})

test('a hedge does not wake providers that failed lately', async () => {
  const [slow, resting] = [new ScriptedProvider('slow'), new ScriptedProvider('resting')]
  resting.health.failed(60_000)
  const sources = new BlockSources([slow, resting], { log })
  const got = sources.get(cid, foreground)
  await vi.advanceTimersByTimeAsync(5_000)
  expect(resting.asked).toHaveLength(0)
  slow.asked[0]?.answer('UNAVAILABLE')
  await turn()
  expect(resting.asked).toHaveLength(1)
  resting.asked[0]?.answer(block('x'))
  expect(Buffer.from(await got)).toEqual(block('x'))
})

test('a background fetch that a page fault joins is hedged from then on', async () => {
  const [slow, quick] = [new ScriptedProvider('slow'), new ScriptedProvider('quick')]
  const sources = new BlockSources([slow, quick], { log })
  const background = sources.get(cid, { priority: 'background', signal })
  await vi.advanceTimersByTimeAsync(10_000)
  expect(quick.asked).toHaveLength(0)
  const fault = sources.get(cid, foreground)
  await vi.advanceTimersByTimeAsync(2_000)
  quick.asked[0]?.answer(block('x'))
  const got = await Promise.all([background, fault])
  expect(got.map((bytes) => Buffer.from(bytes).toString())).toEqual(['x', 'x'])
})

test('spare ones are asked when all others have failed, and not for speed', async () => {
  const [slow, spare] = [new ScriptedProvider('slow'), new ScriptedProvider('spare', block('x'))]
  const sources = new BlockSources(() => ({ first: [slow], spare: [spare] }), { log })
  const got = sources.get(cid, foreground)
  await vi.advanceTimersByTimeAsync(10_000)
  expect(spare.asked).toHaveLength(0)
  slow.asked[0]?.answer('NOT_FOUND')
  expect(Buffer.from(await got)).toEqual(block('x'))
})

test('a spare one waits for the last of those that were asked', async () => {
  const [slow, failing] = [new ScriptedProvider('slow'), new ScriptedProvider('failing')]
  const spare = new ScriptedProvider('spare', block('x'))
  const sources = new BlockSources(() => ({ first: [slow, failing], spare: [spare] }), { log })
  const got = sources.get(cid, foreground)
  await vi.advanceTimersByTimeAsync(2_000)
  failing.asked[0]?.answer('UNAVAILABLE')
  await turn()
  expect(spare.asked).toHaveLength(0)
  slow.asked[0]?.answer('UNAVAILABLE')
  expect(Buffer.from(await got)).toEqual(block('x'))
})

test('one that says it works on the block is not overtaken before it has said nothing for two seconds, nor spared for longer than ten', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
  const works = (of: ScriptedProvider): void => of.asked[0]?.errand?.isWorking()
  const [first, next] = [
    new ScriptedProvider('first', undefined, 'cluster'),
    new ScriptedProvider('next'),
  ]
  const [busy, other] = [
    new ScriptedProvider('busy', undefined, 'cluster'),
    new ScriptedProvider('other'),
  ]
  const paused = new BlockSources(() => ({ first: [first, next], spare: [] }), { log })
  const long = new BlockSources(() => ({ first: [busy, other], spare: [] }), { log })
  const gets = [paused, long].map((sources) => sources.get(cid, foreground))
  for (let sign = 0; sign < 20; sign++) {
    await vi.advanceTimersByTimeAsync(250)
    works(first)
    works(busy)
  }
  await vi.advanceTimersByTimeAsync(1_999)
  works(busy)
  expect(next.asked).toHaveLength(0)
  await vi.advanceTimersByTimeAsync(1)
  expect(next.asked).toHaveLength(1)
  for (let ms = 7_000; ms <= 10_000; ms += 250) {
    expect(other.asked).toHaveLength(0)
    works(busy)
    await vi.advanceTimersByTimeAsync(250)
  }
  for (let ms = 0; ms < 2_500; ms += 250) {
    works(busy)
    await vi.advanceTimersByTimeAsync(250)
  }
  expect(other.asked).toHaveLength(1)
  next.asked[0]?.answer(block('x'))
  other.asked[0]?.answer(block('x'))
  await Promise.all(gets)
})

test.each([
  [1, 1_000],
  [700, 2_100],
  [60_000, 5_000],
])(
  'one that usually takes %i ms and has bounds of its own is given %i',
  async (usualMs, hedgeMs) => {
    class Patient extends ScriptedProvider {
      readonly hedge = { minMs: 1_000, maxMs: 5_000 }
    }
    const [first, next] = [new Patient('first'), new ScriptedProvider('next', block('x'))]
    first.health.succeeded(usualMs)
    const sources = new BlockSources(() => ({ first: [first, next], spare: [] }), { log })
    const got = sources.get(cid, foreground)
    await vi.advanceTimersByTimeAsync(hedgeMs - 1)
    expect(next.asked).toHaveLength(0)
    await vi.advanceTimersByTimeAsync(1)
    await got
  },
)

test('a provider is told for whom a block is, and when somebody in the foreground comes', async () => {
  const provider = new ScriptedProvider('p')
  const sources = new BlockSources([provider], { log })
  const gets = [sources.get(cid, { priority: 'prefetch', signal })]
  await turn()
  const errand = provider.asked[0]?.errand
  expect([errand?.priority, errand?.escalated.aborted]).toEqual(['prefetch', false])
  gets.push(sources.get(cid, foreground))
  await turn()
  expect(errand?.escalated.aborted).toBe(true)
  provider.asked[0]?.answer(block('x'))
  await Promise.all(gets)
})

test('an agent that could not get what others could is left alone for a while, one that nobody could have helped is not', async () => {
  const agents = ['could not', 'nobody'].map(
    (name) => new ScriptedProvider(name, 'NOT_FOUND', 'cluster'),
  ) as [ScriptedProvider, ScriptedProvider]
  const origins = [block('x'), 'NOT_FOUND' as const].map(
    (reply) => new ScriptedProvider('origin', reply, 'origin'),
  )
  for (const [at, agent] of agents.entries()) {
    const origin = origins[at] as ScriptedProvider
    const sources = new BlockSources(() => ({ first: [agent, origin], spare: [] }), { log })
    await sources.get(cid, foreground).catch(() => undefined)
  }
  expect(agents.map(({ health }) => health.standing)).toEqual([1, 0])
})

// Goal: a page fault overtakes all that wait in the background. Method: fill every slot, queue, and free one.
test('a prefetch is foreground from the moment that a page fault waits for it: it goes first', async () => {
  const provider = new ScriptedProvider('p')
  const sources = new BlockSources([provider], { log })
  const escalate = new AbortController()
  const get = (text: string, escalated?: AbortSignal): Promise<unknown> => {
    const request = { priority: 'background', signal, ...(escalated && { escalated }) } as const
    return sources.get(cidOf(block(text)), request).catch(() => undefined)
  }
  for (let n = 0; n < 32; n++) void get(`running ${n}`)
  void get('before')
  void get('urgent', escalate.signal)
  await turn()
  escalate.abort()
  provider.asked[0]?.answer(block('x'))
  await turn()
  expect(provider.asked[32]?.cid).toBe(cidOf(block('urgent')).toString())
})

test('of those that wait for a turn, page faults go first and background last', async () => {
  const provider = new ScriptedProvider('p')
  const sources = new BlockSources([provider], { log })
  const get = (name: string, priority: Priority): void => {
    sources.get(cidOf(block(name)), { priority, signal }).catch(() => undefined)
  }
  for (let n = 0; n < 32; n++) get(`running ${n}`, 'background')
  get('background', 'background')
  get('joined', 'background')
  get('prefetch', 'prefetch')
  get('foreground', 'foreground')
  get('joined', 'foreground')
  await turn()
  expect(provider.asked).toHaveLength(32)
  for (let n = 0; n < 4; n++) {
    provider.asked[n]?.answer(block('x'))
    await turn()
  }
  expect(provider.asked.slice(32).map(({ cid }) => cid)).toEqual(
    ['joined', 'foreground', 'prefetch', 'background'].map((name) => cidOf(block(name)).toString()),
  )
})

test('small blocks are kept in memory within a bound, and what a caller does to theirs does not matter', async () => {
  const kinds: string[] = []
  const provider = new ScriptedProvider('p', block('x'))
  const sources = new BlockSources([provider], { log, onBytes: (kind) => kinds.push(kind) })
  ;(await sources.get(cid, foreground)).fill(0)
  ;(await sources.get(cid, foreground)).fill(0)
  expect(Buffer.from(await sources.get(cid, foreground))).toEqual(block('x'))
  expect(kinds).toEqual(['gateway', 'memory', 'memory'])
  provider.reply = new Uint8Array(64 * 1024)
  for (let n = 0; n < 128; n++) await sources.get(cidOf(block(`${n}`)), foreground)
  provider.reply = block('x')
  await sources.get(cid, foreground)
  expect(kinds.at(-1)).toBe('gateway')
})

test('a block of a layer, whose memory is given back, is not kept', async () => {
  using memory = new ReusedMemory()
  const provider = new ScriptedProvider('p', block('x'))
  const sources = new BlockSources([provider], { log })
  await sources.get(cid, { ...foreground, memory })
  await sources.get(cid, { ...foreground, memory })
  expect(provider.asked).toHaveLength(2)
})

test('a large block is not kept', async () => {
  const provider = new ScriptedProvider('p', new Uint8Array(64 * 1024 + 1))
  const sources = new BlockSources([provider], { log })
  await sources.get(cid, foreground)
  await sources.get(cid, foreground)
  expect(provider.asked).toHaveLength(2)
})

test('an inlined block is answered without asking', async () => {
  const inlined = CID.createV1(0x55, create(0x00, block('inlined')))
  const got = await new BlockSources([], { log }).get(inlined, foreground)
  expect(Buffer.from(got).toString()).toBe('inlined')
})

test('a file in one piece is asked of whoever is asked first, if that one can and does well', async () => {
  const [cid, bytes] = [cidOf(block('a')), block('a')]
  const path = { root: cid, names: ['start.car'], bytesMax: 1000 }
  const warnings: string[] = []
  const counted: number[] = []
  const pieces = [[{ cid, bytes }], new BlockError('DATA_LOSS', 'these are other bytes')]
  const able = Object.assign(new ScriptedProvider('able'), {
    async *along() {
      const piece = pieces.shift()
      if (piece instanceof Error) throw piece
      yield* piece ?? []
    },
  })
  const sources = new BlockSources([able, new ScriptedProvider('unable')], {
    log: { ...log, warn: (_facts, sentence) => void warnings.push(sentence) },
    onBytes: (_kind, length) => void counted.push(length),
  })
  expect(await Array.fromAsync(sources.along(path, foreground))).toEqual([{ cid, bytes }])
  expect(counted).toEqual([1])
  expect(await Array.fromAsync(sources.along(path, foreground))).toEqual([])
  expect(warnings).toEqual([expect.stringContaining('sent bytes that are not the block')])
  pieces.push([{ cid, bytes }])
  able.health.sentWrongBytes()
  expect(await Array.fromAsync(sources.along(path, foreground))).toEqual([])
})
