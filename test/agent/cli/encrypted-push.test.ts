import { createPublicKey, generateKeyPairSync } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type OciLayout, packLayer, writeOciLayout } from '../../support/images/oci-layout.ts'
import { makeTar } from '../../support/make-tar.ts'
import { Scratch } from '../../support/scratch.ts'
import { type Ended, runIpdr } from './support/run-ipdr.ts'
import { scratchDir } from './support/scratch-dir.ts'

const SECRET = makeTar({ name: 'etc/secret', content: 'only for some\n' })
const BASE = makeTar({ name: 'etc/motd', content: 'for everybody\n' })

const scratch = Scratch.open('cli-encrypted')
const key = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
let layout: OciLayout
let publicKey: string

beforeAll(async () => {
  const layers = [
    await packLayer(Readable.from([BASE]), 'gzip', join(scratch.dir, 'layers')),
    await packLayer(Readable.from([SECRET]), 'gzip', join(scratch.dir, 'layers')),
  ]
  layout = writeOciLayout(join(scratch.dir, 'layout'), { layers })
  publicKey = join(scratch.dir, 'key.pub.pem')
  writeFileSync(publicKey, createPublicKey(key).export({ type: 'spki', format: 'pem' }))
})
afterAll(() => scratch[Symbol.asyncDispose]())

const push = async (...words: string[]): Promise<Ended> =>
  runIpdr(['push', `oci:${layout.dir}`, '--repository', await scratchDir(), ...words], {
    env: { OCICRYPT_KEYPROVIDER_CONFIG: join(scratch.dir, 'absent.conf') },
  })

describe('ipdr push --encrypt-to', () => {
  test('says for whom each layer is encrypted, and inspect says it too without a key', async () => {
    const repository = await scratchDir()
    const words = [
      'push',
      `oci:${layout.dir}`,
      '--repository',
      repository,
      '--encrypt-to',
      publicKey,
    ]
    const pushed = await runIpdr([...words, '--encrypt-layer', '-1', '-o', 'json', '-q'])
    expect(pushed).toMatchObject({ exitCode: 0, stderr: '' })
    const document = JSON.parse(pushed.stdout) as { root: string }
    expect(document).toMatchObject({
      layers: [{ recipientKinds: null }, { recipientKinds: ['jwe'] }],
      leftOut: [],
    })
    const inspected = await runIpdr(['inspect', document.root, '--repository', repository])
    expect(inspected.stdout).toMatch(
      /sha256:\S+ +encrypted .* with its key by its table: 1 recipient \(jwe\), AES_256_CTR_HMAC_SHA256\n/,
    )
    expect(inspected.stdout).toMatch(/2 layers, .*; all can be read lazily; 1 encrypted\n/)
    const text = await runIpdr([...words, '-o', 'text'])
    expect(text.stdout.match(/ encrypted for jwe\n/g)).toHaveLength(2)
  })

  test('of all layers makes an image that ipdr index refuses, with what to do', async () => {
    const repository = await scratchDir()
    const words = [
      'push',
      `oci:${layout.dir}`,
      '--repository',
      repository,
      '--encrypt-to',
      publicKey,
    ]
    const { stdout } = await runIpdr([...words, '-q'])
    const indexed = await runIpdr(['index', stdout.trim(), '--repository', repository])
    expect(indexed).toMatchObject({ exitCode: 1, stdout: '' })
    expect(indexed.stderr).toMatch(/every layer of .* is encrypted, .* ipdr push --encrypt-to/)
  })

  test.each([
    ['--encrypt-layer without a recipient', 2, ['--encrypt-layer', '0'], /nothing says for whom/],
    ['half a layer', 2, ['--encrypt-to', 'KEY', '--encrypt-layer', '0.5'], /takes a whole number/],
    [
      'a layer that is not there',
      65,
      ['--encrypt-to', 'KEY', '--encrypt-layer', '2'],
      /layer 2 was to be encrypted, .* has layers -2 to 1/,
    ],
    [
      'a prefetch list beside it',
      2,
      ['--encrypt-to', 'KEY', '--optimize', 'bafy'],
      /would name the files of encrypted layers to everybody/,
    ],
    [
      'a kind of recipient that is not known here',
      2,
      ['--encrypt-to', 'pgp:someone'],
      /pgp: recipients are not encrypted for here/,
    ],
    [
      'a key that is not there',
      66,
      ['--encrypt-to', 'jwe:/nowhere/key.pem'],
      /the public key \/nowhere\/key.pem cannot be read/,
    ],
    [
      'a key that is none',
      65,
      ['--encrypt-to', 'LAYOUT/index.json'],
      /is not a public key in JWK or PEM/,
    ],
    [
      'no configuration of key providers',
      66,
      ['--encrypt-to', 'provider:a:b'],
      /absent.conf cannot be read/,
    ],
    [
      'a key provider that is not in the configuration',
      66,
      ['--encrypt-to', 'provider:a:b', '--key-providers', 'PROVIDERS'],
      /no key provider a in the configuration .* which has down/,
    ],
    [
      'a key provider that is down',
      69,
      ['--encrypt-to', 'provider:down:x', '--key-providers', 'PROVIDERS'],
      /key provider down, .* cannot be reached at unix:\S+: start it/,
    ],
  ])('with %s is refused', async (_, exitCode, words, reason) => {
    const providers = join(scratch.dir, 'providers.conf')
    const down = { grpc: `unix://${scratch.run}/nobody.sock` }
    writeFileSync(providers, JSON.stringify({ 'key-providers': { down } }))
    const given = words.map((word) =>
      word.replace('KEY', publicKey).replace('LAYOUT', layout.dir).replace('PROVIDERS', providers),
    )
    const refused = await push(...given, '-q')
    expect(refused).toMatchObject({ exitCode, stdout: '' })
    expect(refused.stderr).toMatch(reason)
  })

  test('for a key provider without any configuration says how to name it', async () => {
    const words = ['push', `oci:${layout.dir}`, '--repository', await scratchDir()]
    const refused = await runIpdr([...words, '--encrypt-to', 'provider:a:b'])
    expect(refused).toMatchObject({ exitCode: 2, stdout: '' })
    expect(refused.stderr).toContain('Name their configuration with --key-providers')
  })
})
