import { spawnSync } from 'node:child_process'
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { type OciLayout, packLayer, writeOciLayout } from '../../support/images/oci-layout.ts'
import { makeTar } from '../../support/make-tar.ts'
import { type OciRegistry, startOciRegistry } from '../../support/oci-registry.ts'
import { Scratch } from '../../support/scratch.ts'
import { startTokenServer, type TokenServer } from '../../support/token-server.ts'
import { runIpdr } from './support/run-ipdr.ts'
import { scratchDir } from './support/scratch-dir.ts'

// `ipdr push docker://`: an image goes from Debian's docker-registry to IPFS, with nothing of docker's on this machine.

const opened = new AsyncDisposableStack()
const platform = process.arch === 'x64' ? 'linux/amd64' : 'linux/arm64'
let scratch: Scratch
let tokens: TokenServer
let registry: OciRegistry
let layout: OciLayout
let image: string
let authfile: string

beforeAll(async () => {
  scratch = opened.use(Scratch.open('push-registry'))
  tokens = opened.use(await startTokenServer(scratch.dir))
  tokens.users.set('pusher', 'push').set('reader', 's3cret')
  tokens.readers.set('reader', ['team/app', 'team/many'])
  const push = { username: 'pusher', password: 'push' }
  registry = opened.use(
    await startOciRegistry(scratch, { auth: { kind: 'token', server: tokens, push } }),
  )
  const tar = makeTar(
    { name: 'etc/', typeflag: '5', mode: 0o755 },
    { name: 'etc/motd', content: 'hello\n'.repeat(40_000) },
  )
  const layer = await packLayer(Readable.from([tar]), 'gzip', join(scratch.dir, 'layers'))
  layout = writeOciLayout(join(scratch.dir, 'layout'), { layers: [layer] })
  image = await registry.push(layout, 'team/app')
  authfile = join(scratch.dir, 'auth.json')
  writeFileSync(authfile, authsOf('reader:s3cret'))
}, 60_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

function authsOf(userAndPassword: string): string {
  const auth = Buffer.from(userAndPassword).toString('base64')
  return JSON.stringify({ auths: { [registry.host]: { auth } } })
}

type Pushed = {
  readonly root: string
  readonly layers: readonly { readonly sourceDigest: string }[]
  readonly missingPlatforms: readonly string[]
}

async function pushed(words: readonly string[]): Promise<Pushed> {
  const repository = await scratchDir()
  const all = ['push', ...words, '--repository', repository, '-o', 'json', '-q']
  const { exitCode, stdout, stderr } = await runIpdr(all)
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
  return JSON.parse(stdout) as Pushed
}

/** A layout whose index has this machine's image and one for another platform, with a layer of its own. */
async function twoPlatforms(): Promise<OciLayout> {
  const tar = makeTar({ name: 'other', content: 'other\n' })
  const layer = await packLayer(Readable.from([tar]), 'gzip', join(scratch.dir, 'layers'))
  const other = writeOciLayout(join(scratch.dir, 'other'), { layers: [layer] })
  const dir = join(scratch.dir, 'many')
  mkdirSync(dir)
  for (const from of [layout, other]) spawnSync('cp', ['-r', `${from.dir}/.`, dir])
  const manifests = [layout, other].map(({ manifestDigest }, index) => ({
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    digest: manifestDigest,
    size: readFileSync(join(dir, 'blobs/sha256', manifestDigest.slice(7))).length,
    platform:
      index === 0
        ? { os: 'linux', architecture: platform.slice(6) }
        : { os: 'linux', architecture: 'riscv64' },
  }))
  const mediaType = 'application/vnd.oci.image.index.v1+json'
  const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType, manifests }))
  writeFileSync(join(dir, 'blobs/sha256', digestOf(bytes).slice(7)), bytes)
  const annotations = { 'org.opencontainers.image.ref.name': 'latest' }
  const entry = { mediaType, digest: digestOf(bytes), size: bytes.length, annotations }
  writeFileSync(join(dir, 'index.json'), JSON.stringify({ schemaVersion: 2, manifests: [entry] }))
  return { ...layout, dir }
}

describe('push from a registry', () => {
  test('gives the same CID as the same image from a directory', async () => {
    const fromRegistry = await pushed([`docker://${image}`, '--authfile', authfile])
    const fromLayout = await pushed([`oci:${layout.dir}`])
    expect(fromRegistry.root).toBe(fromLayout.root)
  })

  test('takes an image by digest', async () => {
    const name = `${registry.host}/team/app@${layout.manifestDigest}`
    const { layers } = await pushed([`docker://${name}`, '--authfile', authfile])
    expect(layers.map(({ sourceDigest }) => sourceDigest)).toEqual(
      layout.layers.map(({ digest }) => digest),
    )
  })

  test('takes credentials from where docker login puts them', async () => {
    const home = await scratchDir()
    mkdirSync(join(home, '.docker'))
    copyFileSync(authfile, join(home, '.docker/config.json'))
    const repository = await scratchDir()
    const words = ['push', `docker://${image}`, '--repository', repository, '-q']
    const { exitCode, stderr } = await runIpdr(words, { env: { HOME: home } })
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
  })

  test('takes what this machine runs of an index, another platform, or all', async () => {
    const many = `docker://${await registry.push(await twoPlatforms(), 'team/many')}`
    const named = [many, '--authfile', authfile]
    const one = await pushed(named)
    const other = await pushed([...named, '--platform', 'linux/riscv64'])
    const all = await pushed([...named, '--all-platforms'])
    expect(one.layers.map(({ sourceDigest }) => sourceDigest)).toEqual([layout.layers[0]?.digest])
    expect(other.layers).not.toEqual(one.layers)
    expect(all.layers).toEqual([...one.layers, ...other.layers])
    const repository = await scratchDir()
    const words = ['push', ...named, '--platform', 'linux/s390x', '--repository', repository]
    const { exitCode, stderr } = await runIpdr(words)
    expect(exitCode).toBe(66)
    expect(stderr).toContain(`has no image for linux/s390x, only for ${platform}, linux/riscv64`)
  })

  test('checks every byte', async () => {
    const tar = makeTar({ name: 'bent', content: 'bent\n' })
    const layer = await packLayer(Readable.from([tar]), 'gzip', join(scratch.dir, 'layers'))
    const bent = writeOciLayout(join(scratch.dir, 'bent'), { layers: [layer] })
    const name = await registry.push(bent, 'team/app-bent')
    tokens.readers.set('reader', ['team/app', 'team/many', 'team/app-bent'])
    const bytes = readFileSync(layer.path)
    // The operating system in gzip's header: still the same tar, and not the same blob.
    bytes[9] = (bytes[9] ?? 0) ^ 1
    writeFileSync(registry.blobPath(layer.digest), bytes)
    const words = ['push', `docker://${name}`, '--authfile', authfile]
    const { exitCode, stderr } = await runIpdr([...words, '--repository', await scratchDir()])
    expect(exitCode).toBe(76)
    expect(stderr).toContain(`asked for was ${layer.digest}`)
  })

  test.each([
    ['without credentials', '{}', 'it wants credentials, and none were found for it'],
    ['with wrong ones', undefined, 'it does not take the credentials of docker config'],
  ])('%s says to run docker login', async (_, written, problem) => {
    const path = join(await scratchDir(), 'auth.json')
    writeFileSync(path, written ?? authsOf('reader:wr0ng'))
    const words = ['push', `docker://${image}`, '--authfile', path]
    const { exitCode, stderr } = await runIpdr([...words, '--repository', await scratchDir()])
    expect(exitCode).toBe(77)
    expect(stderr).toContain(problem)
    expect(stderr).toContain(`Run docker login ${registry.host}, or name a file`)
    expect(stderr).not.toContain('wr0ng')
  })

  test('of a registry that is not there says so', async () => {
    const words = ['push', 'docker://127.0.0.1:1/app', '--repository', await scratchDir()]
    const { exitCode, stderr } = await runIpdr(words)
    expect(exitCode).toBe(69)
    expect(stderr).toMatch(/127\.0\.0\.1:1 cannot be reached/)
  })

  test.each([
    [['docker://r.example/UPPER'], 'not a repository name'],
    [['docker://Host/app'], "'Host' is not the host of a registry"],
    [['docker://x', '--platform', 'linux'], "'linux' is not a platform"],
    [['docker://x', '--platform', 'linux/arm64', '--all-platforms'], 'exclude each other'],
    [['-', '--platform', 'linux/arm64', '--insecure'], '--platform, --insecure: for docker://'],
  ])('%j is a wrong command line', async (words, problem) => {
    const { exitCode, stderr } = await runIpdr(['push', ...words, '--repository', '/nonexistent'])
    expect(exitCode).toBe(2)
    expect(stderr).toContain(problem)
  })

  test('names a file of credentials that is not there', async () => {
    const words = ['push', 'docker://x', '--authfile', '/nonexistent/auth.json']
    const { exitCode, stderr } = await runIpdr([...words, '--repository', await scratchDir()])
    expect(exitCode).toBe(66)
    expect(stderr).toContain('there is no file /nonexistent/auth.json')
  })
})
