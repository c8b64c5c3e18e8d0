import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { status } from '@grpc/grpc-js'
import { pino } from 'pino'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import {
  GrpcServer,
  type GrpcServerCollaborators,
  type GrpcServerConfig,
} from '../../agent/grpc-server.ts'
import { connect, type ServiceClient } from '../../proto/client.ts'
import { implement, type Methods } from '../../proto/contract.ts'
import { snapshotsContract } from '../../proto/load.ts'
import type {
  SnapshotsDefinition,
  SnapshotsHandlers,
} from '../../proto/types/containerd/services/snapshots/v1/Snapshots.ts'
import { SnapshotError } from '../../snapshotter/errors.ts'

const call = { signal: new AbortController().signal }
const contract = snapshotsContract()

let dir = ''
let socketPath = ''
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'grpc-'))
  socketPath = join(dir, 'run/agent.sock')
})
afterEach(() => {
  rmSync(dir, { recursive: true })
})

async function listen(
  methods: Partial<Methods<SnapshotsHandlers>>,
  options: Partial<GrpcServerCollaborators> & Partial<GrpcServerConfig> = {},
): Promise<GrpcServer> {
  const { closeGraceMs = 5_000, ...collaborators } = options
  const service = implement(contract, methods as Methods<SnapshotsHandlers>)
  return await GrpcServer.listen({ socketPath, closeGraceMs }, [service], {
    log: pino({ level: 'silent' }),
    signal: call.signal,
    ...collaborators,
  })
}

function dial(): ServiceClient<SnapshotsDefinition, SnapshotsHandlers> {
  return connect(contract, socketPath)
}

describe('the socket', () => {
  test('is made with its directory, for its owner only, and is gone after close', async () => {
    {
      await using _server = await listen({})
      expect(statSync(socketPath).mode & 0o777).toBe(0o600)
      expect(readdirSync(join(dir, 'run'))).toEqual(['agent.sock'])
    }
    expect(existsSync(socketPath)).toBe(false)
  })

  test('takes the place of one that a killed process left', async () => {
    const program = `require('net').createServer().listen(${JSON.stringify(join(dir, 'stale'))}, () => console.log('up'))`
    const child = spawn(process.execPath, ['-e', program], { stdio: ['ignore', 'pipe', 'inherit'] })
    await once(child.stdout, 'data')
    child.kill('SIGKILL')
    await once(child, 'exit')
    socketPath = join(dir, 'stale')
    await using _server = await listen({ Cleanup: async () => ({}) })
    using client = dial()
    expect(await client.calls.Cleanup({}, call)).toEqual({})
  })

  test('is refused while another server answers on it, which goes on undisturbed', async () => {
    await using _server = await listen({ Cleanup: async () => ({}) })
    await expect(listen({})).rejects.toMatchObject({
      code: 'FAILED_PRECONDITION',
      message: expect.stringContaining(`${socketPath} is in use`),
    })
    using client = dial()
    expect(await client.calls.Cleanup({}, call)).toEqual({})
  })

  test('is refused where another file is, and where its path is too long', async () => {
    socketPath = join(dir, 'file')
    writeFileSync(socketPath, 'mine')
    await expect(listen({})).rejects.toMatchObject({ code: 'FAILED_PRECONDITION' })
    socketPath = join(dir, 'x'.repeat(100))
    await expect(listen({})).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect(readdirSync(dir)).toEqual(['file'])
  })
})

describe('failures', () => {
  const full = Object.assign(new Error('ENOSPC: no space left'), { code: 'ENOSPC' })
  test.each([
    [new SnapshotError('NOT_FOUND', 'snapshot x does not exist'), status.NOT_FOUND],
    [new SnapshotError('ALREADY_EXISTS', 'snapshot x already exists'), status.ALREADY_EXISTS],
    [new SnapshotError('FAILED_PRECONDITION', 'no'), status.FAILED_PRECONDITION],
    [new SnapshotError('DATA_LOSS', 'ü lost'), status.DATA_LOSS],
    [full, status.RESOURCE_EXHAUSTED],
    [new DOMException('late', 'TimeoutError'), status.DEADLINE_EXCEEDED],
    [new Error('a bug'), status.UNKNOWN],
  ])('%s has its status and its sentence on the wire', async (failure, code) => {
    await using _server = await listen({
      Stat: () => Promise.reject(failure),
      List: async function* () {
        yield { info: [] }
        throw failure
      },
    })
    using client = dial()
    const expected = { code, details: failure.message }
    await expect(client.calls.Stat({ key: 'x' }, call)).rejects.toMatchObject(expected)
    const received: unknown[] = []
    const read = async (): Promise<void> => {
      for await (const message of client.calls.List({}, call)) received.push(message)
    }
    await expect(read()).rejects.toMatchObject(expected)
    expect(received).toHaveLength(1)
  })

  test('a method that the service does not have is UNIMPLEMENTED', async () => {
    await using _server = await listen({})
    using client = dial()
    await expect(client.calls.Cleanup({}, call)).rejects.toMatchObject({
      code: status.UNIMPLEMENTED,
    })
  })

  test('an endless sentence is cut', async () => {
    const error = new SnapshotError('NOT_FOUND', 'x'.repeat(100_000))
    await using _server = await listen({ Stat: () => Promise.reject(error) })
    using client = dial()
    await expect(client.calls.Stat({ key: 'x' }, call)).rejects.toMatchObject({
      details: 'x'.repeat(2_048),
    })
  })
})

describe('calls', () => {
  test('every one is told to onCall with its method, status and time', async () => {
    const told: [string, string, number][] = []
    await using _server = await listen(
      { Cleanup: async () => ({}), Stat: () => Promise.reject(new Error('a bug')) },
      { onCall: (method, name, durationMs) => told.push([method, name, durationMs]) },
    )
    using client = dial()
    await client.calls.Cleanup({}, call)
    await client.calls.Stat({}, call).catch(() => undefined)
    const service = 'containerd.services.snapshots.v1.Snapshots'
    expect(told).toEqual([
      [`${service}/Cleanup`, 'OK', expect.any(Number)],
      [`${service}/Stat`, 'UNKNOWN', expect.any(Number)],
    ])
  })

  test('a caller that cancels aborts the signal of the method', async () => {
    const begun = Promise.withResolvers<void>()
    const aborted = Promise.withResolvers<unknown>()
    await using _server = await listen({
      Prepare: async (_request, { signal }) => {
        begun.resolve()
        await once(signal, 'abort')
        aborted.resolve(signal.reason)
        signal.throwIfAborted()
        return {}
      },
    })
    using client = dial()
    const caller = new AbortController()
    const answer = client.calls.Prepare({ key: 'k' }, { signal: caller.signal })
    await begun.promise
    caller.abort()
    await expect(answer).rejects.toMatchObject({ code: status.CANCELLED })
    expect(await aborted.promise).toMatchObject({ code: 'CANCELLED' })
  })

  test('a message of almost 16 MiB passes both ways', async () => {
    const labels = Object.fromEntries(
      Array.from({ length: 4_000 }, (_, index) => [`label-${index}`, 'x'.repeat(4_000)]),
    )
    await using _server = await listen({
      Update: async ({ info }) => ({ info }),
    })
    using client = dial()
    const { info } = await client.calls.Update({ info: { name: 'n', labels } }, call)
    expect(Object.keys(info?.labels ?? {})).toHaveLength(4_000)
  })

  test('a stream waits for a slow reader instead of filling memory', async () => {
    let sent = 0
    await using _server = await listen({
      async *List() {
        for (; sent < 1_000; sent++) yield { info: [{ name: 'x'.repeat(100_000) }] }
      },
    })
    using client = dial()
    let received = 0
    let ahead = 0
    for await (const _message of client.calls.List({}, call)) {
      received += 1
      ahead = Math.max(ahead, sent - received)
    }
    expect(received).toBe(1_000)
    expect(ahead).toBeLessThan(200)
  })
})

describe('close', () => {
  test('waits for calls under way and answers them', async () => {
    const begun = Promise.withResolvers<void>()
    const go = Promise.withResolvers<void>()
    const server = await listen({
      Cleanup: async () => {
        begun.resolve()
        await go.promise
        return {}
      },
    })
    using client = dial()
    const answer = client.calls.Cleanup({}, call)
    await begun.promise
    const closed = server[Symbol.asyncDispose]()
    go.resolve()
    expect(await answer).toEqual({})
    await closed
    await server[Symbol.asyncDispose]()
  })

  test('cancels calls that do not end in time', async () => {
    const begun = Promise.withResolvers<void>()
    const server = await listen(
      {
        Cleanup: async (_request, { signal }) => {
          begun.resolve()
          await once(signal, 'abort')
          signal.throwIfAborted()
          return {}
        },
      },
      { closeGraceMs: 10 },
    )
    using client = dial()
    const answer = client.calls.Cleanup({}, call).catch((error: unknown) => error)
    await begun.promise
    await server[Symbol.asyncDispose]()
    expect(await answer).toMatchObject({ code: status.UNAVAILABLE })
  })
})
