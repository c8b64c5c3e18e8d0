import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { inspect } from 'node:util'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import type { FindLogins } from '../../../agent/registries/find-logins.ts'
import { RegistryClient } from '../../../agent/registries/registry-client.ts'
import type { RegistryHost } from '../../../agent/registries/registry-http.ts'
import { RegistryLogin } from '../../../agent/registries/registry-login.ts'
import type { RepositoryScope } from '../../../snapshotter/image-registries.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { failureOf } from '../../support/failure-of.ts'
import { givenLogins } from '../../support/given-logins.ts'
import { type OciLayout, packLayer, writeOciLayout } from '../../support/images/oci-layout.ts'
import { makeTar } from '../../support/make-tar.ts'
import { type OciRegistry, startOciRegistry } from '../../support/oci-registry.ts'
import { Scratch } from '../../support/scratch.ts'
import { startTokenServer, type TokenServer } from '../../support/token-server.ts'

// Debian's docker-registry, once with passwords and once with tokens; a server of our own where a registry must misbehave.

const opened = new AsyncDisposableStack()
const right = { username: 'reader', password: 'right' }
const wrong = { username: 'reader', password: 'wrong' }
let tokens: TokenServer
let byPassword: OciRegistry
let byToken: OciRegistry
let layout: OciLayout

beforeAll(async () => {
  const scratch = opened.use(Scratch.open('registry-client'))
  tokens = opened.use(await startTokenServer(scratch.dir))
  tokens.users.set('pusher', 'push').set('reader', 'right').set('stranger', 'x')
  tokens.readers.set('reader', ['team/app']).set('stranger', [])
  const htpasswd = { kind: 'htpasswd', logins: [right] } as const
  const push = { username: 'pusher', password: 'push' }
  const token = { kind: 'token', server: tokens, push } as const
  byPassword = opened.use(await startOciRegistry(scratch, { auth: htpasswd, name: 'passwords' }))
  byToken = opened.use(await startOciRegistry(scratch, { auth: token, name: 'tokens' }))
  const tar = makeTar({ name: 'file', content: 'hello' })
  const layer = await packLayer(Readable.from([tar]), 'gzip', join(scratch.dir, 'layers'))
  layout = writeOciLayout(join(scratch.dir, 'layout'), { layers: [layer] })
  for (const registry of [byPassword, byToken]) await registry.push(layout, 'team/app')
}, 60_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

beforeEach(() => {
  tokens.asked.length = 0
  tokens.lifeSeconds = 300
})

const signal = (): AbortSignal => AbortSignal.timeout(30_000)

const appOn = (host: string, namespaces: readonly string[] = []): RepositoryScope => ({
  host,
  repository: 'team/app',
  namespaces,
})

function clientWith(
  logins: FindLogins,
  hosts: Readonly<Record<string, RegistryHost>> = {},
): RegistryClient & { readonly refused: string[] } {
  const refused: string[] = []
  const client = new RegistryClient(
    { hosts },
    { logins, onRefused: (origin) => refused.push(origin) },
  )
  opened.use(client)
  return Object.assign(client, { refused })
}

async function bytesOf(pieces: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const all: Uint8Array[] = []
  for await (const piece of pieces) all.push(piece)
  return Buffer.concat(all)
}

describe.each([
  ['passwords', () => byPassword],
  ['tokens', () => byToken],
])('from a registry that wants %s', (_, registry) => {
  test('a manifest is read by tag and by digest', async () => {
    const client = clientWith(givenLogins(right))
    const found = await client.manifest(appOn(registry().host), layout.tag, signal())
    expect(found.digest).toBe(layout.manifestDigest)
    const again = await client.manifest(appOn(registry().host), found.digest, signal())
    expect(again.bytes).toEqual(found.bytes)
  })

  test('a blob is read', async () => {
    const client = clientWith(givenLogins(right))
    const [layer] = layout.layers
    const digest = layer?.digest as `sha256:${string}`
    const bytes = await bytesOf(client.streamBlob(appOn(registry().host), digest, signal()))
    expect(bytes).toEqual(readFileSync(layer?.path ?? ''))
  })

  test('credentials that are not taken give way to the next', async () => {
    const client = clientWith(givenLogins(wrong, right))
    await client.manifest(appOn(registry().host), layout.tag, signal())
    await client.manifest(appOn(registry().host), layout.tag, signal())
    expect(client.refused).toEqual(['test reader'])
  })

  test('nothing is read without credentials', async () => {
    const client = clientWith(givenLogins())
    const asking = client.manifest(appOn(registry().host), layout.tag, signal())
    expect(await failureOf(() => asking)).toMatchObject({
      name: 'RegistryError',
      code: 'PERMISSION_DENIED',
      message: `registry ${registry().host} does not let us read team/app: it wants credentials, and none were found for it`,
    })
  })

  test('nothing is read with wrong ones, and the failure says which to renew', async () => {
    const client = clientWith(givenLogins(wrong))
    const asking = client.manifest(appOn(registry().host), layout.tag, signal())
    const error = await asking.catch((error: unknown) => error)
    expect(error).toMatchObject({ code: 'PERMISSION_DENIED' })
    expect(String(error)).toContain('it does not take the credentials of test reader: renew them')
    expect(inspect(error, { depth: 9, showHidden: true })).not.toContain('wrong')
  })

  test('sources are asked anew when what they knew is not taken', async () => {
    const asked: boolean[] = []
    const client = clientWith({
      loginsFor: async (_place, { fresh }) => {
        asked.push(fresh)
        const { username, password } = fresh ? right : wrong
        return [RegistryLogin.password(`test ${fresh}`, username, password)]
      },
    })
    await client.manifest(appOn(registry().host), layout.tag, signal())
    expect(asked).toEqual([false, true])
  })

  test('what is not there is not found', async () => {
    const client = clientWith(givenLogins(right))
    const asking = client.manifest(appOn(registry().host), 'missing', signal())
    expect(await failureOf(() => asking)).toMatchObject({ code: 'NOT_FOUND' })
    const blob = digestOf(Buffer.from('another'))
    const reading = bytesOf(client.streamBlob(appOn(registry().host), blob, signal()))
    expect(await failureOf(() => reading)).toMatchObject({ code: 'NOT_FOUND' })
  })
})

describe('tokens', () => {
  test('are asked for once, for reading this repository alone', async () => {
    const client = clientWith(givenLogins(right))
    for (let time = 0; time < 3; time++) {
      await client.manifest(appOn(byToken.host), layout.tag, signal())
    }
    expect(tokens.asked).toEqual([{ user: 'reader', scope: 'repository:team/app:pull' }])
  })

  test('are fetched anew before they end', async () => {
    const client = clientWith(givenLogins(right))
    tokens.lifeSeconds = 0
    await client.manifest(appOn(byToken.host), layout.tag, signal())
    tokens.lifeSeconds = 300
    await client.manifest(appOn(byToken.host), layout.tag, signal())
    await client.manifest(appOn(byToken.host), layout.tag, signal())
    expect(tokens.asked).toHaveLength(2)
  })

  test('are got for identity tokens', async () => {
    tokens.identityTokens.set('refresh-me', 'reader')
    const client = clientWith(givenLogins(RegistryLogin.identityToken('test', 'refresh-me')))
    await client.manifest(appOn(byToken.host), layout.tag, signal())
    expect(tokens.asked).toEqual([{ user: 'reader', scope: 'repository:team/app:pull' }])
  })

  test('that do not cover the repository give way to the next', async () => {
    const stranger = { username: 'stranger', password: 'x' }
    const client = clientWith(givenLogins(stranger, right))
    await client.manifest(appOn(byToken.host), layout.tag, signal())
    expect(client.refused).toEqual(['test stranger'])
  })
})

type Respond = (request: IncomingMessage, response: ServerResponse) => void

/** A server that is none of Debian's. Gives back its host and what it was asked. */
async function serve(
  respond: Respond,
): Promise<{ readonly host: string; readonly requests: IncomingMessage[] }> {
  const requests: IncomingMessage[] = []
  const server = createServer((request, response) => {
    requests.push(request)
    respond(request, response)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  opened.defer(() => {
    server.closeAllConnections()
    server.close()
  })
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('no port')
  return { host: `127.0.0.1:${address.port}`, requests }
}

const content = Buffer.from('0123456789'.repeat(1_000))
const contentDigest = digestOf(content)

describe('a redirect', () => {
  test('to another server is followed without the credentials', async () => {
    const store = await serve((_, response) => response.end(content))
    const registry = await serve((request, response) => {
      if (request.headers.authorization === undefined) {
        response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
      } else response.writeHead(307, { location: `http://${store.host}/signed?x=1` }).end()
    })
    const client = clientWith(givenLogins(right))
    const read = await bytesOf(client.streamBlob(appOn(registry.host), contentDigest, signal()))
    expect(read).toEqual(content)
    expect(registry.requests.at(-1)?.headers.authorization).toMatch(/^Basic /)
    expect(store.requests.map(({ headers }) => headers.authorization)).toEqual([undefined])
  })

  test('that is refused there is not blamed on the credentials', async () => {
    const store = await serve((_, response) => response.writeHead(403).end())
    const registry = await serve((_, response) =>
      response.writeHead(307, { location: `http://${store.host}/x` }).end(),
    )
    const client = clientWith(givenLogins(right))
    const reading = bytesOf(client.streamBlob(appOn(registry.host), contentDigest, signal()))
    const error = await failureOf(() => reading)
    expect(error).toMatchObject({ code: 'UNAVAILABLE' })
    expect(error.message).toContain(`the blob store ${store.host} of registry ${registry.host}`)
    expect(client.refused).toEqual([])
  })

  test.each([
    ['without end', (host: string) => `http://${host}/again`, /after 5 redirects it points on/],
    ['to a file', () => 'file:///etc/passwd', /no address of HTTP/],
    ['with a password', () => 'http://user:pw@127.0.0.1/', /no address of HTTP/],
  ])('%s is not followed', async (_, location, problem) => {
    const registry = await serve((request, response) =>
      response.writeHead(302, { location: location(request.headers.host ?? '') }).end(),
    )
    const client = clientWith(givenLogins())
    const error = await failureOf(() => client.manifest(appOn(registry.host), 'x', signal()))
    expect(error).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(problem),
    })
  })
})

describe('credentials are not sent', () => {
  test('to a token server on plain HTTP that is another machine', async () => {
    const registry = await serve((_, response) =>
      response
        .writeHead(401, { 'www-authenticate': 'Bearer realm="http://tokens.example/t"' })
        .end(),
    )
    const client = clientWith(givenLogins(right))
    const error = await failureOf(() => client.manifest(appOn(registry.host), 'x', signal()))
    expect(error).toMatchObject({ code: 'PERMISSION_DENIED' })
    expect(error.message).toContain('http://tokens.example, which is not https')
  })

  test('to a mirror on plain HTTP that is another machine', async () => {
    const client = clientWith(givenLogins(right), {
      'reg.example': { mirror: 'http://mirror.example:5000' },
    })
    const error = await failureOf(() => client.manifest(appOn('reg.example'), 'x', signal()))
    expect(error).toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect(error.message).toContain('the mirror of reg.example is plain HTTP')
  })
})

describe('a part of a blob', () => {
  const blob = { digest: contentDigest, size: content.length }
  const range = { start: 1_000, end: 3_000 }
  const part = content.subarray(range.start, range.end)

  const readFrom = (host: string, size = blob.size): Promise<Uint8Array> =>
    clientWith(givenLogins()).readRange(appOn(host), { ...blob, size }, range, signal())

  const sendPart: Respond = (request, response) => {
    const [, start, end] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '') ?? []
    response
      .writeHead(206, { 'content-range': `bytes ${start}-${end}/${content.length}` })
      .end(content.subarray(Number(start), Number(end) + 1))
  }

  test('is read from the real registry, and only that is sent', async () => {
    const [layer] = layout.layers
    const digest = layer?.digest as `sha256:${string}`
    const client = clientWith(givenLogins(right))
    const answersBefore = byToken.answers.length
    const read = await client.readRange(
      appOn(byToken.host),
      { digest, size: layer?.size ?? 0 },
      { start: 10, end: 30 },
      signal(),
    )
    expect(read).toEqual(readFileSync(layer?.path ?? '').subarray(10, 30))
    const sent = byToken.answers.slice(answersBefore).filter(({ status }) => status === 206)
    expect(sent.map(({ bytes }) => bytes)).toEqual([20])
  })

  test('is cut out where a registry sends blobs only whole', async () => {
    const registry = await serve((_, response) => response.end(content))
    expect(await readFrom(registry.host)).toEqual(part)
  })

  test('is asked of the blob store at once, as long as that has it', async () => {
    let isGone = false
    const store = await serve((request, response) => {
      if (isGone) response.writeHead(403).end()
      else sendPart(request, response)
    })
    const registry = await serve((_, response) => {
      isGone = false
      response.writeHead(307, { location: `http://${store.host}/signed` }).end()
    })
    const client = clientWith(givenLogins())
    for (let time = 0; time < 3; time++) {
      expect(await client.readRange(appOn(registry.host), blob, range, signal())).toEqual(part)
    }
    expect(registry.requests).toHaveLength(1)
    isGone = true
    expect(await client.readRange(appOn(registry.host), blob, range, signal())).toEqual(part)
    expect(registry.requests).toHaveLength(2)
  })

  test.each([
    ['another part than was asked for', 'bytes 0-1999/10000', /were asked for, 'bytes 0-1999/],
    ['a part of a blob of another size', 'bytes 1000-2999/99999', /has 99999 bytes there/],
    ['a part that it does not name', undefined, /were asked for, ''/],
  ])('is refused if it is %s', async (_, header, problem) => {
    const registry = await serve((_, response) =>
      response.writeHead(206, header === undefined ? {} : { 'content-range': header }).end(part),
    )
    expect(await failureOf(() => readFrom(registry.host))).toMatchObject({
      code: 'DATA_LOSS',
      message: expect.stringMatching(problem),
    })
  })

  test('that lies behind the end of the blob is a lie of the manifest', async () => {
    const registry = await serve((_, response) => response.writeHead(416).end())
    const error = await failureOf(() => readFrom(registry.host, 100_000))
    expect(error).toMatchObject({ code: 'DATA_LOSS' })
    expect(error.message).toContain('ends before byte 3000, its manifest says it has 100000')
  })

  test('that is too short is asked for again, and then given up', async () => {
    const registry = await serve((_, response) =>
      response
        .writeHead(206, { 'content-range': `bytes 1000-2999/${content.length}` })
        .end(part.subarray(1)),
    )
    const error = await failureOf(() => readFrom(registry.host))
    expect(error).toMatchObject({ code: 'UNAVAILABLE' })
    expect(error.message).toContain('1999 of 2000 bytes came')
    expect(registry.requests).toHaveLength(3)
  })
})

describe('a registry', () => {
  test('is asked at its mirror, below the path of that', async () => {
    const mirror = await serve((_, response) => response.end(content))
    const client = clientWith(givenLogins(), {
      'reg.example': { mirror: `http://${mirror.host}/cache/` },
    })
    await bytesOf(client.streamBlob(appOn('reg.example'), contentDigest, signal()))
    expect(mirror.requests.map(({ url }) => url)).toEqual([
      `/cache/v2/team/app/blobs/${contentDigest}`,
    ])
  })

  test('that breaks off is asked for the rest', async () => {
    const registry = await serve((request, response) => {
      const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0)
      const end = Math.min(start + 4_000, content.length)
      response.writeHead(start === 0 ? 200 : 206, {
        'content-length': content.length - start,
        'content-range': `bytes ${start}-${content.length - 1}/${content.length}`,
      })
      response.write(content.subarray(start, end), () => {
        if (end === content.length) response.end()
        else response.destroy()
      })
    })
    const client = clientWith(givenLogins())
    const read = await bytesOf(client.streamBlob(appOn(registry.host), contentDigest, signal()))
    expect(read).toEqual(content)
    expect(registry.requests.map(({ headers }) => headers.range)).toEqual([
      undefined,
      'bytes=4000-',
      'bytes=8000-',
    ])
  })

  test('that breaks off and cannot go on is read anew up to where it was', async () => {
    const registry = await serve((_, response) => {
      if (registry.requests.length > 1) response.end(content)
      else response.write(content.subarray(0, 4_000), () => response.destroy())
    })
    const client = clientWith(givenLogins())
    const read = await bytesOf(client.streamBlob(appOn(registry.host), contentDigest, signal()))
    expect(read).toEqual(content)
  })

  test('that is busy is asked again', async () => {
    let answers = 0
    const registry = await serve((_, response) => {
      if (answers++ < 2) response.writeHead(503, { 'retry-after': '0' }).end()
      else response.end(content)
    })
    const client = clientWith(givenLogins())
    await bytesOf(client.streamBlob(appOn(registry.host), contentDigest, signal()))
    expect(answers).toBe(3)
  })

  test('that cannot be reached is named', async () => {
    const client = clientWith(givenLogins())
    const error = await failureOf(() => client.manifest(appOn('127.0.0.1:1'), 'x', signal()))
    expect(error).toMatchObject({ code: 'UNAVAILABLE' })
    expect(error.message).toMatch(/^127\.0\.0\.1:1 cannot be reached: .*ECONNREFUSED/)
  })

  test('that sends another manifest than was asked for is not believed', async () => {
    const registry = await serve((_, response) => response.end('{}'))
    const client = clientWith(givenLogins())
    const asking = client.manifest(appOn(registry.host), contentDigest, signal())
    expect(await failureOf(() => asking)).toMatchObject({ name: 'ImageError', code: 'DATA_LOSS' })
  })

  test('that sends a manifest without end is left', async () => {
    const registry = await serve((_, response) => {
      Readable.from(endless()).pipe(response)
    })
    const client = clientWith(givenLogins())
    const asking = client.manifest(appOn(registry.host), 'x', signal())
    expect(await failureOf(() => asking)).toMatchObject({ code: 'RESOURCE_EXHAUSTED' })
  })

  test('that never answers is left when nobody waits any more', async () => {
    const registry = await serve(() => undefined)
    const client = clientWith(givenLogins())
    const stop = new AbortController()
    const asking = client.manifest(appOn(registry.host), 'x', stop.signal)
    stop.abort(new Error('enough'))
    expect((await failureOf(() => asking)).message).toBe('enough')
  })
})

function* endless(): Generator<Buffer, void> {
  for (;;) yield Buffer.alloc(64 * 1024)
}
