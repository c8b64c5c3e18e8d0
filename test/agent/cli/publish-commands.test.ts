import { spawn } from 'node:child_process'
import { readdirSync, watch } from 'node:fs'
import { readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { gzipSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Containerd } from '../../support/containerd.ts'
import { type OciLayout, packLayer, writeOciLayout } from '../../support/images/oci-layout.ts'
import { makeTar } from '../../support/make-tar.ts'
import { runCommand } from '../../support/run-command.ts'
import { Scratch } from '../../support/scratch.ts'
import { seeded } from '../../support/seeded.ts'
import { ended, IPDR, runIpdr, startIpdr } from './support/run-ipdr.ts'
import { scratchDir } from './support/scratch-dir.ts'

const random = seeded(11)
const NOISE = Buffer.from(Array.from({ length: 300_000 }, () => random(256)))
const BASE = makeTar(
  { name: 'bin/', typeflag: '5', mode: 0o755 },
  { name: 'bin/tool', mode: 0o755, content: NOISE },
  { name: 'etc/motd', content: 'hello\n' },
)
const TOP = makeTar({ name: 'etc/motd', content: 'goodbye\n' })

let scratch: Scratch
let layout: OciLayout

beforeAll(async () => {
  scratch = Scratch.open('cli-publish')
  const blobs = join(scratch.dir, 'layers')
  const layers = [
    await packLayer(Readable.from([BASE]), 'gzip', blobs),
    await packLayer(Readable.from([TOP]), 'none', blobs),
  ]
  const process = { Entrypoint: ['/bin/tool'], Cmd: ['--go'], Env: ['A=1'] }
  layout = writeOciLayout(join(scratch.dir, 'layout'), { layers, process, tag: 'v1' })
})
afterAll(() => scratch[Symbol.asyncDispose]())

type Pushed = {
  root: string
  reference: string
  digest: string
  sourceBytes: number
  bytes: number
  layers: { cid: string; digest: string; layerBytes: number; entries: number; leaves: number }[]
}

type Inspected = {
  root: string
  tags: string[]
  manifests: {
    platform: string
    config: object
    layers: { cid: string; digest: string; format: string; lazy: { kind: string } }[]
  }[]
}

async function pushJson(words: readonly string[], repository: string): Promise<Pushed> {
  const { exitCode, stdout, stderr } = await runIpdr([
    'push',
    ...words,
    '-o',
    'json',
    '-q',
    '--repository',
    repository,
  ])
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
  return JSON.parse(stdout) as Pushed
}

describe('push and inspect', () => {
  test('an OCI layout becomes an image of which every layer can be read lazily', async () => {
    const repository = await scratchDir()
    const pushed = await pushJson([`oci:${layout.dir}:v1`, '--tag', 'v2'], repository)
    expect(pushed.reference).toBe(`ipdr.internal/${pushed.root}:v2`)
    expect(pushed.layers).toMatchObject([
      { layerBytes: BASE.length, entries: 3 },
      { layerBytes: TOP.length, entries: 1 },
    ])
    const { stdout } = await runIpdr([
      'inspect',
      pushed.reference,
      '-o',
      'json',
      '--repository',
      repository,
    ])
    const inspected = JSON.parse(stdout) as Inspected
    expect(inspected).toMatchObject({
      root: pushed.root,
      tags: ['v2'],
      digest: pushed.digest,
      manifests: [{ config: { entrypoint: ['/bin/tool'], cmd: ['--go'], env: ['A=1'] } }],
    })
    expect(inspected.manifests[0]?.layers).toMatchObject(
      pushed.layers.map(({ cid, digest, entries, layerBytes, leaves }) => ({
        cid,
        digest,
        leaves,
        format: 'tar+zstd',
        lazy: { kind: 'index', entries, layerBytes },
      })),
    )
  })

  test('tells a person sizes, speed, the CID, the reference, and what to do next', async () => {
    const repository = await scratchDir()
    const pushed = await runIpdr(['push', layout.dir, '--repository', repository])
    expect(pushed.exitCode).toBe(0)
    expect(pushed.stdout).toMatch(/^LAYER +BEFORE +AFTER +FILES +BLOCKS +NOTE$/m)
    expect(pushed.stdout).toMatch(/^2 layers: [\d.]+ KiB before, [\d.]+ KiB after, in .* MB\/s\)$/m)
    expect(pushed.stdout).toContain('Offer it to others: ipdr serve')
    const reference = /^Reference: +(\S+)$/m.exec(pushed.stdout)?.[1] ?? ''
    const { stdout } = await runIpdr(['inspect', reference, '--repository', repository])
    expect(stdout).toContain('Runs:         ["/bin/tool","--go"]')
    expect(stdout).toMatch(/tar\+zstd .* yes: 3 files, 296 KiB unpacked$/m)
    expect(stdout).toMatch(/^2 layers, [\d.]+ KiB; all can be read lazily$/m)
  })

  test('of the same image is the same CID, whichever way it came, and with -q that alone is printed', async () => {
    const repository = await scratchDir()
    const file = join(await scratchDir(), 'rootfs.tar')
    await writeFile(file, BASE)
    await writeFile(`${file}.gz`, gzipSync(BASE))
    const common = ['-q', '--repository', repository]
    const fromFile = await runIpdr(['push', file, ...common])
    const fromGzip = await runIpdr(['push', `${file}.gz`, ...common])
    const fromStdin = await runIpdr(['push', '-', ...common], { input: BASE })
    expect(fromStdin.stdout).toMatch(/^ipdr\.internal\/bafy[a-z2-7]+\n$/)
    expect([fromFile.stdout, fromGzip.stdout]).toEqual([fromStdin.stdout, fromStdin.stdout])
  })

  test('an image in containerd is found by name and namespace', async () => {
    const repository = await scratchDir()
    await using containerd = await Containerd.start({ scratch, snapshotter: 'overlayfs' })
    const archive = join(scratch.dir, 'layout.tar')
    await tarOf(layout.dir, archive)
    await containerd.ctr(['-n', 'k8s.io', 'images', 'import', '--base-name', 'test/app', archive])
    const place = ['--address', containerd.socketPath, '--namespace', 'k8s.io']
    const pushed = await pushJson(['containerd:test/app:v1', ...place], repository)
    const direct = await pushJson([layout.dir], repository)
    expect(pushed.layers).toEqual(direct.layers)
    const elsewhere = await runIpdr([
      'push',
      'containerd:test/app:v1',
      ...place.slice(0, 2),
      '--repository',
      repository,
    ])
    expect(elsewhere.exitCode).toBe(66)
    expect(elsewhere.stderr).toContain('no image test/app:v1 in namespace default')
  }, 120_000)

  test.each([
    { words: ['push', 'oci:/nowhere'], exitCode: 66, says: 'no file or directory /nowhere' },
    { words: ['push', '/nowhere'], exitCode: 66, says: 'there is no /nowhere' },
    { words: ['push', ''], exitCode: 66, says: 'there is no source without a name' },
    { words: ['push', 'containerd:'], exitCode: 2, says: 'says where from, but not what' },
    { words: ['push', '.', '--tag', 'a b'], exitCode: 2, says: 'the tag must be' },
    {
      words: ['push', 'containerd:a', '--address', '/nowhere.sock'],
      exitCode: 69,
      says: 'containerd cannot be reached at /nowhere.sock',
    },
  ])('$words exits $exitCode', async ({ words, exitCode, says }) => {
    const repository = await scratchDir()
    const result = await runIpdr([...words, '--repository', repository])
    expect({ exitCode: result.exitCode, stdout: result.stdout }).toEqual({ exitCode, stdout: '' })
    expect(result.stderr).toContain(says)
  })

  test('exits 76 for a layer that is not what its digest says, and keeps no root', async () => {
    const dir = await scratchDir()
    await tarOf(layout.dir, join(dir, 'layout.tar'))
    await runCommand('tar', ['-C', dir, '-xf', join(dir, 'layout.tar')])
    const [layer] = layout.layers
    const hex = layer?.digest.slice('sha256:'.length) ?? ''
    await writeFile(join(dir, 'blobs/sha256', hex), gzipSync(TOP))
    const repository = join(dir, 'repository')
    const { exitCode, stderr } = await runIpdr(['push', dir, '--repository', repository])
    expect(exitCode).toBe(76)
    expect(stderr).toContain(hex)
    const { stdout } = await runIpdr(['repository', 'ls', '--repository', repository])
    expect(stdout).toBe('Nothing is published.\n')
  })
})

describe('an interrupted push', () => {
  test('of a tar that is still coming exits 130, and leaves neither root nor spool file', async () => {
    const repository = await scratchDir()
    const child = startIpdr(['push', '-', '--repository', repository])
    scratch.own(child.pid ?? 0)
    const end = ended(child)
    child.stdin.on('error', () => undefined)
    child.stdin.write(BASE.subarray(0, 100_000))
    await appearing(repository, /^push-/)
    child.kill('SIGINT')
    const { exitCode, stdout, stderr } = await end
    expect({ exitCode, stdout }).toEqual({ exitCode: 130, stdout: '' })
    expect(stderr).toBe('ipdr: stopped by SIGINT before it was done\n')
    expect((await readdir(repository)).toSorted()).toEqual(['blocks', 'roots'])
    expect(await readdir(join(repository, 'roots'))).toEqual([])
  })
})

test('an answer that cannot be written is a failure in one sentence', async () => {
  const command = `${IPDR} --help > /dev/full`
  const child = spawn('sh', ['-c', command], { stdio: ['pipe', 'pipe', 'pipe'] })
  const { exitCode, stderr } = await ended(child)
  expect(exitCode).toBe(1)
  expect(stderr).toMatch(/^ipdr: the answer cannot be written: ENOSPC.*\n$/)
})

describe('inspect', () => {
  test('exits 66 where there is no repository, no block, and no image', async () => {
    const repository = await scratchDir()
    const { root } = await pushJson([layout.dir], repository)
    const nowhere = await runIpdr(['inspect', root, '--repository', '/nowhere'])
    expect(nowhere.exitCode).toBe(66)
    expect(nowhere.stderr).toContain('there is no repository in /nowhere\nipdr push makes one')
    const unknown = 'bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi'
    const absent = await runIpdr(['inspect', unknown, '--repository', repository])
    expect(absent.exitCode).toBe(66)
    expect(absent.stderr).toContain('name a place that has it with --gateway or --peer')
    const tagless = await runIpdr(['inspect', `${root}:v9`, '--repository', repository])
    expect(tagless.exitCode).toBe(66)
    expect(tagless.stderr).toContain('has no manifest v9; its tags are: latest')
  })

  test.each([
    { words: ['--gateway', 'example.com'], exitCode: 2, says: 'is not a URL' },
    { words: ['--peer', '/ip4/1.2.3.4'], exitCode: 2, says: 'must end with /p2p/' },
    { words: ['--gateway', 'http://127.0.0.1:1'], exitCode: 69, says: 'ECONNREFUSED' },
    { words: ['--timeout', '0'], exitCode: 2, says: '--timeout must be' },
  ])('$words exits $exitCode', async ({ words, exitCode, says }) => {
    const cid = 'bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi'
    const env = { IPDR_REPOSITORY: '', XDG_DATA_HOME: '/nowhere' }
    const result = await runIpdr(['inspect', cid, ...words], { env })
    expect(result.exitCode).toBe(exitCode)
    expect(result.stderr).toContain(says)
  })
})

describe('repository', () => {
  test('ls, rm and gc leave of two images the blocks of the one that stays', async () => {
    const repository = await scratchDir()
    const place = ['--repository', repository]
    const [app, base] = [await pushJson([layout.dir], repository), join(repository, 'base.tar')]
    await writeFile(base, BASE)
    const { root } = await pushJson([base], repository)
    const listed = await runIpdr(['repository', 'ls', '-o', 'json', ...place])
    expect(JSON.parse(listed.stdout)).toMatchObject({
      roots: [
        { root: app.root, name: layout.dir },
        { root, name: base },
      ],
    })
    const unknown = await runIpdr(['repository', 'rm', root, app.layers[0]?.cid ?? '', ...place])
    expect(unknown.exitCode).toBe(66)
    const removed = await runIpdr(['repository', 'rm', app.reference, ...place])
    expect(removed.stdout).toBe('Removed 1 root; ipdr repository gc frees the blocks.\n')
    const young = await runIpdr(['repository', 'gc', '-o', 'json', ...place])
    expect(JSON.parse(young.stdout)).toMatchObject({ removedBlocks: 0, missingBlocks: 0 })
    const freed = await runIpdr(['repository', 'gc', '--min-age', '0', '-o', 'json', ...place])
    const { removedBlocks } = JSON.parse(freed.stdout) as { removedBlocks: number }
    expect(removedBlocks).toBeGreaterThan(0)
    const stays = await runIpdr(['inspect', root, ...place])
    expect(stays.exitCode).toBe(0)
    const gone = await runIpdr(['inspect', app.root, ...place])
    expect(gone.exitCode).toBe(66)
  }, 30_000)
})

describe('serve', () => {
  const LOOPBACK = ['--listen', '/ip4/127.0.0.1/tcp/0', '--gateway', '127.0.0.1:0']

  test('offers the repository by gateway and bitswap until SIGINT, which is success', async () => {
    const repository = await scratchDir()
    const { root } = await pushJson([layout.dir], repository)
    const child = startIpdr(['serve', ...LOOPBACK, '--repository', repository, '-o', 'json'])
    scratch.own(child.pid ?? 0)
    const end = ended(child)
    const line = await firstLine(child.stdout)
    const { gateway, multiaddrs } = JSON.parse(line) as { gateway: string; multiaddrs: string[] }
    const env = { XDG_DATA_HOME: '/nowhere' }
    const byGateway = await runIpdr(['inspect', root, '--gateway', gateway], { env })
    expect(byGateway).toMatchObject({ exitCode: 0, stderr: '' })
    const byPeer = await runIpdr(['inspect', root, '--peer', multiaddrs[0] ?? ''], { env })
    expect(byPeer).toMatchObject({ exitCode: 0, stderr: '', stdout: byGateway.stdout })
    child.kill('SIGINT')
    expect(await end).toEqual({ exitCode: 0, stdout: line, stderr: '' })
  }, 60_000)

  test('after a push is one document, and ends by SIGTERM', async () => {
    const repository = await scratchDir()
    const words = ['push', layout.dir, '--serve', ...LOOPBACK, '--repository', repository]
    const child = startIpdr([...words, '-o', 'json', '-q'])
    scratch.own(child.pid ?? 0)
    child.stdout.on('data', (text: string) => {
      if (text.endsWith('}\n')) child.kill('SIGTERM')
    })
    const { exitCode, stdout } = await ended(child)
    expect(exitCode).toBe(0)
    expect(JSON.parse(stdout)).toMatchObject({
      layers: [{}, {}],
      serving: { repository, gateway: expect.stringMatching(/^http:\/\/127\.0\.0\.1:\d+$/) },
    })
  }, 30_000)

  test('exits 1 when the address of its gateway is taken', async () => {
    const repository = await scratchDir()
    const words = ['serve', ...LOOPBACK, '--repository', repository, '-o', 'json']
    const child = startIpdr(words)
    scratch.own(child.pid ?? 0)
    const end = ended(child)
    const { gateway } = JSON.parse(await firstLine(child.stdout)) as { gateway: string }
    const taken = ['--gateway', gateway.replace('http://', '')]
    const second = await runIpdr([
      ...words.slice(0, 3),
      ...taken,
      '--repository',
      await scratchDir(),
    ])
    child.kill('SIGINT')
    await end
    expect(second).toMatchObject({ exitCode: 1, stdout: '' })
    expect(second.stderr).toContain('Choose another address')
  }, 30_000)

  test.each([
    { words: ['--listen', 'here'], says: 'is not a multiaddr' },
    { words: ['--gateway', 'here'], says: "'here' is not an address" },
  ])('$words is a usage error', async ({ words, says }) => {
    const { exitCode, stderr } = await runIpdr([
      'serve',
      ...words,
      '--repository',
      await scratchDir(),
    ])
    expect(exitCode).toBe(2)
    expect(stderr).toContain(says)
  })
})

async function firstLine(stream: NodeJS.ReadableStream): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>()
  let text = ''
  stream.on('data', (piece: string) => {
    text += piece
    if (text.includes('\n')) resolve(text)
  })
  return await promise
}

async function tarOf(dir: string, archive: string): Promise<void> {
  await runCommand('tar', ['-C', dir, '-cf', archive, '.'])
}

/** Resolves once `dir` holds a file of such a name. */
async function appearing(dir: string, name: RegExp): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const look = (): void => {
    if (readdirSync(dir).some((file) => name.test(file))) resolve()
  }
  const watcher = watch(dir, look)
  look()
  await promise
  watcher.close()
}
