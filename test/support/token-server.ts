import { createPrivateKey, type KeyObject, randomUUID, X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type Server } from 'node:http'
import { join } from 'node:path'
import { SignJWT } from 'jose'
import { runCommand } from './run-command.ts'

/** Whom a token server knows, and what it was asked. All of it may be changed while it runs. */
export type TokenServer = AsyncDisposable & {
  /** Where registries send their clients. */
  readonly realm: string
  readonly service: string
  readonly issuer: string
  /** The certificate by which a registry knows its tokens, in PEM. */
  readonly certificatePath: string
  /** Passwords by user. */
  readonly users: Map<string, string>
  /** Users by the identity token that stands for them. */
  readonly identityTokens: Map<string, string>
  /** The repositories that users may read, by user; a user who is not in it may read and write all. */
  readonly readers: Map<string, readonly string[]>
  /** How long tokens live, in seconds. */
  lifeSeconds: number
  /** Who asked for what, in order. */
  readonly asked: { readonly user: string | undefined; readonly scope: string | null }[]
}

/** A server of tokens as registries know it (distribution-spec, token authentication), with a key of its own in `dir`. */
export async function startTokenServer(dir: string): Promise<TokenServer> {
  const [keyPath, certificatePath] = [join(dir, 'token-key.pem'), join(dir, 'token-cert.pem')]
  await runCommand('openssl', [
    ...'req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2'.split(' '),
    ...`-subj /CN=token-server -keyout ${keyPath} -out ${certificatePath}`.split(' '),
  ])
  const key = createPrivateKey(readFileSync(keyPath))
  const certificate = new X509Certificate(readFileSync(certificatePath))
  const server = createServer((request, response) => {
    void (async () => {
      const { status, body } = await answer(state, request, { key, certificate })
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
    })()
  })
  const state: Mutable<Omit<TokenServer, keyof AsyncDisposable>> = {
    realm: `http://127.0.0.1:${await listen(server)}/token`,
    service: 'test-registry',
    issuer: 'test-tokens',
    certificatePath,
    users: new Map(),
    identityTokens: new Map(),
    readers: new Map(),
    lifeSeconds: 300,
    asked: [],
  }
  return Object.assign(state, {
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  })
}

type Mutable<T> = { -readonly [Name in keyof T]: T[Name] }

type Answer = { readonly status: number; readonly body: object }

async function answer(
  state: Omit<TokenServer, keyof AsyncDisposable>,
  request: IncomingMessage,
  signing: { readonly key: KeyObject; readonly certificate: X509Certificate },
): Promise<Answer> {
  const isForm = request.method === 'POST'
  const query = isForm
    ? new URLSearchParams(await bodyOf(request))
    : new URL(request.url ?? '', 'http://x').searchParams
  const user = isForm
    ? userOfForm(query, state)
    : userOf(request.headers.authorization, state.users)
  const scope = query.get('scope')
  state.asked.push({ user, scope })
  if (user === undefined) return { status: 401, body: { details: 'incorrect name or password' } }
  const { service, issuer, lifeSeconds } = state
  const token = await new SignJWT({ access: accessOf(scope, state.readers.get(user)) })
    .setProtectedHeader({
      alg: 'ES256',
      typ: 'JWT',
      x5c: [signing.certificate.raw.toString('base64')],
    })
    .setIssuer(issuer)
    .setSubject(user)
    .setAudience(service)
    .setJti(randomUUID())
    .setIssuedAt()
    .setNotBefore('0s')
    .setExpirationTime(`${lifeSeconds}s`)
    .sign(signing.key)
  const body = isForm ? { access_token: token } : { token }
  return { status: 200, body: { ...body, expires_in: lifeSeconds } }
}

/** What the user may do of what is asked for. */
function accessOf(scope: string | null, mayRead: readonly string[] | undefined): object[] {
  const [type, name = '', actions = ''] = (scope ?? '').split(':')
  if (type !== 'repository') return []
  if (mayRead === undefined) return [{ type, name, actions: actions.split(',') }]
  return mayRead.includes(name) ? [{ type, name, actions: ['pull'] }] : []
}

function userOf(
  authorization: string | undefined,
  users: ReadonlyMap<string, string>,
): string | undefined {
  const [, encoded] = /^Basic (.+)$/.exec(authorization ?? '') ?? []
  const [user = '', password] = Buffer.from(encoded ?? '', 'base64')
    .toString()
    .split(':')
  return password !== undefined && users.get(user) === password ? user : undefined
}

/** As OAuth2 has it: an identity token, or, of containerd, a name and a password. */
function userOfForm(
  form: URLSearchParams,
  { users, identityTokens }: Pick<TokenServer, 'users' | 'identityTokens'>,
): string | undefined {
  const user = form.get('username') ?? ''
  if (form.get('grant_type') !== 'password') {
    return identityTokens.get(form.get('refresh_token') ?? '')
  }
  return users.get(user) === form.get('password') ? user : undefined
}

async function bodyOf(request: IncomingMessage): Promise<string> {
  const pieces: Buffer[] = []
  for await (const piece of request) pieces.push(piece as Buffer)
  return Buffer.concat(pieces).toString()
}

async function listen(server: Server): Promise<number> {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('no port')
  return address.port
}
