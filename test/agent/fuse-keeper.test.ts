import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  existsSync,
  fstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import type { NamedDescriptor } from '../../agent/descriptor-store.ts'
import {
  closeFuseConnection,
  type FuseConnection,
  openFuseConnection,
} from '../../agent/fuse-keeper.ts'
import { createLogger } from '../../agent/logger.ts'
import { isMounted, listMounts } from '../../snapshotter/kernel/mountinfo.ts'
import { ControlGroup } from '../support/control-group.ts'
import { Scratch } from '../support/scratch.ts'

const log = createLogger({ level: 'error', format: 'json' }, 'test')

type Place = Parameters<typeof openFuseConnection>[0]

function newPlace(): Place {
  const scratch = Scratch.open('keeper')
  const place = {
    fuseDir: join(scratch.run, 'files'),
    lazyMountsDir: join(scratch.dir, 'm'),
    recordPath: join(scratch.run, 'keeper.json'),
  }
  mkdirSync(place.lazyMountsDir)
  onTestFinished(async () => {
    closeFuseConnection(place)
    await scratch[Symbol.asyncDispose]()
  })
  return place
}

function open(place: Place): FuseConnection {
  const connection = openFuseConnection(place, { log, onLost: () => {} })
  onTestFinished(() => closeSync(connection.fd))
  return connection
}

/** Field 3 of proc_pid_stat(5). */
function hasEnded(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    return stat.charAt(stat.lastIndexOf(')') + 2) === 'Z'
  } catch {
    return true
  }
}

test('the first agent makes the connection, the next ones take it over', () => {
  const place = newPlace()
  const first = open(place)
  expect(first.adopted).toBe(false)
  expect(isMounted(place.fuseDir)).toBe(true)
  expect(hasEnded(first.keeperPid)).toBe(false)
  for (let agent = 0; agent < 3; agent++) {
    expect(open(place)).toMatchObject({ adopted: true, keeperPid: first.keeperPid })
  }
})

test('closing unmounts and ends the keeper, and twice is harmless', async () => {
  const place = newPlace()
  const { keeperPid } = open(place)
  closeFuseConnection(place)
  expect(isMounted(place.fuseDir)).toBe(false)
  expect(existsSync(place.recordPath)).toBe(false)
  await expect.poll(() => hasEnded(keeperPid)).toBe(true)
  closeFuseConnection(place)
})

test.each(['not JSON', '{"pid":1}', '{"pid":-1,"startTicks":"1"}', ''])(
  'a record that reads %j is not believed: the connection is made anew',
  (record) => {
    const place = newPlace()
    writeFileSync(place.recordPath, record)
    expect(open(place)).toMatchObject({ adopted: false })
  },
)

test('a process that got the number of a dead keeper is left alone', async () => {
  const place = newPlace()
  const stranger = spawn('sleep', ['60'])
  onTestFinished(() => void stranger.kill('SIGKILL'))
  await once(stranger, 'spawn')
  writeFileSync(place.recordPath, JSON.stringify({ pid: stranger.pid, startTicks: '1' }))
  expect(open(place)).toMatchObject({ adopted: false })
  expect(hasEnded(stranger.pid ?? 0)).toBe(false)
})

test('a keeper that was killed, and that nobody collected, is replaced', async () => {
  const place = newPlace()
  const first = open(place)
  process.kill(first.keeperPid, 'SIGKILL')
  await expect.poll(() => hasEnded(first.keeperPid)).toBe(true)
  const second = open(place)
  expect(second.adopted).toBe(false)
  expect(second.keeperPid).not.toBe(first.keeperPid)
})

test('a keeper that gets a control group is in it alone, in every hierarchy, and so outlives those that we are in', () => {
  const place = newPlace()
  const parent = `/ipdr-test-keeper-${process.pid}`
  const keeperGroup = `${parent}/keeper`
  onTestFinished(() => new ControlGroup(parent).end())
  const { keeperPid } = open({ ...place, keeperGroup })
  const lines = readFileSync(`/proc/${keeperPid}/cgroup`, 'utf8').trim().split('\n')
  expect(lines.length).toBeGreaterThan(0)
  for (const line of lines) expect(line.split(':').at(-1)).toBe(keeperGroup)
  expect(new ControlGroup(parent).pids()).toEqual([keeperPid])
  expect(open({ ...place, keeperGroup })).toMatchObject({ adopted: true, keeperPid })
})

test('a keeper whose control group cannot be made is a keeper all the same', () => {
  const place = newPlace()
  const { keeperPid } = open({ ...place, keeperGroup: '/cgroup.procs/keeper' })
  expect(hasEnded(keeperPid)).toBe(false)
  expect(open(place)).toMatchObject({ adopted: true, keeperPid })
})

test('a mount that is replaced is forgotten by the store, also by one that handed nothing over', async () => {
  const place = newPlace()
  const first = open(place)
  const device = listMounts(place.fuseDir).at(-1)?.device.replace(':', '-')
  process.kill(first.keeperPid, 'SIGKILL')
  await expect.poll(() => hasEnded(first.keeperPid)).toBe(true)
  const told: string[] = []
  const store = {
    held: [],
    keep: ({ name }: NamedDescriptor) => void told.push(`keep ${name}`),
    forget: (name: string) => void told.push(`forget ${name}`),
  }
  const { fd } = openFuseConnection(place, { log, onLost: () => {}, store })
  onTestFinished(() => closeSync(fd))
  expect(told[0]).toBe(`forget ipdr-fuse-${device}`)
  expect(told[1]).toMatch(/^keep ipdr-fuse-0-\d+$/)
  expect(told).toHaveLength(2)
})

test('a descriptor that is handed over by a name of ours, and is none of /dev/fuse, stays as it is', () => {
  const place = newPlace()
  const other = openSync('/dev/null', 'r')
  onTestFinished(() => closeSync(other))
  const forgotten: string[] = []
  const store = {
    held: [
      { name: 'ipdr-fuse-0-1', fd: other },
      { name: 'ipdr-fuse-0-2', fd: 9_999 },
      { name: 'web', fd: 9_998 },
    ],
    keep() {},
    forget: (name: string) => void forgotten.push(name),
  }
  const { fd, adopted } = openFuseConnection(place, { log, onLost: () => {}, store })
  onTestFinished(() => closeSync(fd))
  expect(adopted).toBe(false)
  expect(forgotten).toEqual(['ipdr-fuse-0-1', 'ipdr-fuse-0-2'])
  expect(() => fstatSync(other)).not.toThrow()
})
