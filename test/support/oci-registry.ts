import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { debianPath } from './debian-programs.ts'
import type { OciLayout } from './images/oci-layout.ts'
import { runCommand } from './run-command.ts'
import type { Scratch } from './scratch.ts'
import { LOOPBACK, type ServerHost } from './server-host.ts'
import type { TokenServer } from './token-server.ts'

/** A user and a password. */
export type Login = { readonly username: string; readonly password: string }

/** How a registry knows its clients. */
export type RegistryAuth =
  /** By passwords of its own. */
  | { readonly kind: 'htpasswd'; readonly logins: readonly [Login, ...Login[]] }
  /** By tokens of this server. */
  | { readonly kind: 'token'; readonly server: TokenServer; readonly push: Login }

export type OciRegistryOptions = {
  /** Undefined: it lets everybody in. */
  readonly auth?: RegistryAuth
  /** Sets it apart from other registries in the same scratch. */
  readonly name?: string
  /** Loopback unless given. */
  readonly on?: ServerHost
}

/** An answer that a registry gave. */
export type RegistryAnswer = {
  readonly method: string
  readonly uri: string
  readonly status: number
  readonly bytes: number
}

/** A registry over plain HTTP. */
export type OciRegistry = AsyncDisposable & {
  /** `<address>:<port>` */
  readonly host: string
  /** What it answered since it was started first. */
  readonly answers: readonly RegistryAnswer[]
  /** Puts an image there, byte by byte as it is in the layout, and gives back `<host>/<name>:<tag>`. */
  push(image: Pick<OciLayout, 'dir' | 'tag'>, name: string): Promise<string>
  /** Where it keeps the bytes of a blob. */
  blobPath(digest: string): string
  stop(): Promise<void>
  /** Starts it again after `stop`, at the same address. */
  start(): Promise<void>
}

/** Starts Debian's docker-registry with its files in the scratch. */
export async function startOciRegistry(
  scratch: Scratch,
  { auth, name = 'registry', on = LOOPBACK }: OciRegistryOptions = {},
): Promise<OciRegistry> {
  const dir = join(scratch.dir, name)
  mkdirSync(dir)
  const configPath = join(dir, 'config.json')
  const authConfig = auth && (await authOf(auth, dir))
  const answers: RegistryAnswer[] = []
  const writeConfig = (addr: string): void =>
    writeFileSync(
      configPath,
      // YAML is a superset of JSON.
      JSON.stringify({
        version: '0.1',
        log: { formatter: 'json', accesslog: { disabled: true } },
        storage: { filesystem: { rootdirectory: dir } },
        http: { addr },
        ...(authConfig && { auth: authConfig }),
      }),
    )
  let server: ChildProcess | undefined
  const start = async (): Promise<string> => {
    const [file = '', ...args] = on.command(['docker-registry', 'serve', configPath])
    const child = spawn(file, args, {
      env: { PATH: debianPath, OTEL_TRACES_EXPORTER: 'none' },
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    if (child.pid !== undefined) scratch.own(child.pid)
    server = child
    return listeningOn(child.stderr, (answer) => answers.push(answer))
  }
  const stop = async (): Promise<void> => {
    if (server === undefined) return
    const exited = once(server, 'exit')
    server.kill()
    await exited
    server = undefined
  }
  writeConfig(`${on.address}:0`)
  const host = await start()
  writeConfig(host)
  const pushing = auth && (auth.kind === 'token' ? auth.push : auth.logins[0])
  return {
    host,
    answers,
    async push({ dir: layout, tag }, name) {
      const target = `${host}/${name}:${tag}`
      await runCommand('skopeo', [
        '--insecure-policy',
        'copy',
        '--quiet',
        '--all',
        '--preserve-digests',
        '--dest-tls-verify=false',
        ...(pushing ? ['--dest-creds', `${pushing.username}:${pushing.password}`] : []),
        `oci:${layout}:${tag}`,
        `docker://${target}`,
      ])
      return target
    },
    blobPath(digest) {
      const hex = digest.slice('sha256:'.length)
      return join(dir, 'docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex, 'data')
    },
    stop,
    start: async () => void (await start()),
    [Symbol.asyncDispose]: stop,
  }
}

async function authOf(auth: RegistryAuth, dir: string): Promise<object> {
  if (auth.kind === 'htpasswd') {
    const lines = await Promise.all(
      auth.logins.map(async ({ username, password }) => `${username}:${await bcrypt(password)}\n`),
    )
    const path = join(dir, 'htpasswd')
    writeFileSync(path, lines.join(''))
    return { htpasswd: { realm: 'test', path } }
  }
  const { realm, service, issuer, certificatePath } = auth.server
  return { token: { realm, service, issuer, rootcertbundle: certificatePath } }
}

/** As the registry wants passwords: Debian's perl asks libcrypt. */
async function bcrypt(password: string): Promise<string> {
  const salt = '$2y$05$abcdefghijklmnopqrstuu'
  return await runCommand('perl', ['-e', 'print crypt($ARGV[0], $ARGV[1])', password, salt])
}

/** Waits until it listens, and goes on to read its log: it must not run full. */
async function listeningOn(
  log: NodeJS.ReadableStream,
  onAnswer: (answer: RegistryAnswer) => void,
): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  const lines: string[] = []
  const reader = createInterface({ input: log })
  reader.on('line', (line) => {
    const host = /listening on ([\d.]+:\d+)/.exec(line)?.[1]
    if (host !== undefined) resolve(host)
    lines.push(line)
    const answer = answerIn(line)
    if (answer !== undefined) onAnswer(answer)
  })
  reader.on('close', () =>
    reject(new Error(`docker-registry ended before it listened\n${lines.join('\n')}`)),
  )
  return promise
}

function answerIn(line: string): RegistryAnswer | undefined {
  if (!line.includes('"http.response.status"')) return undefined
  const fields = JSON.parse(line) as Readonly<Record<string, unknown>>
  return {
    method: String(fields['http.request.method']),
    uri: String(fields['http.request.uri']),
    status: Number(fields['http.response.status']),
    bytes: Number(fields['http.response.written']),
  }
}
