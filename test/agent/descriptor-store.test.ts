import { Writable } from 'node:stream'
import pino from 'pino'
import { expect, test } from 'vitest'
import { type DescriptorStore, serviceDescriptorStore } from '../../agent/descriptor-store.ts'

const pid = 1234

/** The store that an environment brings, what is left of the environment, and what was logged. */
function open(env: NodeJS.ProcessEnv): {
  store: DescriptorStore
  left: NodeJS.ProcessEnv
  said: string
} {
  let said = ''
  const sink = new Writable({
    write(line: Buffer, _encoding, done) {
      said += (JSON.parse(line.toString()) as { msg: string }).msg
      done()
    },
  })
  const left = { ...env }
  const store = serviceDescriptorStore(left, { pid, log: pino(sink) })
  return { store, left, said }
}

const passed = { LISTEN_PID: String(pid), LISTEN_FDS: '2', LISTEN_FDNAMES: 'ipdr-fuse-0-57:web' }

test('descriptors come from number 3 on, by their names', () => {
  const { store, said } = open(passed)
  expect(store.held).toEqual([
    { name: 'ipdr-fuse-0-57', fd: 3 },
    { name: 'web', fd: 4 },
  ])
  expect(said).toBe('')
})

test('whoever is started next finds nothing of it in the environment', () => {
  expect(open({ ...passed, LISTEN_PIDFDID: '7', PATH: '/bin' }).left).toEqual({ PATH: '/bin' })
  expect(open({ ...passed, LISTEN_PID: '1' }).left).toEqual({})
})

test.each([
  ['was started without any', {}],
  ['was started by somebody for whom they were meant', { ...passed, LISTEN_PID: '1' }],
  ['is told of no process', { ...passed, LISTEN_PID: undefined }],
])('nothing is held, and nothing said, by one that %s', (_, env) => {
  const { store, said } = open(env)
  expect(store.held).toEqual([])
  expect(said).toBe('')
})

test.each([
  ['LISTEN_FDS', 'many', 'LISTEN_FDS is "many", not a number up to 64'],
  ['LISTEN_FDS', '-1', 'LISTEN_FDS is "-1", not a number up to 64'],
  ['LISTEN_FDS', '65', 'LISTEN_FDS is "65", not a number up to 64'],
  ['LISTEN_FDS', '9'.repeat(500), `LISTEN_FDS is "${'9'.repeat(100)}", not`],
  ['LISTEN_FDS', '3', 'LISTEN_FDNAMES is "ipdr-fuse-0-57:web", not 3 names'],
  ['LISTEN_FDNAMES', undefined, 'LISTEN_FDNAMES is "", not 2 names'],
  ['LISTEN_FDNAMES', 'a:', 'LISTEN_FDNAMES has "", which is no name'],
  ['LISTEN_FDNAMES', 'a:b\nc', 'LISTEN_FDNAMES has "b\\nc", which is no name'],
  ['LISTEN_FDNAMES', `a:${'b'.repeat(256)}`, `LISTEN_FDNAMES has "${'b'.repeat(100)}", which`],
])('%s=%j is refused as a whole, and the log says why', (name, value, why) => {
  const { store, said } = open({ ...passed, [name]: value })
  expect(store.held).toEqual([])
  expect(said).toContain(`nothing is taken back from the service manager: ${why}`)
})

test('a store that cannot be reached is logged, and the agent does without', () => {
  const socketPath = '/nonexistent/notify.sock'
  const { store } = open({ NOTIFY_SOCKET: socketPath })
  expect(() => store.keep({ name: 'ipdr-fuse-0-57', fd: 0 })).not.toThrow()
  expect(() => store.forget('ipdr-fuse-0-57')).not.toThrow()
})
