import { describe, expect, test } from 'vitest'
import { type FetchLimits, FetchQueue } from '../../../snapshotter/blobs/fetch-queue.ts'
import type { Priority } from '../../../snapshotter/block-source.ts'
import { seeded } from '../../support/seeded.ts'

const PRIORITIES = ['foreground', 'prefetch', 'background'] as const
const NEVER = new AbortController().signal
const LIMITS: FetchLimits = {
  total: 4,
  prefetch: 3,
  background: 1,
  waiting: 1_000,
  waitingForeground: 1_000,
  deadlineMs: { foreground: 60_000, prefetch: 60_000, background: 60_000 },
}

/** A queue whose tasks run until the test ends them, and the keys of those running, in the order they started. */
function observedQueue(limits: Partial<FetchLimits> = {}) {
  const queue = new FetchQueue<string>({ ...LIMITS, ...limits })
  const running = new Map<string, PromiseWithResolvers<string> & { signal: AbortSignal }>()
  const started: string[] = []
  const ask = (key: string, priority: Priority, signal: AbortSignal = NEVER): Promise<string> =>
    queue.run(
      key,
      priority,
      async (turn) => {
        const ending = { ...Promise.withResolvers<string>(), signal: turn.signal }
        started.push(key)
        running.set(key, ending)
        try {
          return await ending.promise
        } finally {
          running.delete(key)
        }
      },
      signal,
    )
  return { queue, running, started, ask }
}

/** Lets promises that are settled run what waits for them. */
const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

test('what several ask for runs once and all get its result', async () => {
  const { ask, running, started } = observedQueue()
  const answers = [ask('a', 'foreground'), ask('a', 'background'), ask('a', 'foreground')]
  await settled()
  running.get('a')?.resolve('bytes of a')
  expect(await Promise.all(answers)).toEqual(['bytes of a', 'bytes of a', 'bytes of a'])
  expect(started).toEqual(['a'])
})

test('a failure reaches all who ask, and the next asker starts anew', async () => {
  const { ask, running, started } = observedQueue()
  const answers = Promise.allSettled([ask('a', 'foreground'), ask('a', 'prefetch')])
  running.get('a')?.reject(new Error('no provider'))
  expect((await answers).map(({ status }) => status)).toEqual(['rejected', 'rejected'])
  const again = ask('a', 'foreground')
  running.get('a')?.resolve('found')
  expect(await again).toBe('found')
  expect(started).toEqual(['a', 'a'])
})

test('background and prefetch leave places free for the foreground', () => {
  const { ask, started, queue } = observedQueue()
  for (const name of ['b1', 'b2', 'b3']) void ask(name, 'background')
  for (const name of ['p1', 'p2', 'p3', 'p4']) void ask(name, 'prefetch')
  expect(started).toEqual(['b1', 'p1', 'p2'])
  void ask('f1', 'foreground')
  expect(started).toEqual(['b1', 'p1', 'p2', 'f1'])
  expect(queue.depth).toEqual({ foreground: 0, prefetch: 2, background: 2 })
})

test('a waiting background fetch that a page fault asks for goes before prefetches', async () => {
  const { ask, running, started } = observedQueue({ total: 1, prefetch: 1 })
  void ask('first', 'foreground')
  void ask('prefetch', 'prefetch')
  void ask('wanted', 'background')
  void ask('wanted', 'foreground')
  running.get('first')?.resolve('')
  await settled()
  expect(started).toEqual(['first', 'wanted'])
})

test('a fetch that runs is told when a page fault has come to wait for it, and only then', async () => {
  const { queue } = observedQueue()
  const told: AbortSignal[] = []
  const ask = (priority: Priority): Promise<string> =>
    queue.run(
      'a',
      priority,
      async ({ escalated }) => {
        told.push(escalated)
        await settled()
        return 'bytes'
      },
      NEVER,
    )
  const first = ask('background')
  const second = ask('prefetch')
  expect(told[0]?.aborted).toBe(false)
  const third = ask('foreground')
  expect(told[0]?.aborted).toBe(true)
  await Promise.all([first, second, third])
  expect(told).toHaveLength(1)
})

test('a fetch that does not come in time is DEADLINE_EXCEEDED, and its place is free', async () => {
  const { ask, running, started, queue } = observedQueue({
    total: 1,
    deadlineMs: { ...LIMITS.deadlineMs, foreground: 20 },
  })
  const late = ask('late', 'foreground')
  const aborted = running.get('late')?.signal
  await expect(late).rejects.toMatchObject({ name: 'BlockError', code: 'DEADLINE_EXCEEDED' })
  expect(aborted?.aborted).toBe(true)
  void ask('next', 'prefetch')
  expect(started).toEqual(['late', 'next'])
  expect(queue.running).toBe(1)
})

test('a key is not run again before its abandoned run has ended', async () => {
  const { ask, running, started } = observedQueue()
  const leaver = new AbortController()
  const left = ask('a', 'foreground', leaver.signal)
  leaver.abort()
  await expect(left).rejects.toMatchObject({ code: 'CANCELLED' })
  const again = ask('a', 'foreground')
  await settled()
  expect(started).toEqual(['a'])
  running.get('a')?.reject(new Error('left'))
  await settled()
  expect(started).toEqual(['a', 'a'])
  running.get('a')?.resolve('second')
  expect(await again).toBe('second')
})

test('a fetch goes on while one of its askers stays', async () => {
  const { ask, running } = observedQueue()
  const leaver = new AbortController()
  const left = ask('a', 'foreground', leaver.signal)
  const stays = ask('a', 'prefetch')
  leaver.abort()
  await expect(left).rejects.toMatchObject({ code: 'CANCELLED' })
  running.get('a')?.resolve('here')
  expect(await stays).toBe('here')
})

describe('when too many wait', () => {
  const full = { total: 1, prefetch: 1, waiting: 2, waitingForeground: 3 }

  test('background and prefetch are refused, the foreground is not', async () => {
    const { ask } = observedQueue(full)
    for (const name of ['running', 'w1', 'w2']) void ask(name, 'prefetch')
    await expect(ask('more', 'background')).rejects.toMatchObject({ code: 'RESOURCE_EXHAUSTED' })
    await expect(ask('more', 'prefetch')).rejects.toMatchObject({ code: 'RESOURCE_EXHAUSTED' })
    void ask('fault', 'foreground')
  })

  test('the foreground is refused at a limit of its own', async () => {
    const { ask } = observedQueue(full)
    for (const name of ['running', 'w1', 'w2', 'w3']) void ask(name, 'foreground')
    await expect(ask('w4', 'foreground')).rejects.toMatchObject({ code: 'RESOURCE_EXHAUSTED' })
  })
})

// Goal: turns are taken as promised, whatever comes and goes. Method: beside the queue, a plain list of what is asked
// for; after every random step both must have the same keys running and the same number waiting.
test('turns are those of a plain model over 3,000 random steps', async () => {
  const random = seeded(11)
  const { ask, running, queue } = observedQueue()
  type Asked = {
    key: string
    rank: number
    turn: number
    running: boolean
    leavers: AbortController[]
  }
  let model: Asked[] = []
  let turn = 0
  const startModel = (): void => {
    for (;;) {
      const busy = model.filter((asked) => asked.running)
      const allowed = (rank: number): boolean =>
        busy.length < 4 &&
        (rank === 0 || busy.filter((asked) => asked.rank > 0).length < 3) &&
        (rank < 2 || busy.filter((asked) => asked.rank === 2).length < 1)
      const next = model
        .filter((asked) => !asked.running && allowed(asked.rank))
        .toSorted((a, b) => a.rank - b.rank || a.turn - b.turn)[0]
      if (next === undefined) return
      next.running = true
    }
  }
  for (let step = 0; step < 3_000; step++) {
    const action = random(10)
    if (action < 5) {
      const [key, rank, leaver] = [`k${random(30)}`, random(3), new AbortController()]
      ask(key, PRIORITIES[rank] ?? 'background', leaver.signal).catch(() => undefined)
      const known = model.find((asked) => asked.key === key)
      if (known === undefined)
        model.push({ key, rank, turn: turn++, running: false, leavers: [leaver] })
      else {
        if (rank < known.rank) Object.assign(known, { rank, turn: turn++ })
        known.leavers.push(leaver)
      }
    } else if (action < 9) {
      const busy = model.filter((asked) => asked.running)
      const done = busy[random(busy.length)]
      if (done === undefined) continue
      running.get(done.key)?.resolve('')
      model = model.filter((asked) => asked !== done)
    } else {
      const waiting = model.filter((asked) => !asked.running)
      const left = waiting[random(waiting.length)]
      if (left === undefined) continue
      for (const leaver of left.leavers) leaver.abort()
      model = model.filter((asked) => asked !== left)
    }
    startModel()
    await settled()
    const busy = model.filter((asked) => asked.running).map(({ key }) => key)
    expect([...running.keys()].toSorted(), `step ${step}`).toEqual(busy.toSorted())
    const { foreground, prefetch, background } = queue.depth
    expect(foreground + prefetch + background, `step ${step}`).toBe(model.length - busy.length)
  }
})
