import { createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { LayerEncryptor } from '../../../snapshotter/encryption/encrypt-layer.ts'
import { parseLayerEncryption } from '../../../snapshotter/encryption/layer-encryption.ts'
import { PrivateKeys } from '../../../snapshotter/encryption/private-keys.ts'
import { jweRecipient } from '../../../snapshotter/encryption/recipient.ts'
import { unwrapLayerKey } from '../../../snapshotter/encryption/unwrap-layer-key.ts'
import { type Descriptor, descriptorSchema } from '../../../snapshotter/oci/descriptor.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { type ImageManifest, parseManifest } from '../../../snapshotter/oci/manifest.ts'
import { type OciLayout, packLayer, writeOciLayout } from '../../support/images/oci-layout.ts'
import { makeTar } from '../../support/make-tar.ts'
import { runCommand } from '../../support/run-command.ts'
import { Scratch } from '../../support/scratch.ts'
import { seeded } from '../../support/seeded.ts'

const random = seeded(31)
const content = Buffer.from(Array.from({ length: 300_000 }, () => random(256)))

const scratch = Scratch.open('skopeo')
let plain: OciLayout

beforeAll(async () => {
  const tar = join(scratch.dir, 'layer.tar')
  writeFileSync(tar, makeTar({ name: 'data', content }))
  const layers = [await packLayer(tar, 'gzip', join(scratch.dir, 'packed'))]
  plain = writeOciLayout(join(scratch.dir, 'plain'), { layers })
})
afterAll(() => scratch[Symbol.asyncDispose]())

const blobPath = (dir: string, digest: string): string =>
  join(dir, 'blobs/sha256', digest.slice('sha256:'.length))

/** The manifest and the only layer of a layout. */
function readLayout(dir: string): { manifest: ImageManifest; layer: Descriptor } {
  const index = JSON.parse(readFileSync(join(dir, 'index.json'), 'utf8')) as {
    manifests: unknown[]
  }
  const { digest } = descriptorSchema.parse(index.manifests[0])
  const manifest = parseManifest(readFileSync(blobPath(dir, digest)), 'manifest')
  if (manifest.kind !== 'manifest') throw new Error('not an image')
  const [layer] = manifest.layers
  if (layer === undefined) throw new Error('no layer')
  return { manifest, layer }
}

function writeKeys(name: string, key: KeyObject): { publicPath: string; privatePath: string } {
  const [publicPath, privatePath] = [`${name}.pub.pem`, `${name}.pem`].map((file) =>
    join(scratch.dir, file),
  ) as [string, string]
  writeFileSync(publicPath, createPublicKey(key).export({ type: 'spki', format: 'pem' }))
  writeFileSync(privatePath, key.export({ type: 'pkcs8', format: 'pem' }))
  return { publicPath, privatePath }
}

const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey

test.each([
  ['an EC key', 'read-ec', [ec]],
  ['an RSA key', 'read-rsa', [rsa]],
  ['both at once', 'read-both', [ec, rsa]],
])('a layer that skopeo encrypted for %s is opened by each of its keys', async (_, name, keys) => {
  const dir = join(scratch.dir, name)
  const recipients = keys.flatMap((key, at) => [
    '--encryption-key',
    `jwe:${writeKeys(`${name}-${at}`, key).publicPath}`,
  ])
  const images = [`oci:${plain.dir}:latest`, `oci:${dir}:latest`]
  await runCommand('skopeo', ['copy', '--insecure-policy', ...recipients, ...images])
  const { layer } = readLayout(dir)
  expect(layer.mediaType).toBe('application/vnd.oci.image.layer.v1.tar+gzip+encrypted')
  const ciphertext = readFileSync(blobPath(dir, layer.digest))
  const encryption = parseLayerEncryption(layer.annotations ?? {}, layer.digest)
  for (const key of keys) {
    const keyHere = new PrivateKeys([key])
    const signal = AbortSignal.timeout(10_000)
    const opened = await unwrapLayerKey(encryption, keyHere, layer.digest, signal)
    expect(digestOf(opened.key.apply(0, ciphertext))).toBe(plain.layers[0]?.digest)
    expect(opened.plainDigest).toBe(plain.layers[0]?.digest)
    const hmac = opened.key.hmac()
    hmac.update(ciphertext)
    expect(hmac.matches(encryption.hmac)).toBe(true)
  }
})

test('a layer that was encrypted here is decrypted by skopeo byte for byte, with either key', async () => {
  const dir = join(scratch.dir, 'ours')
  mkdirSync(join(dir, 'blobs/sha256'), { recursive: true })
  const write = (bytes: Uint8Array): { digest: string; size: number } => {
    writeFileSync(blobPath(dir, digestOf(bytes)), bytes)
    return { digest: digestOf(bytes), size: bytes.length }
  }
  const { manifest, layer } = readLayout(plain.dir)
  const blob = readFileSync(blobPath(plain.dir, layer.digest))
  const encryptor = new LayerEncryptor()
  const half = Math.floor(blob.length / 2)
  const pieces = [blob.subarray(0, half), blob.subarray(half)].map((piece) => encryptor.push(piece))
  const annotations = await encryptor.finish({
    plainDigest: layer.digest,
    recipients: [ec, rsa].map((key) => jweRecipient(createPublicKey(key))),
    signal: new AbortController().signal,
  })
  const mediaType = `${layer.mediaType}+encrypted`
  write(readFileSync(blobPath(plain.dir, manifest.config.digest)))
  const written = write(
    Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: manifest.mediaType,
        config: manifest.config,
        layers: [{ mediaType, ...write(Buffer.concat(pieces)), annotations }],
      }),
    ),
  )
  writeFileSync(join(dir, 'oci-layout'), JSON.stringify({ imageLayoutVersion: '1.0.0' }))
  writeFileSync(
    join(dir, 'index.json'),
    JSON.stringify({
      schemaVersion: 2,
      manifests: [
        {
          mediaType: manifest.mediaType,
          ...written,
          annotations: { 'org.opencontainers.image.ref.name': 'latest' },
        },
      ],
    }),
  )
  for (const [name, key] of [
    ['opened-ec', ec],
    ['opened-rsa', rsa],
  ] as const) {
    const opened = join(scratch.dir, name)
    const { privatePath } = writeKeys(name, key)
    const images = [`oci:${dir}:latest`, `oci:${opened}:latest`]
    const decrypt = ['--decryption-key', privatePath]
    await runCommand('skopeo', ['copy', '--insecure-policy', ...decrypt, ...images])
    const decrypted = readLayout(opened).layer
    expect(decrypted.digest).toBe(layer.digest)
    expect(Buffer.compare(readFileSync(blobPath(opened, decrypted.digest)), blob)).toBe(0)
  }
})
