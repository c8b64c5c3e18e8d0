import { createPublicKey, generateKeyPairSync } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import { parseManifest } from '../../snapshotter/oci/manifest.ts'
import { runIpdr } from '../agent/cli/support/run-ipdr.ts'
import {
  encryptedLayer,
  indexedLayer,
  type PublishedImage,
  plainLayer,
  publishImage,
  type TestLayer,
} from '../snapshotter/layers/published-image.ts'
import { failureOf } from '../support/failure-of.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { type OciLayout, packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode } from '../support/lazy-node.ts'
import { makeTar } from '../support/make-tar.ts'
import { MemoryBlocks } from '../support/memory-blocks.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

// Encrypted images from IPFS on a node whose runtime asks the agent before it starts a container. team-a has the key, as an
// EC P-256 key in JWK; team-b has none.

const opened = new AsyncDisposableStack()
const key = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
const stranger = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
let scratch: Scratch
let node: LazyNode

const base = makeTar(...busyboxFiles('cat', 'echo', 'sh', 'sleep'))
const secret = (content: string): Buffer =>
  makeTar(
    { name: 'secret', content: Buffer.from(content) },
    { name: 'more', content: randomContent(seeded(61), 3_000_000) },
  )

beforeAll(async () => {
  scratch = opened.use(Scratch.open('encrypted'))
  const keysDir = join(scratch.dir, 'keys')
  mkdirSync(join(keysDir, 'team-a'), { recursive: true })
  const jwk = JSON.stringify(key.export({ format: 'jwk' }))
  writeFileSync(join(keysDir, 'team-a', 'publisher.jwk'), jwk, { mode: 0o600 })
  node = opened.use(await LazyNode.start('encrypted', { keysDir, authorizes: true }))
}, 180_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

/** Offers an image of these layers above busybox to the node, and gives back its reference. */
async function publish(layers: readonly TestLayer[]): Promise<PublishedImage & { name: string }> {
  const blocks = new MemoryBlocks()
  const image = await publishImage(blocks, [plainLayer(base), ...layers])
  await node.publisher.offer(blocks)
  return { ...image, name: `ipdr.internal/${image.root.toString()}` }
}

/** What the secret is, as a pod of the namespace reads it. */
async function readIn(namespace: string, image: string): Promise<string> {
  await using container = await node.startContainer(image, ['/bin/sleep', '1000'], namespace)
  return (await node.cri.execSync(container.id, ['/bin/cat', '/secret'])).stdout
}

test('an image that skopeo encrypted, imported as existing tools do, runs with the JWK of its recipient', async () => {
  const tar = makeTar({ name: 'secret', content: Buffer.from('by skopeo\n') })
  const pack = (of: Buffer, name: string): ReturnType<typeof packLayer> =>
    packLayer(Readable.from([of]), 'gzip', join(scratch.dir, name))
  const layers = [await pack(base, 'base'), await pack(tar, 'secret')]
  const plain = writeOciLayout(join(scratch.dir, 'plain'), { layers })
  const publicKey = join(scratch.dir, 'public.pem')
  writeFileSync(publicKey, createPublicKey(key).export({ type: 'spki', format: 'pem' }))
  const dir = join(scratch.dir, 'by-skopeo')
  const images = [`oci:${plain.dir}:latest`, `oci:${dir}:latest`]
  const recipients = ['--encryption-key', `jwe:${publicKey}`]
  await runCommand('skopeo', ['copy', '--insecure-policy', ...recipients, ...images])
  const root = await node.publisher.importAsIs(readLayout(plain, dir))
  await node.cri.pullImage(`ipdr.internal/${root}`)
  expect(await readIn('team-a', `ipdr.internal/${root}`)).toBe('by skopeo\n')
}, 120_000)

test('plain tar that its manifest calls encrypted gzip is read in place, and only what is read of it is fetched', async () => {
  const layer = await encryptedLayer(plainLayer(secret('mislabelled\n')), [key])
  const { name } = await publish([layer])
  await node.cri.pullImage(name)
  expect(await readIn('team-a', name)).toBe('mislabelled\n')
  const { layers } = await statusOf(digestOf(layer.blob))
  expect(layers).toMatchObject([{ format: 'tar', complete: false }])
}, 120_000)

test('what ipdr push writes, encrypted, stays lazy', async () => {
  const layer = await encryptedLayer(await indexedLayer(secret('indexed\n')), [key])
  const { name } = await publish([layer])
  await node.cri.pullImage(name)
  expect(await readIn('team-a', name)).toBe('indexed\n')
  const { layers } = await statusOf(digestOf(layer.blob))
  expect(layers).toMatchObject([{ format: 'tar+zstd', complete: false }])
}, 120_000)

test('an image that ipdr push encrypted runs lazily with the key of its recipient', async () => {
  const dir = join(scratch.dir, 'pushed')
  const tars = [base, secret('pushed\n')]
  const layers = await Promise.all(
    tars.map((tar, at) => packLayer(Readable.from([tar]), 'gzip', join(dir, `${at}`))),
  )
  const layout = writeOciLayout(join(dir, 'layout'), { layers })
  const publicKey = join(dir, 'public.jwk')
  writeFileSync(publicKey, JSON.stringify(createPublicKey(key).export({ format: 'jwk' })))
  const root = await node.publisher.push(layout, undefined, ['--encrypt-to', publicKey])
  await node.cri.pullImage(`ipdr.internal/${root}`)
  expect(await readIn('team-a', `ipdr.internal/${root}`)).toBe('pushed\n')
  await expect(readIn('team-b', `ipdr.internal/${root}`)).rejects.toThrow(/may not see layer/)
  const places = ['--repository', node.publisher.repository, '-o', 'json']
  const { stdout } = await runIpdr(['inspect', root, ...places])
  const [inspected] = (JSON.parse(stdout) as { manifests: { layers: { digest: string }[] }[] })
    .manifests
  const { layers: held } = await statusOf(inspected?.layers[1]?.digest)
  expect(held).toMatchObject([{ format: 'tar+zstd', complete: false }])
}, 120_000)

test('an image for somebody else fails the pull, and containerd says for whom it is and where a key belongs', async () => {
  const { name } = await publish([
    await encryptedLayer(plainLayer(secret('for another\n')), [stranger]),
  ])
  const failure = await failureOf(() => node.cri.pullImage(name))
  expect(failure.message).toMatch(/is encrypted for jwe, and no key of this node opens it/)
  expect(failure.message).toContain('decryption.keysDir')
}, 120_000)

test('a pod of a namespace without the key does not start on an image that is here decrypted, nor on one that claims its chain ID', async () => {
  const tar = secret('of team-a\n')
  const image = await publish([await encryptedLayer(await indexedLayer(tar), [key])])
  await node.cri.pullImage(image.name)
  expect(await readIn('team-a', image.name)).toBe('of team-a\n')
  await expect(readIn('team-b', image.name)).rejects.toThrow(
    /pods of namespace team-b may not see layer sha256:/,
  )
  // No registry is asked for what is imported, and containerd does not unpack what it has a snapshot of.
  const thief = await importClaiming(tar)
  await expect(readIn('team-b', thief)).rejects.toThrow(
    /pods of namespace team-b may not see layer sha256:/,
  )
  expect(await readIn('team-a', image.name)).toBe('of team-a\n')
}, 120_000)

test('pods on images that are not encrypted start in every namespace', async () => {
  const { name } = await publish([plainLayer(secret('for all\n'))])
  await node.cri.pullImage(name)
  expect(await readIn('team-b', name)).toBe('for all\n')
}, 120_000)

test('once a layer turns out to have another HMAC, its container is killed, none starts on it, and both say so', async () => {
  const layer = await encryptedLayer(await indexedLayer(secret('tampered\n')), [key])
  const option = 'org.opencontainers.image.enc.pubopts'
  const text = Buffer.from(layer.annotations?.[option] ?? '', 'base64').toString()
  const hmac = Buffer.alloc(32, 1).toString('base64')
  const changed = text.replace(/"hmac":"[^"]*"/, `"hmac":"${hmac}"`)
  const annotations = { ...layer.annotations, [option]: Buffer.from(changed).toString('base64') }
  const { name } = await publish([{ ...layer, annotations }])
  await node.cri.pullImage(name)
  await using container = await node.startContainer(name, ['/bin/sleep', '1000'], 'team-a')
  const killed = node.agent.logged('the container of snapshot')
  const pulled = await runIpdr(['pull', name, '--all', '--agent', node.agent.adminSocket])
  expect(pulled).toMatchObject({ exitCode: 76 })
  expect((await killed).msg).toMatch(
    /was killed: its layer sha256:.* is not what its image promised/,
  )
  const ended = await node.cri.whenExited(container.id, AbortSignal.timeout(30_000))
  expect(ended.exitCode).toBe(137)
  await expect(readIn('team-a', name)).rejects.toThrow(/is not what its image promises/)
}, 120_000)

test('no key is in what the agent logs, in its arguments, or in its folder', async () => {
  const { d = '' } = key.export({ format: 'jwk' })
  const bytes = Buffer.from(d, 'base64url')
  const spellings = [d, bytes.toString('base64'), bytes.toString('hex')]
  const files = await runCommand('grep', [
    '-rlaF',
    ...spellings.flatMap((each) => ['-e', each]),
    node.agent.root,
    node.agent.runDir,
    node.agent.logPath,
  ]).catch(() => '')
  expect(files).toBe('')
  for (const pid of [node.agent.pid, node.agent.workerPid]) {
    const argv = readFileSync(`/proc/${pid}/cmdline`, 'latin1')
    expect(spellings.filter((each) => argv.includes(each))).toEqual([])
  }
})

/** The layer as the agent lists it. */
async function statusOf(digest: string | undefined): Promise<{ layers: readonly object[] }> {
  using admin = node.agent.admin()
  const { layers } = await admin.calls.ListLayers({}, { signal: AbortSignal.timeout(10_000) })
  return { layers: layers.filter((layer) => layer.digest === digest) }
}

/** Imports an image into containerd whose config has the diff IDs of busybox and `tar`, and whose layers are something else. */
async function importClaiming(tar: Buffer): Promise<string> {
  const dir = join(scratch.dir, 'thief')
  const empty = (name: string): ReturnType<typeof packLayer> =>
    packLayer(Readable.from([makeTar({ name })]), 'gzip', join(scratch.dir, 'thief-layers'))
  const layers = [await empty('one'), await empty('two')].map((layer, index) => ({
    ...layer,
    diffId: digestOf(index === 0 ? base : tar),
  }))
  const layout = writeOciLayout(dir, { layers })
  const archive = join(scratch.dir, 'thief.tar')
  await runCommand('tar', ['-cf', archive, '-C', layout.dir, '.'])
  const words = ['images', 'import', '--base-name', 'thief.local/image', '--snapshotter', 'ipdr']
  await node.containerd.ctr(['-n', 'k8s.io', ...words, archive])
  const name = `thief.local/image:${layout.tag}`
  await expect.poll(() => node.cri.imageStatus(name), { timeout: 10_000 }).toBeDefined()
  return name
}

/** The layout that skopeo wrote into `dir` from `plain`. */
function readLayout(plain: OciLayout, dir: string): OciLayout {
  const index = JSON.parse(readFileSync(join(dir, 'index.json'), 'utf8')) as {
    manifests: { digest: OciLayout['manifestDigest'] }[]
  }
  const manifestDigest = index.manifests[0]?.digest ?? plain.manifestDigest
  const bytes = readFileSync(join(dir, 'blobs/sha256', manifestDigest.slice(7)))
  expect(parseManifest(bytes, 'the manifest')).toMatchObject({
    layers: [{ mediaType: expect.stringContaining('+encrypted') }, {}],
  })
  return { ...plain, dir, manifestDigest }
}
