import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { readKeyProviderConfig } from '../../../agent/keys/key-provider-config.ts'
import { failureOf } from '../../support/failure-of.ts'
import { Scratch } from '../../support/scratch.ts'

const scratch = Scratch.open('key-provider-config')
afterAll(() => scratch[Symbol.asyncDispose]())

let files = 0

function fileOf(content: unknown): string {
  const path = join(scratch.dir, `${files++}.conf`)
  writeFileSync(path, typeof content === 'string' ? content : JSON.stringify(content))
  return path
}

const read = (providers: unknown) => readKeyProviderConfig(fileOf({ 'key-providers': providers }))

test("ocicrypt's file is read: sockets, ports of this machine, programs", async () => {
  const places = await read({
    socket: { grpc: 'unix:///run/a.sock' },
    short: { grpc: 'unix:/run/a.sock' },
    name: { grpc: 'localhost:50051' },
    v4: { grpc: '127.0.0.1:50051' },
    v6: { grpc: '[::1]:50051' },
    program: { cmd: { path: '/usr/bin/wrap', args: ['-v'] } },
    bare: { cmd: { path: 'wrap' } },
    both: { cmd: { path: 'wrap', args: null }, grpc: 'localhost:1' },
  })
  expect(Object.fromEntries(places)).toEqual({
    socket: { kind: 'grpc', target: 'unix:/run/a.sock' },
    short: { kind: 'grpc', target: 'unix:/run/a.sock' },
    name: { kind: 'grpc', target: 'localhost:50051' },
    v4: { kind: 'grpc', target: '127.0.0.1:50051' },
    v6: { kind: 'grpc', target: '[::1]:50051' },
    program: { kind: 'cmd', path: '/usr/bin/wrap', args: ['-v'] },
    bare: { kind: 'cmd', path: 'wrap', args: [] },
    both: { kind: 'cmd', path: 'wrap', args: [] },
  })
})

test.each([
  '10.0.0.7:50051',
  'kms.example.org:443',
  'dns:///localhost:1',
  '127.0.0.1.example.org:1',
])('a provider at %s is not asked: keys would cross the network in plain text', async (grpc) => {
  const places = await read({ far: { grpc }, near: { grpc: 'localhost:1' } })
  expect(places.get('far')).toMatchObject({
    kind: 'unusable',
    because: expect.stringMatching(
      /would cross the network in plain text: reach it through a tunnel$/,
    ) as string,
  })
  expect(places.get('near')?.kind).toBe('grpc')
})

test('a provider that is reached in another way is known, and why it cannot be used', async () => {
  const places = await read({ tls: { 'grpc-tls': { address: 'a:1' } } })
  expect(places.get('tls')).toMatchObject({ kind: 'unusable', because: /neither 'grpc' nor 'cmd'/ })
})

test.each([
  ['no JSON', '{', 'INVALID_ARGUMENT', /is no configuration of key providers as ocicrypt has it/],
  ['another document', { a: 1 }, 'INVALID_ARGUMENT', /key-providers: /],
  ['a name with a colon', { 'key-providers': { 'a:b': {} } }, 'INVALID_ARGUMENT', /key-providers/],
  [
    'a program without a path',
    { 'key-providers': { a: { cmd: {} } } },
    'INVALID_ARGUMENT',
    /key-providers.a.cmd.path/,
  ],
  [
    '65 providers',
    { 'key-providers': Object.fromEntries(Array.from({ length: 65 }, (_, at) => [at, {}])) },
    'INVALID_ARGUMENT',
    /has 65 providers, 64 are read/,
  ],
  ['65537 bytes', ' '.repeat(65_537), 'RESOURCE_EXHAUSTED', /more than 65536 bytes/],
])('a file with %s is refused with the reason', async (_, content, code, reason) => {
  const failure = await failureOf(() => readKeyProviderConfig(fileOf(content)))
  expect(failure).toMatchObject({ code })
  expect(failure.message).toMatch(reason)
})

test('a file that is not there is refused by name', async () => {
  const path = join(scratch.dir, 'absent.conf')
  expect(await failureOf(() => readKeyProviderConfig(path))).toMatchObject({
    code: 'NOT_FOUND',
    message: expect.stringContaining(
      `the configuration of key providers ${path} cannot be read`,
    ) as string,
  })
})
