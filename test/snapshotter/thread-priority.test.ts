import { once } from 'node:events'
import { getPriority } from 'node:os'
import { Worker } from 'node:worker_threads'
import { expect, test } from 'vitest'

const MODULE = new URL('../../snapshotter/thread-priority.ts', import.meta.url).href

test('a thread that takes precedence has it with the threads that it starts, until one gives it back, and no other thread has', async () => {
  const before = getPriority(0)
  expect(before).toBeGreaterThanOrEqual(0)
  const child = `
    const { parentPort } = require('node:worker_threads')
    const { getPriority } = require('node:os')
    const inherited = getPriority(0)
    import('${MODULE}').then(({ givePrecedence }) => {
      givePrecedence()
      parentPort.postMessage({ inherited, given: getPriority(0) })
    })`
  const thread = new Worker(
    `
    const { Worker, parentPort } = require('node:worker_threads')
    const { getPriority } = require('node:os')
    import('${MODULE}').then(({ takePrecedence }) => {
      const isTaken = takePrecedence()
      const child = new Worker(${JSON.stringify(child)}, { eval: true })
      child.once('message', (below) => parentPort.postMessage({ isTaken, own: getPriority(0), below }))
    })`,
    { eval: true },
  )
  const [told] = await once(thread, 'message')
  await thread.terminate()
  expect(told).toEqual({ isTaken: true, own: -10, below: { inherited: -10, given: 0 } })
  expect(getPriority(0)).toBe(before)
})
