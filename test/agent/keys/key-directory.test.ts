import { createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import { chmodSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { KeyDirectory } from '../../../agent/keys/key-directory.ts'
import { encryptJwe } from '../../../snapshotter/encryption/jwe.ts'
import type { WrappedKey } from '../../../snapshotter/encryption/layer-encryption.ts'
import { failureOf } from '../../support/failure-of.ts'
import { runCommand } from '../../support/run-command.ts'
import { Scratch } from '../../support/scratch.ts'

const LAYER = 'sha256:1'
const OPTIONS = Buffer.from('the private options of a layer')

const scratch = Scratch.open('key-directory')
afterAll(() => scratch[Symbol.asyncDispose]())

const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey
const signal = new AbortController().signal

let directories = 0

/** A directory of these files, each with mode 600, and what it warned of. */
function directoryOf(files: Record<string, string>): {
  dir: string
  keys: KeyDirectory
  warnings: string[]
  write: (name: string, content: string, mode?: number) => void
} {
  const dir = join(scratch.dir, `keys-${directories++}`)
  mkdirSync(dir, { mode: 0o700 })
  const write = (name: string, content: string, mode = 0o600): void => {
    writeFileSync(join(dir, name), content)
    chmodSync(join(dir, name), mode)
  }
  for (const [name, content] of Object.entries(files)) write(name, content)
  const warnings: string[] = []
  const log = { warn: (_: unknown, sentence: string) => void warnings.push(sentence) }
  return { dir, keys: new KeyDirectory(dir, { log }), warnings, write }
}

const jwkOf = (key: KeyObject): string =>
  JSON.stringify({ ...key.export({ format: 'jwk' }), kid: 'key', alg: 'ECDH-ES+A256KW' })
const pemOf = (key: KeyObject, passphrase?: string): string =>
  key
    .export({
      type: 'pkcs8',
      format: 'pem',
      ...(passphrase === undefined ? {} : { cipher: 'aes-256-cbc', passphrase }),
    })
    .toString()

async function wrappedFor(key: KeyObject): Promise<WrappedKey> {
  return { kind: 'jwe', bytes: await encryptJwe(OPTIONS, createPublicKey(key)) }
}

const opened = Buffer.from(OPTIONS)
const unwrap = async (keys: KeyDirectory, wrapped: WrappedKey): Promise<Buffer | undefined> => {
  const found = await keys.unwrap(wrapped, LAYER, signal)
  return found === undefined ? undefined : Buffer.from(found)
}

test('a key is unwrapped by the private key that fits, JWK or PEM, and what is for nobody here is nobody’s', async () => {
  const { keys } = directoryOf({ 'a.jwk': jwkOf(ec), 'b.pem': pemOf(rsa) })
  expect(await unwrap(keys, await wrappedFor(ec))).toEqual(opened)
  expect(await unwrap(keys, await wrappedFor(rsa))).toEqual(opened)
  const stranger = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
  expect(await unwrap(keys, await wrappedFor(stranger))).toBeUndefined()
  expect(await unwrap(directoryOf({}).keys, await wrappedFor(ec))).toBeUndefined()
})

test('what this agent wrapped as a key provider is opened too, what another provider wrapped is not looked at', async () => {
  const { keys } = directoryOf({ 'a.jwk': jwkOf(ec) })
  const { bytes } = await wrappedFor(ec)
  expect(await unwrap(keys, { kind: 'provider', provider: 'ipdr', bytes })).toEqual(opened)
  expect(await unwrap(keys, { kind: 'provider', provider: 'vault', bytes })).toBeUndefined()
})

test('an encrypted key is opened by the passphrase in the file beside it', async () => {
  const { dir, keys, write, warnings } = directoryOf({ 'a.pem': pemOf(ec, 'right') })
  const wrapped = await wrappedFor(ec)
  const missing = await failureOf(() => unwrap(keys, wrapped))
  expect(missing).toMatchObject({ name: 'KeyError', code: 'PERMISSION_DENIED' })
  expect(missing.message).toBe(
    `no private key in ${dir} opens layer ${LAYER}, and not all there can be used: ${dir}/a.pem is encrypted and no passphrase was given for it: put it into ${dir}/a.pem.passphrase, with mode 600`,
  )
  write('a.pem.passphrase', 'wrong\n')
  const wrong = await failureOf(() => unwrap(keys, wrapped))
  expect(wrong).toMatchObject({ name: 'KeyError', code: 'PERMISSION_DENIED' })
  expect(wrong.message).toContain(`the passphrase of ${dir}/a.pem is wrong: put it into`)
  write('a.pem.passphrase', 'right\n')
  expect(await unwrap(keys, wrapped)).toEqual(opened)
  expect(warnings.map((sentence) => sentence.split(':')[0])).toEqual([
    `${dir}/a.pem is encrypted and no passphrase was given for it`,
    `the passphrase of ${dir}/a.pem is wrong`,
  ])
  expect([missing.message, wrong.message, ...warnings].join()).not.toContain('right')
})

test.each([
  ['a.pem', 0o640],
  ['a.pem', 0o604],
  ['a.pem.passphrase', 0o644],
])('%s is refused with mode %o, with the command that mends it', async (name, mode) => {
  const { dir, keys } = directoryOf({
    'a.pem': pemOf(ec, 'right'),
    'a.pem.passphrase': 'right',
    'b.pem': pemOf(rsa),
  })
  chmodSync(join(dir, name), mode)
  const failure = await failureOf(async () => unwrap(keys, await wrappedFor(ec)))
  expect(failure).toMatchObject({ name: 'KeyError', code: 'PERMISSION_DENIED' })
  expect(failure.message).toContain(
    `${dir}/${name} holds a secret and has mode ${mode.toString(8)}, so others than its owner may read it: run chmod 600 ${dir}/${name}`,
  )
  expect(await unwrap(keys, await wrappedFor(rsa)), 'the other key is used').toEqual(opened)
  chmodSync(join(dir, name), 0o600)
  expect(await unwrap(keys, await wrappedFor(ec)), 'mended without a restart').toEqual(opened)
})

test('keys that are added, replaced and removed count from the next layer on', async () => {
  const { dir, keys, write } = directoryOf({})
  const [forEc, forRsa] = [await wrappedFor(ec), await wrappedFor(rsa)]
  expect(await unwrap(keys, forEc)).toBeUndefined()
  write('a.pem', pemOf(ec))
  expect(await unwrap(keys, forEc)).toEqual(opened)
  write('a.pem', pemOf(rsa))
  expect(await unwrap(keys, forRsa)).toEqual(opened)
  expect(await unwrap(keys, forEc)).toBeUndefined()
  rmSync(join(dir, 'a.pem'))
  expect(await unwrap(keys, forRsa)).toBeUndefined()
})

test('a file is read again only when it changed', async () => {
  const { keys, write } = directoryOf({ 'a.pem': pemOf(ec), 'b.pem': pemOf(rsa) })
  const keyOf = async (name: string): Promise<KeyObject | undefined> =>
    (await keys.keys(signal)).keys.find((each) => each.name === name)?.key
  const [a, b] = [await keyOf('a.pem'), await keyOf('b.pem')]
  write('b.pem', `${pemOf(rsa)}\n`)
  expect(await keyOf('a.pem')).toBe(a)
  expect(await keyOf('b.pem')).not.toBe(b)
})

test('a mounted Secret is read: links into a hidden directory', async () => {
  const { dir, keys } = directoryOf({})
  mkdirSync(join(dir, '..2026'))
  writeFileSync(join(dir, '..2026/a.jwk'), jwkOf(ec), { mode: 0o400 })
  symlinkSync('..2026', join(dir, '..data'))
  symlinkSync('..data/a.jwk', join(dir, 'a.jwk'))
  expect(await unwrap(keys, await wrappedFor(ec))).toEqual(opened)
})

test('public halves beside the keys are passed over, whoever may read them', async () => {
  const { keys, write, warnings } = directoryOf({ 'a.pem': pemOf(ec) })
  const spki = createPublicKey(rsa).export({ type: 'spki', format: 'pem' }).toString()
  for (const name of ['b.pub', 'b.pub.pem', 'b.pub.jwk']) write(name, spki, 0o644)
  expect(await unwrap(keys, await wrappedFor(rsa))).toBeUndefined()
  expect(warnings).toEqual([])
})

test('files that are no keys are named and do not hinder the keys beside them', async () => {
  const secret = 'it might be a key'
  const { dir, keys, write, warnings } = directoryOf({ 'a.pem': pemOf(ec), 'b.pem': secret })
  write('c.pem', 'x'.repeat(65_537))
  await runCommand('mkfifo', ['-m', '600', join(dir, 'd.pem')])
  expect(await unwrap(keys, await wrappedFor(ec))).toEqual(opened)
  expect(warnings).toEqual([
    `${dir}/b.pem is not a private key in JWK or PEM`,
    `${dir}/c.pem has more than 65536 bytes`,
    `${dir}/d.pem is not a file`,
  ])
  const failure = await failureOf(async () => unwrap(keys, await wrappedFor(rsa)))
  expect(failure.message).toContain('b.pem is not a private key in JWK or PEM (and 2 more)')
  expect(failure.message).not.toContain(secret)
  expect(warnings, 'said once').toHaveLength(3)
})

test('a directory that is missing, or has too many keys or files, is refused with what to do', async () => {
  const wrapped = await wrappedFor(ec)
  const log = { warn: () => {} }
  const missing = new KeyDirectory(join(scratch.dir, 'nowhere'), { log })
  expect(await failureOf(() => unwrap(missing, wrapped))).toMatchObject({
    name: 'KeyError',
    code: 'NOT_FOUND',
    message: expect.stringMatching(/nowhere does not exist: make it \(mode 700\)/) as string,
  })
  const pem = pemOf(ec)
  const many = directoryOf(
    Object.fromEntries(Array.from({ length: 65 }, (_, index) => [`${index}.pem`, pem])),
  )
  expect(await failureOf(() => unwrap(many.keys, wrapped))).toMatchObject({
    name: 'KeyError',
    code: 'RESOURCE_EXHAUSTED',
    message: expect.stringMatching(/has 65 keys, 64 keys are tried: remove/) as string,
  })
  const crowded = directoryOf(
    Object.fromEntries(Array.from({ length: 385 }, (_, index) => [`.${index}`, ''])),
  )
  expect(await failureOf(() => unwrap(crowded.keys, wrapped))).toMatchObject({
    code: 'RESOURCE_EXHAUSTED',
    message: expect.stringMatching(/has more than 384 files/) as string,
  })
})

test('what is no JWE is refused, and a caller that went away ends the search', async () => {
  const { keys } = directoryOf({ 'a.pem': pemOf(ec) })
  const garbage = { kind: 'jwe', bytes: Buffer.from('{"ciphertext": 1}') } as const
  expect(await failureOf(() => unwrap(keys, garbage))).toMatchObject({
    name: 'LayerError',
    code: 'INVALID_ARGUMENT',
  })
  const stopped = AbortSignal.abort(new Error('stopped'))
  const wrapped = await wrappedFor(ec)
  expect(await failureOf(() => keys.unwrap(wrapped, LAYER, stopped))).toMatchObject({
    message: 'stopped',
  })
})
