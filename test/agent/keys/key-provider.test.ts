import { createPublicKey, generateKeyPairSync, type KeyObject, randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, describe, expect, onTestFinished, test } from 'vitest'
import { GrpcServer } from '../../../agent/grpc-server.ts'
import { KeyDirectory } from '../../../agent/keys/key-directory.ts'
import { KeyProviderClient } from '../../../agent/keys/key-provider-client.ts'
import type { KeyProviderPlace } from '../../../agent/keys/key-provider-config.ts'
import { keyProviderService } from '../../../agent/keys/key-provider-service.ts'
import { connect } from '../../../proto/client.ts'
import { implement, type Service } from '../../../proto/contract.ts'
import { agentContract, keyProviderContract } from '../../../proto/load.ts'
import { decryptJwe } from '../../../snapshotter/encryption/jwe.ts'
import {
  KEY_PROVIDER_MESSAGE_BYTES_MAX,
  parseUnwrapInput,
  parseUnwrapOutput,
  parseWrapInput,
  parseWrapOutput,
  unwrapInput,
  unwrapOutput,
  wrapInput,
  wrapOutput,
} from '../../../snapshotter/encryption/key-provider-protocol.ts'
import { KeyUnwrappers } from '../../../snapshotter/encryption/key-unwrappers.ts'
import type { WrappedKey } from '../../../snapshotter/encryption/layer-encryption.ts'
import { PrivateKeys } from '../../../snapshotter/encryption/private-keys.ts'
import { CodedError, LayerError } from '../../../snapshotter/errors.ts'
import { freePort } from '../../support/agent.ts'
import { failureOf } from '../../support/failure-of.ts'
import { Scratch } from '../../support/scratch.ts'
import { seeded } from '../../support/seeded.ts'

const scratch = Scratch.open('key-provider')
afterAll(() => scratch[Symbol.asyncDispose]())

const { signal } = new AbortController()
const LAYER = 'sha256:1'
const SECRET = randomBytes(32).toString('base64')
const OPTIONS = Buffer.from(JSON.stringify({ symkey: SECRET }))

const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey
const pem = (key: KeyObject): string => key.export({ type: 'pkcs8', format: 'pem' }).toString()

let sockets = 0

async function serve(...services: Service[]): Promise<{ socketPath: string; log: string[] }> {
  const socketPath = join(scratch.run, `${sockets++}.sock`)
  const log: string[] = []
  const write = (facts: unknown, sentence?: string): void =>
    void log.push(JSON.stringify([facts, sentence]))
  const server = await GrpcServer.listen(
    { socketPath, closeGraceMs: 0, messageBytesMax: KEY_PROVIDER_MESSAGE_BYTES_MAX },
    services,
    { log: { debug: write, warn: write, error: write }, signal },
  )
  onTestFinished(() => server[Symbol.asyncDispose]())
  return { socketPath, log }
}

/** This agent's own provider over a directory with `alice.pem` (EC) and `bob.jwk` (RSA), which also wraps for `carol`. */
async function ownProvider(): Promise<{ socketPath: string; log: string[]; carol: KeyObject }> {
  const dir = join(scratch.dir, `keys-${sockets}`)
  mkdirSync(dir)
  writeFileSync(join(dir, 'alice.pem'), pem(ec), { mode: 0o600 })
  writeFileSync(join(dir, 'bob.jwk'), JSON.stringify(rsa.export({ format: 'jwk' })), {
    mode: 0o600,
  })
  const carol = generateKeyPairSync('ec', { namedCurve: 'P-384' }).privateKey
  const carolPath = join(dir, 'carol.pub.pem')
  writeFileSync(carolPath, createPublicKey(carol).export({ type: 'spki', format: 'pem' }))
  const keys = new KeyDirectory(dir, { log: { warn: () => undefined } })
  const service = keyProviderService({ wrapKeys: { carol: carolPath } }, { keys })
  return { ...(await serve(service)), carol }
}

const clientOf = (place: KeyProviderPlace, deadlineMs?: number): KeyProviderClient =>
  new KeyProviderClient(new Map([['ipdr', place]]), deadlineMs === undefined ? {} : { deadlineMs })
const atSocket = (socketPath: string): KeyProviderPlace => ({
  kind: 'grpc',
  target: `unix:${socketPath}`,
})
const wrapped = (bytes: Uint8Array): WrappedKey => ({ kind: 'provider', provider: 'ipdr', bytes })

/** A provider that is a program of Node: `source` is run with `input`, the parsed request, and writes its answer. */
function program(source: string): KeyProviderPlace {
  const path = join(scratch.dir, `provider-${sockets++}.mjs`)
  writeFileSync(
    path,
    `import { readFileSync } from 'node:fs'\nconst input = readFileSync(0)\n${source}`,
  )
  return { kind: 'cmd', path: process.execPath, args: [path] }
}

describe('the key provider of this agent', () => {
  test.each([
    ['alice', ec],
    ['alice.pem', ec],
    ['bob', rsa],
  ])('wraps for the key %s of its directory, and unwraps', async (name, key) => {
    const { socketPath } = await ownProvider()
    const client = clientOf(atSocket(socketPath))
    const { bytes, ...kind } = await client.recipient('ipdr', name).wrap(OPTIONS, signal)
    expect(kind).toEqual({ kind: 'provider', provider: 'ipdr' })
    expect(Buffer.from((await decryptJwe(bytes, key, '')) ?? [])).toEqual(OPTIONS)
    expect(Buffer.from((await client.unwrap(wrapped(bytes), LAYER, signal)) ?? [])).toEqual(OPTIONS)
  })

  test('wraps for a public key of its configuration, which it cannot unwrap itself', async () => {
    const { socketPath, carol } = await ownProvider()
    const client = clientOf(atSocket(socketPath))
    const { bytes } = await client.recipient('ipdr', 'carol').wrap(OPTIONS, signal)
    expect(Buffer.from((await decryptJwe(bytes, carol, '')) ?? [])).toEqual(OPTIONS)
    const failure = await failureOf(() => client.unwrap(wrapped(bytes), LAYER, signal))
    expect(failure).toMatchObject({ name: 'LayerError', code: 'PERMISSION_DENIED' })
  })

  test('wraps for several recipients in one answer, as ocicrypt asks for them', async () => {
    const { socketPath, carol } = await ownProvider()
    using client = connect(keyProviderContract(), socketPath)
    const json = Buffer.from(
      wrapInput('ipdr', { parameters: ['alice', 'bob', 'carol'], options: OPTIONS }),
    )
    const answer = await client.calls.WrapKey({ json }, { signal })
    const bytes = parseWrapOutput(answer.json) ?? Buffer.alloc(0)
    for (const key of [ec, rsa, carol]) {
      expect(Buffer.from((await decryptJwe(bytes, key, '')) ?? [])).toEqual(OPTIONS)
    }
  })

  test('is for its owner alone', async () => {
    const { socketPath } = await ownProvider()
    expect((statSync(socketPath).mode & 0o777).toString(8)).toBe('600')
  })

  test.each([
    [
      'a key that it does not have',
      wrapInput('ipdr', { parameters: ['mallory'], options: OPTIONS }),
      5,
      /has no key "mallory" to wrap for; it has carol, alice, bob$/,
    ],
    [
      'no key',
      wrapInput('ipdr', { parameters: [], options: OPTIONS }),
      3,
      /name each as provider:ipdr:<key>/,
    ],
    [
      'a name of Object.prototype',
      wrapInput('ipdr', { parameters: ['constructor'], options: OPTIONS }),
      5,
      /has no key "constructor"/,
    ],
    [
      '65 keys',
      wrapInput('ipdr', {
        parameters: Array.from({ length: 65 }, () => 'alice'),
        options: OPTIONS,
      }),
      3,
      /1 to 64 recipients, not 65/,
    ],
    [
      'another provider',
      wrapInput('vault', { parameters: ['alice'], options: OPTIONS }),
      3,
      /not 0/,
    ],
    [
      'options of 4097 bytes',
      wrapInput('ipdr', { parameters: ['alice'], options: Buffer.alloc(5000) }),
      3,
      /request to wrap is not/,
    ],
    ['something else', unwrapInput(OPTIONS), 3, /request to wrap is not/],
  ])(
    'refuses to wrap for %s, with a sentence and without the key',
    async (_, json, code, reason) => {
      const { socketPath, log } = await ownProvider()
      using client = connect(keyProviderContract(), socketPath)
      const call = client.calls.WrapKey({ json: Buffer.from(json) }, { signal })
      await expect(call).rejects.toMatchObject({
        code,
        details: expect.stringMatching(reason) as string,
      })
      expect(log.join()).not.toContain(SECRET)
      expect(log).toHaveLength(1)
    },
  )

  test('refuses to unwrap what is for others, no JWE, or too long', async () => {
    const { socketPath } = await ownProvider()
    using client = connect(keyProviderContract(), socketPath)
    const ask = (json: Uint8Array) =>
      client.calls.UnWrapKey({ json: Buffer.from(json) }, { signal })
    await expect(ask(unwrapInput(Buffer.from('garbage')))).rejects.toMatchObject({ code: 3 })
    await expect(ask(Buffer.from('{"op":"keyunwrap"'))).rejects.toMatchObject({
      code: 3,
      details: expect.stringMatching(/request to unwrap is not/) as string,
    })
    await expect(ask(Buffer.alloc(KEY_PROVIDER_MESSAGE_BYTES_MAX + 1))).rejects.toMatchObject({
      code: 8,
    })
  })
})

describe('a key provider that is a program', () => {
  test('gets the request on its standard input and nothing in its arguments, and answers', async () => {
    const seen = join(scratch.dir, 'seen')
    const place = program(`
      import { writeFileSync } from 'node:fs'
      writeFileSync(${JSON.stringify(seen)}, JSON.stringify([process.argv.slice(2), String(readFileSync('/proc/self/cmdline')), String(input)]))
      const { op, keywrapparams, keyunwrapparams } = JSON.parse(input)
      if (op === 'keywrap') {
        const [parameter] = keywrapparams.ec.Parameters.ipdr
        const annotation = Buffer.from(parameter + '.' + keywrapparams.optsdata).toString('base64')
        console.log(JSON.stringify({ keywrapresults: { annotation } }))
      } else {
        const optsdata = String(Buffer.from(keyunwrapparams.annotation, 'base64')).split('.')[1]
        console.log(JSON.stringify({ keyunwrapresults: { optsdata } }))
      }`)
    const client = clientOf(place)
    const { bytes } = await client.recipient('ipdr', 'a:b').wrap(OPTIONS, signal)
    expect(String(bytes).startsWith(Buffer.from('a:b').toString('base64'))).toBe(true)
    const [args, commandLine, input] = JSON.parse(readFileSync(seen, 'utf8')) as [
      string[],
      string,
      string,
    ]
    expect(args).toEqual([])
    expect(commandLine).not.toContain(SECRET)
    expect(input).toContain(OPTIONS.toString('base64'))
    expect(Buffer.from((await client.unwrap(wrapped(bytes), LAYER, signal)) ?? [])).toEqual(OPTIONS)
  })

  test.each([
    [
      'is not there',
      { kind: 'cmd', path: '/nowhere/provider', args: [] } as const,
      'UNAVAILABLE',
      /cannot be asked: .*ENOENT.*install its program/,
    ],
    [
      'fails',
      program('process.exit(3)'),
      'PERMISSION_DENIED',
      /refused: .* ended with exit code 3; run it by hand/,
    ],
    [
      'dies',
      program('process.kill(process.pid, "SIGKILL")'),
      'PERMISSION_DENIED',
      /ended with a signal/,
    ],
    ['says nothing', program(''), 'FAILED_PRECONDITION', /did not answer with \{keyunwrapresults/],
    [
      'answers with garbage',
      program('console.log("{]")'),
      'FAILED_PRECONDITION',
      /did not answer with/,
    ],
    [
      'is cut off',
      program(
        'process.stdout.write(JSON.stringify({keyunwrapresults:{optsdata:"AAAA"}}).slice(0,-3))',
      ),
      'FAILED_PRECONDITION',
      /did not answer with/,
    ],
    [
      'answers without end',
      program('const more = () => process.stdout.write("x".repeat(65536), more); more()'),
      'RESOURCE_EXHAUSTED',
      /answered with more than 262144 bytes/,
    ],
  ] as const)('that %s is a typed failure with the next step', async (_, place, code, reason) => {
    const failure = await failureOf(() => clientOf(place).unwrap(wrapped(OPTIONS), LAYER, signal))
    expect(failure).toMatchObject({ name: 'LayerError', code })
    expect(failure.message).toMatch(reason)
    expect(failure.message).toContain(`key provider ipdr, asked for the key of layer ${LAYER},`)
    expect(failure.message).not.toContain(SECRET)
  })

  test('that stalls is ended with all that it started, and said to be late', async () => {
    const pids = join(scratch.dir, 'pids')
    const place = program(`
      import { spawn } from 'node:child_process'
      import { writeFileSync } from 'node:fs'
      const child = spawn('sleep', ['1000'], { stdio: 'inherit' })
      writeFileSync(${JSON.stringify(pids)}, process.pid + ' ' + child.pid)
      setInterval(() => {}, 1000)`)
    const stop = new AbortController()
    const asked = failureOf(() => clientOf(place).unwrap(wrapped(OPTIONS), LAYER, stop.signal))
    const started = (): boolean => existsSync(pids) && readFileSync(pids, 'utf8') !== ''
    await expect.poll(started, { timeout: 30_000 }).toBe(true)
    stop.abort(new Error('the caller went away'))
    expect(await asked).toMatchObject({ message: 'the caller went away' })
    for (const pid of readFileSync(pids, 'utf8').split(' ')) {
      await expect.poll(() => stateOf(pid)).toMatch(/^[Z-]$/)
    }
    const late = await failureOf(() => clientOf(place, 50).unwrap(wrapped(OPTIONS), LAYER, signal))
    expect(late).toMatchObject({
      name: 'LayerError',
      code: 'UNAVAILABLE',
      message: expect.stringMatching(
        /did not answer within 50 ms: see whether it is stuck/,
      ) as string,
    })
  })
})

/** State of a process, `Z` for one that has ended, `-` if there is none. */
function stateOf(pid: string): string {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return text.slice(text.lastIndexOf(')') + 2, text.lastIndexOf(')') + 3)
  } catch {
    return '-'
  }
}

describe('a key provider that is reached by gRPC', () => {
  const answering = (answer: (json: Buffer) => Promise<Uint8Array>): Service => {
    const method = async ({ json }: { json: Buffer }) => ({ json: Buffer.from(await answer(json)) })
    return implement(keyProviderContract(), { WrapKey: method, UnWrapKey: method })
  }

  test('that is down is a failure with the next step, at a socket and at a port', async () => {
    const targets = [`unix:${join(scratch.run, 'nobody.sock')}`, `127.0.0.1:${await freePort()}`]
    for (const target of targets) {
      const client = clientOf({ kind: 'grpc', target })
      for (const work of [
        () => client.unwrap(wrapped(OPTIONS), LAYER, signal),
        () => client.recipient('ipdr', 'a').wrap(OPTIONS, signal),
      ]) {
        const failure = await failureOf(work)
        expect(failure).toMatchObject({ name: 'LayerError', code: 'UNAVAILABLE' })
        expect(failure.message).toContain(`cannot be reached at ${target}: start it`)
      }
    }
  })

  test('that stalls is said to be late', async () => {
    const { socketPath } = await serve(answering(() => new Promise(() => undefined)))
    const client = clientOf(atSocket(socketPath), 50)
    expect(await failureOf(() => client.unwrap(wrapped(OPTIONS), LAYER, signal))).toMatchObject({
      name: 'LayerError',
      code: 'UNAVAILABLE',
      message: expect.stringMatching(/did not answer within 50 ms/) as string,
    })
  })

  test('that refuses is said to, not in its own words: they may hold a key', async () => {
    const { socketPath } = await serve(
      answering(() => Promise.reject(new CodedError('INTERNAL', `cannot wrap ${SECRET}`))),
    )
    const client = clientOf(atSocket(socketPath))
    const failure = await failureOf(() => client.recipient('ipdr', 'a').wrap(OPTIONS, signal))
    expect(failure).toMatchObject({
      name: 'LayerError',
      code: 'PERMISSION_DENIED',
      message: expect.stringMatching(/refused \(INTERNAL\): what it logged says why/) as string,
    })
    expect(failure.message).not.toContain(SECRET)
  })

  test('that is another service, answers with garbage or with too much is said to', async () => {
    const { socketPath: other } = await serve(implement(agentContract(), {} as never))
    const { socketPath: garbage } = await serve(
      answering(async () => Buffer.from('{"keyunwrapresults":{')),
    )
    const { socketPath: empty } = await serve(answering(async () => Buffer.alloc(0)))
    const { socketPath: long } = await serve(
      answering(async () => Buffer.alloc(KEY_PROVIDER_MESSAGE_BYTES_MAX - 8, ' ')),
    )
    for (const [socketPath, code, reason] of [
      [other, 'FAILED_PRECONDITION', /does not know keyprovider.KeyProviderService/],
      [garbage, 'FAILED_PRECONDITION', /did not answer with \{keyunwrapresults: \{optsdata\}\}/],
      [empty, 'FAILED_PRECONDITION', /did not answer with/],
      [long, 'FAILED_PRECONDITION', /did not answer with/],
    ] as const) {
      const client = clientOf(atSocket(socketPath))
      const failure = await failureOf(() => client.unwrap(wrapped(OPTIONS), LAYER, signal))
      expect(failure).toMatchObject({ name: 'LayerError', code })
      expect(failure.message).toMatch(reason)
    }
  })

  test('may be restarted between two calls', async () => {
    const socketPath = join(scratch.run, 'restarted.sock')
    const service = answering(async () => unwrapOutput(OPTIONS))
    const client = clientOf(atSocket(socketPath))
    const log = { debug: () => undefined, warn: () => undefined, error: () => undefined }
    for (let start = 0; start < 2; start++) {
      await using _server = await GrpcServer.listen({ socketPath, closeGraceMs: 0 }, [service], {
        log,
        signal,
      })
      expect(await client.unwrap(wrapped(OPTIONS), LAYER, signal)).toBeDefined()
    }
    expect(await failureOf(() => client.unwrap(wrapped(OPTIONS), LAYER, signal))).toMatchObject({
      code: 'UNAVAILABLE',
    })
  })
})

describe('a client of key providers', () => {
  const client = clientOf({ kind: 'unusable', because: 'it is a test' })

  test('does not ask for what no provider of its configuration wrapped', async () => {
    const others = [
      { kind: 'jwe', bytes: OPTIONS },
      { kind: 'provider', provider: 'vault', bytes: OPTIONS },
    ] as const
    for (const other of others) expect(await client.unwrap(other, LAYER, signal)).toBeUndefined()
  })

  test('says why a provider cannot be used, or that there is none of that name', async () => {
    expect(await failureOf(() => client.unwrap(wrapped(OPTIONS), LAYER, signal))).toMatchObject({
      code: 'FAILED_PRECONDITION',
      message: expect.stringMatching(/cannot be used: it is a test/) as string,
    })
    expect(await failureOf(() => client.recipient('vault', ''))).toMatchObject({
      name: 'LayerError',
      code: 'NOT_FOUND',
      message: expect.stringMatching(/no key provider vault .* which has ipdr/) as string,
    })
  })

  test('beside private keys is asked after them; one that fails does not hinder the other', async () => {
    const down = new KeyProviderClient(new Map([['ipdr', atSocket('/nowhere')]]))
    const knowing = { unwrap: async () => OPTIONS }
    const both = new KeyUnwrappers([down, knowing])
    expect(await both.unwrap(wrapped(OPTIONS), LAYER, signal)).toBe(OPTIONS)
    const neither = new KeyUnwrappers([new PrivateKeys([ec]), down])
    expect(await failureOf(() => neither.unwrap(wrapped(OPTIONS), LAYER, signal))).toMatchObject({
      name: 'LayerError',
      code: 'UNAVAILABLE',
    })
    const nobody = new KeyUnwrappers([new PrivateKeys([ec])])
    expect(await nobody.unwrap(wrapped(OPTIONS), LAYER, signal)).toBeUndefined()
    const stopped = AbortSignal.abort(new LayerError('CANCELLED', 'stopped'))
    expect(await failureOf(() => both.unwrap(wrapped(OPTIONS), LAYER, stopped))).toMatchObject({
      message: 'stopped',
    })
  })
})

test('a packet beyond the limit is refused, whatever it says', () => {
  const padded = (packet: Uint8Array): Buffer =>
    Buffer.concat([packet, Buffer.alloc(KEY_PROVIDER_MESSAGE_BYTES_MAX + 1 - packet.length, ' ')])
  const request = { parameters: ['alice'], options: OPTIONS }
  expect(() => parseWrapInput(padded(wrapInput('ipdr', request)), 'ipdr')).toThrow(
    /longer than 262144/,
  )
  expect(() => parseUnwrapInput(padded(unwrapInput(OPTIONS)))).toThrow(/longer than 262144/)
  expect(parseWrapOutput(padded(wrapOutput(OPTIONS)))).toBeUndefined()
  expect(parseUnwrapOutput(padded(unwrapOutput(OPTIONS)))).toBeUndefined()
})

// Goal: no packet of the protocol does anything but what it says or be refused in words of ours. Method: valid packets, each changed
// at random thousands of times in bytes, fields and lengths, go through every parser; what is accepted must be within the limits.
test('key provider packets changed at random are read within their limits or refused', () => {
  const random = seeded(41)
  const packets = [
    wrapInput('ipdr', { parameters: ['alice', 'bob'], options: OPTIONS }),
    unwrapInput(OPTIONS),
    wrapOutput(OPTIONS),
    unwrapOutput(OPTIONS),
  ]
  const values = [
    null,
    [],
    {},
    '',
    'AAAA',
    'A',
    -1,
    true,
    'x'.repeat(70_000),
    { ipdr: [1] },
    { ipdr: null },
  ]
  const change = (value: unknown): unknown => {
    if (random(4) === 0 || typeof value !== 'object' || value === null)
      return values[random(values.length)]
    const entries = Object.entries(value)
    const at = random(entries.length + 1)
    if (at === entries.length)
      return {
        ...value,
        [['Parameters', 'optsdata', 'op', '__proto__'][random(4)] ?? '']:
          values[random(values.length)],
      }
    return Object.fromEntries(
      entries.map(([name, inner], index) => [name, index === at ? change(inner) : inner]),
    )
  }
  let refused = 0
  const accepted: number[] = []
  const sentences = new Set<string>()
  for (let round = 0; round < 6000; round++) {
    const packet = Buffer.from(packets[random(packets.length)] ?? [])
    let changed = packet
    if (round % 2 === 0)
      changed = Buffer.from(JSON.stringify(change(JSON.parse(String(packet)))) ?? 'x')
    else for (let flip = 0; flip <= random(3); flip++) packet[random(packet.length)] = random(256)
    for (const parse of [
      () => parseWrapInput(changed, 'ipdr'),
      () => parseUnwrapInput(changed),
      () => parseWrapOutput(changed),
      () => parseUnwrapOutput(changed),
    ]) {
      try {
        const found = parse()
        if (found === undefined) refused++
        else accepted.push(found instanceof Uint8Array ? found.length : found.options.length)
      } catch (error) {
        if (!(error instanceof CodedError)) throw error
        sentences.add(error.message)
        refused++
      }
    }
  }
  // One of each parser that throws: none is made of what was read.
  expect(sentences.size).toBe(2)
  expect(Math.max(...accepted)).toBeLessThanOrEqual(48 * 1024)
  expect(refused).toBeGreaterThan(10_000)
  expect(accepted.length).toBeGreaterThan(200)
})
