import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pino } from 'pino'
import { expect, onTestFinished, test } from 'vitest'
import { readConfig } from '../../agent/config.ts'
import { supervise } from '../../agent/supervisor.ts'
import { listMounts } from '../../snapshotter/kernel/mountinfo.ts'
import { failureOf } from '../support/failure-of.ts'
import { Scratch } from '../support/scratch.ts'

const deadlineMs = 60_000

function newConfig(): { path: string; scratch: Scratch } {
  const scratch = Scratch.open('supervisor')
  onTestFinished(() => scratch[Symbol.asyncDispose]())
  const path = join(scratch.dir, 'config.json')
  const free = { listen: '127.0.0.1:0' }
  writeFileSync(
    path,
    JSON.stringify({
      root: join(scratch.dir, 'root'),
      runDir: join(scratch.run, 'agent'),
      log: { level: 'error' },
      registry: free,
      monitoring: free,
    }),
  )
  return { path, scratch }
}

// Processes of it that die, and what becomes of mounts, are the matter of test/system/processes.test.ts.
test(
  'the service manager hears each time a worker is ready, and once that all of it stops',
  async () => {
    const { path, scratch } = newConfig()
    const stop = new AbortController()
    const heard: string[] = []
    const ready = Promise.withResolvers<void>()
    const notifier = {
      ready: () => {
        heard.push('ready')
        ready.resolve()
      },
      starting: () => {},
      alive: () => {},
      stopping: () => void heard.push('stopping'),
    }
    const log = pino({ level: 'silent' })
    const running = supervise(readConfig(path), path, stop.signal, { log, notifier })
    await ready.promise
    // The same process may hold the lock twice; another agent is another process, see hostile-images.test.ts.
    expect(listMounts(join(scratch.run, 'agent')).map(({ type }) => type)).toEqual(['fuse'])
    stop.abort()
    await running
    expect(heard).toEqual(['ready', 'stopping'])
    expect(listMounts(scratch.run)).toEqual([])
  },
  deadlineMs,
)

test(
  'without a FUSE device to mount it ends at once and says why',
  async () => {
    const { path } = newConfig()
    const config = { ...readConfig(path), runDir: join(path, 'no-folder') }
    const log = pino({ level: 'silent' })
    const { signal } = new AbortController()
    const failure = await failureOf(() => supervise(config, path, signal, { log }))
    expect(failure.message).toContain(join(path, 'no-folder'))
  },
  deadlineMs,
)
