import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { AuthorizeServer } from '../../agent/authorize-server.ts'
import { LayerError } from '../../snapshotter/errors.ts'

const HOOK = join(import.meta.dirname, '../../agent/cli/bin/ipdr-authorize')
const state = (annotations: object): string =>
  JSON.stringify({
    ociVersion: '1.0.2',
    id: 'c1',
    status: 'creating',
    pid: 7,
    bundle: '/b',
    annotations,
  })
const OF_TEAM_A = state({ 'io.kubernetes.cri.sandbox-namespace': 'team-a' })

let dir: string
let authorizeSocket: string
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'authorize-'))
  authorizeSocket = join(dir, 'authorize.sock')
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

const listen = (
  authorize: (container: string, namespace: string) => Promise<void>,
): Promise<AuthorizeServer> =>
  AuthorizeServer.listen({ authorizeSocket }, { authorize, log: { warn: () => {} } })

/** Runs the hook as runc does: without an environment but its own PATH. */
async function hook(input: string, waitMs = 0): Promise<{ exitCode: unknown; stderr: string }> {
  const child = spawn(HOOK, [authorizeSocket, String(waitMs)], {
    env: { PATH: '/usr/local/bin:/usr/bin:/bin' },
    stdio: ['pipe', 'ignore', 'pipe'],
  })
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  child.stdin.on('error', () => {})
  child.stdin.end(input)
  const [exitCode] = (await once(child, 'close')) as [unknown]
  return { exitCode, stderr }
}

describe('the hook before a container starts', () => {
  test('lets it start if the agent allows it to this container and namespace', async () => {
    const asked: string[][] = []
    await using _server = await listen(async (...question) => void asked.push(question))
    expect(await hook(OF_TEAM_A)).toEqual({ exitCode: 0, stderr: '' })
    expect(asked).toEqual([['c1', 'team-a']])
  })

  test('stops it if the agent refuses, with its sentence', async () => {
    await using _server = await listen(() =>
      Promise.reject(new LayerError('PERMISSION_DENIED', 'pods of namespace team-a may not')),
    )
    expect(await hook(OF_TEAM_A)).toEqual({
      exitCode: 77,
      stderr: 'ipdr: pods of namespace team-a may not\n',
    })
  })

  test.each([
    ['names no namespace', state({}), /has no annotation io.kubernetes.cri.sandbox-namespace/],
    ['is no JSON', 'garbage', /the container's state is not JSON/],
    ['is empty', '', /the container's state is not JSON/],
    ['has no ID', '{}', /the container's state: id/],
    ['has two MiB', state({ x: 'x'.repeat(2 ** 21) }), /has more than 1048576 bytes/],
  ])('stops it if its state %s', async (_, input, reason) => {
    await using _server = await listen(() => Promise.resolve())
    const ended = await hook(input)
    expect(ended.stderr).toMatch(reason)
    expect(ended.exitCode).toBe(77)
  })

  test('stops it if there is no agent, and says what to start', async () => {
    const ended = await hook(OF_TEAM_A)
    expect(ended.exitCode).toBe(69)
    expect(ended.stderr).toMatch(/cannot be asked .* start it \(systemctl start ipdr-agent\)/)
  })

  test.each([
    ['nothing', ''],
    ['no JSON', 'allowed'],
    ['something else', '{"allowed":"true"}'],
    ['null', 'null'],
  ])('stops it if whoever listens there answers %s', async (_, answer) => {
    const server = createServer({ allowHalfOpen: true }, (socket) => socket.end(answer))
    server.listen(authorizeSocket)
    await once(server, 'listening')
    expect((await hook(OF_TEAM_A)).exitCode).toBe(69)
    server.close()
  })

  test('waits for an agent that is being started again', async () => {
    const ended = hook(OF_TEAM_A, 30_000)
    await using _server = await listen(() => Promise.resolve())
    expect((await ended).exitCode).toBe(0)
  })
})

test('only root may ask, a dead agent leaves nothing in the way, and a stopped one no socket', async () => {
  {
    await using _first = await listen(() => Promise.resolve())
    await using _second = await listen(() => Promise.resolve())
    expect(statSync(authorizeSocket).mode & 0o777).toBe(0o600)
    expect((await hook(OF_TEAM_A)).exitCode).toBe(0)
  }
  expect(() => statSync(authorizeSocket)).toThrow(/ENOENT/)
})
