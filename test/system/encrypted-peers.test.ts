import { execFileSync } from 'node:child_process'
import { createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import { globSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { decryptJwe } from '../../snapshotter/encryption/jwe.ts'
import { parseLayerEncryption } from '../../snapshotter/encryption/layer-encryption.ts'
import {
  type PrivateOptions,
  parsePrivateOptions,
} from '../../snapshotter/encryption/private-options.ts'
import { type Descriptor, descriptorSchema } from '../../snapshotter/oci/descriptor.ts'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import { parseManifest } from '../../snapshotter/oci/manifest.ts'
import { ended, runIpdr, startIpdr } from '../agent/cli/support/run-ipdr.ts'
import { AgentProcess, freePort } from '../support/agent.ts'
import { ctdDecode } from '../support/ctd-decoder.ts'
import { failureOf } from '../support/failure-of.ts'
import { type OciLayout, packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { makeTar } from '../support/make-tar.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'
import { SuitePrograms } from '../support/suite-programs.ts'

const random = seeded(53)
const noise = Buffer.from(Array.from({ length: 700_000 }, () => random(256)))
const TARS = [
  makeTar(
    { name: 'bin/', typeflag: '5', mode: 0o755 },
    { name: 'bin/tool', mode: 0o755, content: noise },
    { name: 'etc/motd', content: 'hello\n'.repeat(3000) },
  ),
  makeTar({ name: 'etc/motd', content: 'goodbye\n' }),
]
const PASSPHRASE = 'correct horse battery staple'

const scratch = Scratch.open('encrypted-peers')
const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey
const alice = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
const stranger = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
const at = (...names: string[]): string => join(scratch.dir, ...names)
const repository = at('repository')
const providers = at('providers.conf')
/** What every command said, for the search for keys. */
const said: string[] = []
const commandLines: string[] = []

let agent: AgentProcess
let layout: OciLayout
let roots: { plain: string; forKeys: string; forProvider: string; forBox: string }
let server: ReturnType<typeof startIpdr>

const jwk = (key: KeyObject): string =>
  JSON.stringify({ ...key.export({ format: 'jwk' }), kid: 'key' })
const pem = (key: KeyObject): string => key.export({ type: 'pkcs8', format: 'pem' }).toString()
const spki = (key: KeyObject): string =>
  createPublicKey(key).export({ type: 'spki', format: 'pem' }).toString()

function write(path: string, content: string): string {
  writeFileSync(path, content, { mode: 0o600 })
  return path
}

async function push(source: string, ...words: string[]): Promise<string> {
  const child = startIpdr(
    ['push', source, '--repository', repository, '--progress', 'json', '-o', 'json', ...words],
    { env: { OCICRYPT_KEYPROVIDER_CONFIG: providers, IPDR_DEBUG: '1' } },
  )
  commandLines.push(readFileSync(`/proc/${child.pid}/cmdline`, 'latin1'))
  child.stdin.end()
  const { exitCode, stdout, stderr } = await ended(child)
  said.push(stdout, stderr)
  expect({ exitCode, stderr: exitCode === 0 ? '' : stderr }).toEqual({ exitCode: 0, stderr: '' })
  return (JSON.parse(stdout) as { root: string }).root
}

/** skopeo of bookworm, or of trixie where key providers are needed, which bookworm's ocicrypt does not know. */
async function skopeo(from: string, to: string, ...flags: string[]): Promise<void> {
  const needsProvider = flags.some((flag) => flag.startsWith('provider:'))
  const [file, ...args] = needsProvider
    ? SuitePrograms.unpack('trixie', 'skopeo', 'skopeo').command('usr/bin/skopeo')
    : ['skopeo']
  const words = ['copy', '--insecure-policy', '--src-tls-verify=false', ...flags, from, to]
  const { PATH = '', HOME = '/root' } = process.env
  const env = { PATH, HOME, OCICRYPT_KEYPROVIDER_CONFIG: providers }
  await runCommand(file ?? '', [...args, ...words], { env })
}

/** The image as the registry of the agent serves it. */
const served = (root: string): string =>
  `docker://${agent.registryUrl.slice('http://'.length)}/${root}:latest`

type Layer = { readonly descriptor: Descriptor; readonly blob: Buffer }

/** The layers of the only image of a layout. */
function layersIn(dir: string): Layer[] {
  const read = (digest: string): Buffer =>
    readFileSync(join(dir, 'blobs', digest.replace(':', '/')))
  const index = JSON.parse(readFileSync(join(dir, 'index.json'), 'utf8')) as {
    manifests: unknown[]
  }
  const manifest = parseManifest(read(descriptorSchema.parse(index.manifests[0]).digest), dir)
  if (manifest.kind !== 'manifest') throw new Error('not an image')
  return manifest.layers.map((descriptor) => ({ descriptor, blob: read(descriptor.digest) }))
}

/** What a layer was before it was encrypted, opened by one of our keys. */
async function opened({ descriptor }: Layer, key: KeyObject): Promise<PrivateOptions> {
  const { wrapped } = parseLayerEncryption(descriptor.annotations ?? {}, '')
  for (const { bytes } of wrapped) {
    const options = await decryptJwe(bytes, key, '')
    if (options !== undefined) return parsePrivateOptions(options, '')
  }
  throw new Error('no wrapped key fits')
}

/** By Debian's zstd, which reads all frames of a blob. */
const unzstd = (blob: Buffer): Buffer =>
  execFileSync('zstd', ['-d', '-c', '-q'], { input: blob, maxBuffer: 2 ** 26 })

const plaintextOf = async (layer: Layer, key: KeyObject): Promise<Buffer> =>
  Buffer.from((await opened(layer, key)).key.apply(0, layer.blob))

beforeAll(async () => {
  const layers = [
    await packLayer(Readable.from([TARS[0]]), 'gzip', at('packed')),
    await packLayer(Readable.from([TARS[1]]), 'gzip', at('packed')),
  ]
  layout = writeOciLayout(at('layout'), { layers })
  write(at('ec.pub.jwk'), jwk(createPublicKey(ec)))
  write(at('ec.jwk'), jwk(ec))
  write(at('rsa.pub.pem'), spki(rsa))
  write(at('rsa.pem'), pem(rsa))
  write(at('stranger.pem'), pem(stranger))
  for (const name of ['ec', 'rsa', 'stranger', 'node'])
    mkdirSync(at(`${name}-keys`), { mode: 0o700 })
  write(at('ec-keys/ec.jwk'), jwk(ec))
  write(at('rsa-keys/rsa.pem'), pem(rsa))
  write(at('stranger-keys/stranger.pem'), pem(stranger))
  // The node's: the one that nobody else has, under a passphrase, and one that images are encrypted for directly.
  const locked = {
    type: 'pkcs8',
    format: 'pem',
    cipher: 'aes-256-cbc',
    passphrase: PASSPHRASE,
  } as const
  write(at('node-keys/alice.pem'), alice.export(locked).toString())
  write(at('node-keys/alice.pem.passphrase'), `${PASSPHRASE}\n`)
  write(at('node-keys/rsa.pem'), pem(rsa))

  // Of one namespace alone, so not the key provider's.
  mkdirSync(at('node-keys/team-a'), { mode: 0o700 })
  write(at('node-keys/team-a/theirs.pem'), pem(stranger))
  const box = write(
    at('box.mjs'),
    `import { readFileSync } from 'node:fs'
     const { op, keywrapparams, keyunwrapparams } = JSON.parse(readFileSync(0))
     const turned = (text) => Buffer.from(text, 'base64').map((byte) => byte ^ 0x5a).toString('base64')
     console.log(JSON.stringify(op === 'keywrap'
       ? { keywrapresults: { annotation: turned(keywrapparams.optsdata) } }
       : { keyunwrapresults: { optsdata: turned(keyunwrapparams.annotation) } }))`,
  )
  const ipdr = { grpc: `unix://${join(scratch.run, 'agent/keyprovider.sock')}` }
  const cmd = { path: process.execPath, args: [box] }
  write(providers, JSON.stringify({ 'key-providers': { ipdr, box: { cmd } } }))
  const gateway = `127.0.0.1:${await freePort()}`
  agent = await AgentProcess.start(scratch, {
    gateways: [`http://${gateway}`],
    logLevel: 'trace',
    keysDir: at('node-keys'),
    keyProviders: providers,
    keyProvider: {},
  })
  roots = {
    plain: await push(`oci:${layout.dir}`),
    forKeys: await push(
      `oci:${layout.dir}`,
      '--encrypt-to',
      `jwe:${at('ec.pub.jwk')}`,
      '--encrypt-to',
      at('rsa.pub.pem'),
    ),
    forProvider: await push(`oci:${layout.dir}`, '--encrypt-to', 'provider:ipdr:alice'),
    forBox: await push(`oci:${layout.dir}`, '--encrypt-to', 'provider:box:'),
  }
  server = startIpdr([
    'serve',
    '--repository',
    repository,
    '--gateway',
    gateway,
    '--listen',
    '/ip4/127.0.0.1/tcp/0',
  ])
  scratch.own(server.pid ?? 0)
  server.stderr.on('data', (text: Buffer) => said.push(String(text)))
  await new Promise<void>((resolve) =>
    server.stdout.on('data', (text: Buffer) => {
      said.push(String(text))
      resolve()
    }),
  )
  commandLines.push(readFileSync(`/proc/${server.pid}/cmdline`, 'latin1'))
  for (const [name, root] of Object.entries(roots))
    await skopeo(served(root), `oci:${at(name)}:latest`)
})
afterAll(async () => {
  server?.kill('SIGTERM')
  await agent?.[Symbol.asyncDispose]()
  await scratch[Symbol.asyncDispose]()
})

describe('an image that ipdr push encrypted for an EC and an RSA key', () => {
  test.each([
    ['the EC key, a JWK', 'ec.jwk'],
    ['the RSA key, a PEM', 'rsa.pem'],
  ])(
    'is decrypted by skopeo with %s to the blobs of a plain push, and so to the same tree',
    async (_, key) => {
      const dir = at(`decrypted-${key}`)
      await skopeo(`oci:${at('forKeys')}:latest`, `oci:${dir}:latest`, '--decryption-key', at(key))
      const plain = layersIn(at('plain'))
      const decrypted = layersIn(dir)
      expect(decrypted.map(({ descriptor }) => descriptor)).toEqual(
        plain.map(({ descriptor }) => descriptor),
      )
      expect(decrypted.map(({ blob }) => digestOf(unzstd(blob)))).toEqual(
        TARS.map((tar) => digestOf(tar)),
      )
    },
  )

  test.each([
    ['the EC key, a JWK', 'ec-keys'],
    ['the RSA key, a PEM', 'rsa-keys'],
  ])("is decrypted by containerd's ctd-decoder with %s byte by byte", async (_, keys) => {
    for (const [index, { descriptor, blob }] of layersIn(at('forKeys')).entries()) {
      const { exitCode, plaintext, stderr } = await ctdDecode(blob, descriptor, {
        keysDir: at(keys),
      })
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
      expect(plaintext.equals(layersIn(at('plain'))[index]?.blob ?? blob)).toBe(true)
    }
  })

  test('is opened by neither with another key', async () => {
    const [layer] = layersIn(at('forKeys'))
    const { descriptor, blob } = layer as Layer
    const { exitCode, plaintext } = await ctdDecode(blob, descriptor, {
      keysDir: at('stranger-keys'),
    })
    expect({ exitCode, bytes: plaintext.length }).toEqual({ exitCode: 1, bytes: 0 })
    const failure = await failureOf(() =>
      skopeo(
        `oci:${at('forKeys')}:latest`,
        `oci:${at('never')}:latest`,
        '--decryption-key',
        at('stranger.pem'),
      ),
    )
    expect(failure.message).toMatch(/no suitable key|decrypt/)
  })

  test('whose ciphertext was changed is refused by ctd-decoder: the HMAC is where it looks for it', async () => {
    const [layer] = layersIn(at('forKeys'))
    const { descriptor, blob } = layer as Layer
    const changed = Buffer.from(blob)
    changed[1000] = (changed[1000] ?? 0) ^ 1
    const { exitCode, stderr } = await ctdDecode(changed, descriptor, { keysDir: at('ec-keys') })
    expect(exitCode).toBe(1)
    expect(stderr).toMatch(/hmac/i)
  })

  test('is read whole by an agent that has one of the keys, and checked', async () => {
    const pulled = await runIpdr([
      'pull',
      roots.forKeys,
      '--all',
      '-q',
      '--agent',
      agent.adminSocket,
    ])
    said.push(pulled.stdout, pulled.stderr)
    expect(pulled).toMatchObject({ exitCode: 0, stderr: '' })
  })
})

test('an image that ipdr push encrypted by a key provider that is a program is read by an agent that has it too, and by ctd-decoder', async () => {
  const pulled = await runIpdr(['pull', roots.forBox, '--all', '-q', '--agent', agent.adminSocket])
  expect(pulled).toMatchObject({ exitCode: 0, stderr: '' })
  const env = { OCICRYPT_KEYPROVIDER_CONFIG: providers }
  for (const [index, { descriptor, blob }] of layersIn(at('forBox')).entries()) {
    const { exitCode, plaintext, stderr } = await ctdDecode(blob, descriptor, { env })
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
    expect(plaintext.equals(layersIn(at('plain'))[index]?.blob ?? blob)).toBe(true)
  }
})

test('an encrypted image is not recorded for a prefetch list: the list would be public', async () => {
  await runIpdr(['pull', roots.forKeys, '-q', '--agent', agent.adminSocket])
  using admin = agent.admin()
  const recorded = (async () => {
    const stop = AbortSignal.timeout(30_000)
    for await (const _ of admin.calls.Record({ reference: roots.forKeys }, { signal: stop })) return
  })()
  await expect(recorded).rejects.toMatchObject({
    details: expect.stringMatching(/has encrypted layers, and a prefetch list beside it/) as string,
  })
})

describe("this agent's key provider", () => {
  test('opens for skopeo and ctd-decoder what ipdr push encrypted by it: the key is on the node alone', async () => {
    const dir = at('decrypted-by-provider')
    await skopeo(
      `oci:${at('forProvider')}:latest`,
      `oci:${dir}:latest`,
      '--decryption-key',
      'provider:ipdr',
    )
    const plain = layersIn(at('plain'))
    expect(layersIn(dir).map(({ descriptor }) => descriptor)).toEqual(
      plain.map(({ descriptor }) => descriptor),
    )
    for (const [index, { descriptor, blob }] of layersIn(at('forProvider')).entries()) {
      const env = { OCICRYPT_KEYPROVIDER_CONFIG: providers }
      const { exitCode, plaintext, stderr } = await ctdDecode(blob, descriptor, { env })
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
      expect(plaintext.equals(plain[index]?.blob ?? blob)).toBe(true)
    }
  })

  test('wraps for skopeo, for one key or for several, and our keys open it', async () => {
    const dir = at('encrypted-by-skopeo')
    const recipients = ['alice', 'rsa'].flatMap((name) => [
      '--encryption-key',
      `provider:ipdr:${name}`,
    ])
    await skopeo(`oci:${layout.dir}:latest`, `oci:${dir}:latest`, ...recipients)
    const layers = layersIn(dir)
    expect(layers.map(({ descriptor }) => descriptor.mediaType)).toEqual(
      layout.layers.map(({ mediaType }) => `${mediaType}+encrypted`),
    )
    for (const [index, layer] of layers.entries()) {
      const annotations = Object.keys(layer.descriptor.annotations ?? {})
      expect(annotations).toContain('org.opencontainers.image.enc.keys.provider.ipdr')
      for (const key of [alice, rsa]) {
        expect(digestOf(await plaintextOf(layer, key))).toBe(layout.layers[index]?.digest)
      }
    }
    const root = await push(`oci:${dir}`)
    const pulled = await runIpdr(['pull', root, '--all', '-q', '--agent', agent.adminSocket])
    said.push(pulled.stdout, pulled.stderr)
    expect(pulled).toMatchObject({ exitCode: 0, stderr: '' })
  })

  test('refuses a key that it does not have for the whole node, to skopeo and to ipdr push', async () => {
    const failure = await failureOf(() =>
      skopeo(
        `oci:${layout.dir}:latest`,
        `oci:${at('never')}:latest`,
        '--encryption-key',
        'provider:ipdr:theirs',
      ),
    )
    expect(failure.message).toMatch(/this agent has no key .*theirs.* it has alice, rsa/)
    const pushed = await runIpdr(
      [
        'push',
        `oci:${layout.dir}`,
        '--repository',
        repository,
        '--encrypt-to',
        'provider:ipdr:theirs',
        '-q',
      ],
      { env: { OCICRYPT_KEYPROVIDER_CONFIG: providers } },
    )
    said.push(pushed.stdout, pushed.stderr)
    expect(pushed).toMatchObject({ exitCode: 77, stdout: '' })
    expect(pushed.stderr).toMatch(
      /key provider ipdr, asked to wrap a layer's key, refused \(NOT_FOUND\)/,
    )
  })
})

// Goal: no key can be read from what is written about the work. Method: every private key, the passphrase and the key and nonce of
// every layer, as bytes and in each spelling that a log or a dump would use, are searched for in all that the agent logged at its most
// talkative, in what the commands said and were started with, and in all files of the repository and of the agent's own folders.
test('no key, nonce or passphrase is in logs, output, arguments, blocks or state', async () => {
  const secrets = new Map<string, Buffer>([['passphrase', Buffer.from(PASSPHRASE)]])
  for (const [name, key] of Object.entries({ ec, rsa, alice })) {
    const { d = '', p = '' } = key.export({ format: 'jwk' }) as { d?: string; p?: string }
    secrets.set(`${name}.d`, Buffer.from(d, 'base64url'))
    if (p !== '') secrets.set(`${name}.p`, Buffer.from(p, 'base64url'))
  }
  for (const [name, key] of Object.entries({ ec, rsa, alice })) {
    // A PEM is wrapped, so that no line holds all of a number.
    for (const [at, line] of pem(key).split('\n').slice(1, 3).entries()) {
      secrets.set(`${name}.pem.${at}`, Buffer.from(line))
    }
  }
  for (const [name, key] of [
    ['forKeys', ec],
    ['forProvider', alice],
    ['encrypted-by-skopeo', alice],
  ] as const) {
    for (const [index, layer] of layersIn(at(name)).entries()) {
      const { key: secret, nonce } = (await opened(layer, key)).key.reveal()
      secrets.set(`${name}.${index}.key`, Buffer.from(secret))
      secrets.set(`${name}.${index}.nonce`, Buffer.from(nonce))
    }
  }
  expect(secrets.size).toBe(1 + 4 + 6 + 12)
  for (const pid of [agent.pid, agent.workerPid]) {
    commandLines.push(readFileSync(`/proc/${pid}/cmdline`, 'latin1'))
  }
  const log = readFileSync(agent.logPath)
  expect(log.toString()).toContain('keyprovider.KeyProviderService/WrapKey')
  const files = [repository, agent.root, agent.runDir].flatMap((dir) =>
    globSync('**/*', { cwd: dir })
      .map((name) => join(dir, name))
      .filter((path) => !path.startsWith(join(agent.runDir, 'files')) && statSync(path).isFile()),
  )
  expect(files.length).toBeGreaterThan(20)
  const places: (readonly [string, Buffer])[] = [
    ['log', log],
    ['output', Buffer.from(said.join('\n'))],
    ['arguments', Buffer.from(commandLines.join('\n'), 'latin1')],
    ...files.map((path) => [path, readFileSync(path)] as const),
  ]
  expect(foundIn(places, secrets)).toEqual([])
  // The search finds what is there.
  const passphraseFile = readFileSync(at('node-keys/alice.pem.passphrase'))
  const control = foundIn(
    [
      ['file', passphraseFile],
      ['jwk', readFileSync(at('ec.jwk'))],
    ],
    secrets,
  )
  expect([...new Set(control)]).toEqual(['passphrase in file', 'ec.d in jwk'])
})

function foundIn(
  places: readonly (readonly [string, Buffer])[],
  secrets: ReadonlyMap<string, Buffer>,
): string[] {
  return [...secrets].flatMap(([name, secret]) =>
    spellingsOf(secret).flatMap((spelling) =>
      places.flatMap(([place, bytes]) => (bytes.includes(spelling) ? [`${name} in ${place}`] : [])),
    ),
  )
}

/** Raw, in hex and in base64 at each of its three alignments, the ends that depend on what is around cut off. */
function spellingsOf(secret: Buffer): (Buffer | string)[] {
  const hex = secret.toString('hex')
  const aligned = [0, 1, 2].flatMap((shift) => {
    const text = Buffer.concat([Buffer.alloc(shift), secret])
      .toString('base64')
      .replaceAll('=', '')
    const inner = text.slice(shift === 0 ? 0 : shift + 1, -2)
    return [inner, inner.replaceAll('+', '-').replaceAll('/', '_')]
  })
  return [
    secret,
    hex,
    hex.toUpperCase(),
    secret.toString('latin1'),
    [...secret].join(','),
    ...aligned,
  ]
}
