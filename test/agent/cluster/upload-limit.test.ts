import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { UploadLimit } from '../../../agent/cluster/upload-limit.ts'
import type { Priority } from '../../../snapshotter/block-source.ts'
import { failureOf } from '../../support/failure-of.ts'
import { seeded } from '../../support/seeded.ts'

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] }))
afterEach(() => void vi.useRealTimers())

const { signal } = new AbortController()
const KB = 1_000
const turn = (): Promise<unknown> => vi.advanceTimersByTimeAsync(0)

/** Asks for turns and tells which were granted, in order. */
function sender(limit: UploadLimit): {
  granted: string[]
  ask: (
    name: string,
    bytes: number,
    priority?: Priority,
    until?: AbortSignal,
  ) => Promise<Disposable>
} {
  const granted: string[] = []
  const ask = async (
    name: string,
    bytes: number,
    priority: Priority = 'foreground',
    until = signal,
  ): Promise<Disposable> => {
    const given = await limit.turn(bytes, priority, until)
    granted.push(name)
    return given
  }
  return { granted, ask }
}

test('a second of bytes goes at once, and no more than the limit in the long run', async () => {
  const limit = new UploadLimit(100 * KB)
  const random = seeded(3)
  let sent = 0
  const startedMs = performance.now()
  for (let block = 0; block < 200; block++) {
    const bytes = 1 + random(30 * KB)
    const waiting = limit.turn(bytes, 'foreground', signal)
    await turn()
    while ((await Promise.race([waiting, Promise.resolve()])) === undefined) {
      await vi.advanceTimersToNextTimerAsync()
    }
    using _ = await waiting
    const allowed = 100 * KB * (1 + (performance.now() - startedMs) / 1000)
    // The bucket may be emptied by a block that is larger than what is left.
    expect(sent).toBeLessThanOrEqual(allowed)
    sent += bytes
  }
  const seconds = (performance.now() - startedMs) / 1000
  expect(sent / (100 * KB * seconds)).toBeGreaterThan(0.95)
})

test('those for whom a container waits go first, then prefetching, then what nobody waits for, each in the order they came', async () => {
  const { granted, ask } = sender(new UploadLimit(100 * KB))
  const first = await ask('first', 150 * KB)
  const asked = [
    ask('background', KB, 'background'),
    ask('prefetch', KB, 'prefetch'),
    ask('foreground 1', KB),
    ask('foreground 2', KB),
  ]
  await turn()
  expect(granted).toEqual(['first'])
  first[Symbol.dispose]()
  await vi.advanceTimersByTimeAsync(1_000)
  for (const waiting of asked) (await waiting)[Symbol.dispose]()
  expect(granted).toEqual(['first', 'foreground 1', 'foreground 2', 'prefetch', 'background'])
})

test('32 are sent at once, the next one goes when one of them is over', async () => {
  const { granted, ask } = sender(new UploadLimit(1_000 * KB))
  const turns = await Promise.all(Array.from({ length: 32 }, (_, at) => ask(`${at}`, 1)))
  const next = ask('next', 1)
  await vi.advanceTimersByTimeAsync(60_000)
  expect(granted).toHaveLength(32)
  turns[7]?.[Symbol.dispose]()
  turns[7]?.[Symbol.dispose]()
  const last = ask('last', 1)
  await next
  await turn()
  expect(granted.slice(32)).toEqual(['next'])
  turns[8]?.[Symbol.dispose]()
  await last
})

test('who would wait for more than two seconds is refused, but not for what ranks lower', async () => {
  const { ask } = sender(new UploadLimit(100 * KB))
  const running = [await ask('now', 110 * KB)]
  const waiting = [ask('1', 100 * KB, 'background'), ask('2', 100 * KB, 'background')]
  await turn()
  const failure = await failureOf(() => ask('late', 1, 'background'))
  expect(failure).toMatchObject({ name: 'BlockError', code: 'RESOURCE_EXHAUSTED' })
  expect(failure.message).toBe(
    'this node sends 100000 bytes a second at most, and 210000 wait ahead',
  )
  waiting.push(ask('urgent', 1))
  await vi.advanceTimersByTimeAsync(5_000)
  for (const given of [...running, ...(await Promise.all(waiting))]) given[Symbol.dispose]()
})

test('who leaves does not take a turn', async () => {
  const { granted, ask } = sender(new UploadLimit(100 * KB))
  await ask('now', 150 * KB)
  const leaver = new AbortController()
  const left = failureOf(() => ask('leaver', 50 * KB, 'foreground', leaver.signal))
  const stays = ask('stays', KB)
  leaver.abort(new Error('gone'))
  expect((await left).message).toBe('gone')
  await vi.advanceTimersByTimeAsync(501)
  await stays
  expect(granted).toEqual(['now', 'stays'])
})
