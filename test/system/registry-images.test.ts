import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import {
  chunkedLayer,
  estargzLayer,
  type TestLayer,
} from '../snapshotter/layers/published-image.ts'
import { busyboxPath } from '../support/debian-programs.ts'
import { failureOf } from '../support/failure-of.ts'
import { layoutOfBlobs } from '../support/images/layout-of-blobs.ts'
import type { OciLayout } from '../support/images/oci-layout.ts'
import { KubeApi } from '../support/kube-api.ts'
import { LazyNode, onceServed } from '../support/lazy-node.ts'
import { makeTar } from '../support/make-tar.ts'
import { type OciRegistry, startOciRegistry } from '../support/oci-registry.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'
import { startTokenServer, type TokenServer } from '../support/token-server.ts'

// A private registry beside IPFS: Debian's docker-registry, which wants tokens; containerd pulls by the image's ordinary name,
// with the credentials that CRI's call brings along; the agent stands between, and reads layers with the same.

const opened = new AsyncDisposableStack()
const alice = { username: 'alice', password: 'a-s3cret' }
let tokens: TokenServer
let registry: OciRegistry
let cluster: KubeApi
let node: LazyNode
let images: Readonly<Record<'estargz' | 'chunked', Image>>

type Image = { readonly name: string; readonly layout: OciLayout }

beforeAll(async () => {
  const scratch = opened.use(Scratch.open('registry-images'))
  tokens = opened.use(await startTokenServer(scratch.dir))
  tokens.users.set('pusher', 'push').set(alice.username, alice.password)
  tokens.readers.set(alice.username, ['team/estargz', 'team/chunked'])
  const push = { username: 'pusher', password: 'push' }
  const auth = { kind: 'token', server: tokens, push } as const
  registry = opened.use(await startOciRegistry(scratch, { auth }))
  const pushed = async (name: string, layers: readonly TestLayer[]): Promise<Image> => {
    const process = { Env: ['PATH=/bin'] }
    const layout = layoutOfBlobs(join(scratch.dir, name), layers, { process })
    return { name: await registry.push(layout, `team/${name}`), layout }
  }
  images = {
    estargz: await pushed('estargz', [estargzLayer(systemTar()), estargzLayer(dataTar(1))]),
    chunked: await pushed('chunked', [
      await chunkedLayer(systemTar()),
      await chunkedLayer(dataTar(2)),
    ]),
  }
  cluster = opened.use(await KubeApi.start())
  const kubeconfig = join(scratch.dir, 'kubeconfig')
  cluster.writeKubeconfig(kubeconfig)
  node = opened.use(
    await LazyNode.start('registry', {
      imageService: true,
      credentials: { pullSecrets: { kubeconfig } },
      foregroundDeadlineMs: 20_000,
    }),
  )
}, 180_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

function systemTar(): Buffer {
  const links = ['cat', 'sleep', 'sha256sum', 'echo'].map((name) => ({
    name: `bin/${name}`,
    typeflag: '2',
    linkName: 'busybox',
  }))
  return makeTar(
    { name: './', typeflag: '5', mode: 0o755 },
    { name: 'bin/', typeflag: '5', mode: 0o755 },
    { name: 'bin/busybox', mode: 0o755, content: readFileSync(busyboxPath) },
    ...links,
  )
}

/** 30 MB that no container reads, but for small files and those that a test asks for. */
function dataTar(seed: number): Buffer {
  const random = seeded(seed)
  return makeTar(
    { name: 'data/', typeflag: '5', mode: 0o755 },
    { name: 'data/small', content: `small ${seed}\n` },
    ...Array.from({ length: 10 }, (_, index) => ({
      name: `data/large-${index}`,
      content: randomContent(random, 3_000_000),
    })),
  )
}

/** Bytes of blobs that the registry has sent to anybody. */
function blobBytesSent(): number {
  return registry.answers
    .filter(({ method, uri }) => method === 'GET' && uri.includes('/blobs/'))
    .reduce((sum, { bytes }) => sum + bytes, 0)
}

describe.each(['estargz', 'chunked'] as const)('a private image of %s', (kind) => {
  test('runs after a part of its bytes, which the credentials of its pull have moved', async () => {
    const { name, layout } = images[kind]
    const before = blobBytesSent()
    tokens.asked.length = 0
    await node.cri.pullImageFor('team-a', name, alice)
    await using container = await node.startContainer(name, ['sleep', 'infinity'])
    const read = await node.cri.execSync(container.id, ['cat', '/data/small'])
    expect(read).toMatchObject({ exitCode: 0, stdout: expect.stringMatching(/^small \d\n$/) })
    const size = layout.layers.reduce((sum, layer) => sum + layer.size, 0)
    expect(blobBytesSent() - before).toBeLessThan(size / 3)
    const blobs = await node.downloadedBlobs()
    for (const { digest } of layout.layers) expect(blobs).not.toContain(digest)
    expect(new Set(tokens.asked.map(({ user }) => user))).toEqual(new Set(['alice']))
    expect(await node.metric('ipdr_registry_received_bytes_total')).toBeGreaterThan(0)
  }, 120_000)

  test('reads wrong bytes as EIO, and right ones once they are right', async () => {
    const { name, layout } = images[kind]
    await using container = await node.startContainer(name, ['sleep', 'infinity'])
    const path = registry.blobPath(layout.layers[1]?.digest ?? '')
    const honest = readFileSync(path)
    // In the last of the large files.
    const bytes = Buffer.from(honest)
    for (let at = bytes.length - 1_000_000; at < bytes.length - 900_000; at++) {
      bytes[at] = (bytes[at] ?? 0) ^ 0xff
    }
    writeFileSync(path, bytes)
    const read = ['sha256sum', '/data/large-9']
    const spoilt = await node.cri.execSync(container.id, read)
    expect(spoilt.exitCode).not.toBe(0)
    expect(spoilt.stderr).toContain('Input/output error')
    writeFileSync(path, honest)
    expect((await node.cri.execSync(container.id, read)).exitCode).toBe(0)
  }, 120_000)
})

test('a namespace without credentials is refused, and those of another are not used for it', async () => {
  const { name } = images.estargz
  await node.cri.removeImage(name)
  tokens.asked.length = 0
  const refused = await failureOf(() => node.cri.pullImageFor('team-b', name))
  expect(refused.message).toMatch(/401|authorization|insufficient_scope/)
  expect(tokens.asked.filter(({ user }) => user !== undefined)).toEqual([])
  await node.cri.pullImageFor('team-a', name, alice)
}, 60_000)

test('a running pod reads what is here while the registry is down, and the rest when it is back', async () => {
  const { name } = images.chunked
  await using container = await node.startContainer(name, ['sleep', 'infinity'])
  await node.cri.execSync(container.id, ['cat', '/data/small'])
  await registry.stop()
  const here = await node.cri.execSync(container.id, ['cat', '/data/small'])
  expect(here.exitCode).toBe(0)
  const outage = node.agent.logged('layers cannot be read from')
  const reading = node.cri.execSync(container.id, ['sha256sum', '/data/large-0'])
  expect((await outage).msg).toContain(`${registry.host}/team/chunked`)
  await registry.start()
  expect((await reading).exitCode).toBe(0)
}, 60_000)

test('credentials that have ended are named, and a new pull of the namespace renews them', async () => {
  const { name } = images.chunked
  await using container = await node.startContainer(name, ['sleep', 'infinity'])
  // Every request needs a new token, and the password for it has changed.
  tokens.lifeSeconds = 0
  tokens.users.set(alice.username, 'a-newer-s3cret')
  await node.agent.killWorker()
  const outage = node.agent.logged('layers cannot be read from')
  const reading = node.cri.execSync(container.id, ['sha256sum', '/data/large-1'])
  expect((await outage).msg).toMatch(/wants credentials|does not take the credentials/)
  const renewed = { ...alice, password: 'a-newer-s3cret' }
  await onceServed(() => node.cri.pullImageFor('team-a', name, renewed))
  expect((await reading).exitCode).toBe(0)
}, 60_000)

test('a pull secret of the namespace is enough after a restart, which forgets what the kubelet gave', async () => {
  const { name } = images.chunked
  await using container = await onceServed(() => node.startContainer(name, ['sleep', 'infinity']))
  const auth = Buffer.from(`alice:${tokens.users.get('alice')}`).toString('base64')
  const content = JSON.stringify({ auths: { [registry.host]: { auth } } })
  const type = 'kubernetes.io/dockerconfigjson'
  const data = { '.dockerconfigjson': Buffer.from(content).toString('base64') }
  const read = (file: string) => node.cri.execSync(container.id, ['sha256sum', `/data/${file}`])
  cluster.put('secrets', { metadata: { namespace: 'team-b', name: 'pull' }, type, data })
  await node.agent.killWorker()
  const outage = node.agent.logged('layers cannot be read from')
  const reading = read('large-2')
  expect((await outage).msg).toContain('wants credentials, and none were found for it')
  cluster.put('secrets', { metadata: { namespace: 'team-a', name: 'pull' }, type, data })
  expect((await reading).exitCode).toBe(0)
}, 60_000)

test('no secret is in the log', () => {
  expect(readFileSync(node.agent.logPath, 'utf8')).not.toMatch(/s3cret/)
})
