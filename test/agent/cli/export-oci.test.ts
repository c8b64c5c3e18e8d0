import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { promisify } from 'node:util'
import { CID } from 'multiformats/cid'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { BlockRepository } from '../../../agent/ipfs/repository.ts'
import { MEDIA_TYPES } from '../../../snapshotter/oci/descriptor.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { Containerd } from '../../support/containerd.ts'
import { addIpcr } from '../../support/image-layouts.ts'
import { packLayer, writeOciLayout } from '../../support/images/oci-layout.ts'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { Scratch } from '../../support/scratch.ts'
import { seeded } from '../../support/seeded.ts'
import { runIpdr, startIpdr } from './support/run-ipdr.ts'
import { scratchDir } from './support/scratch-dir.ts'

// `ipdr export --format oci`: an image as it was published, for those who read OCI's layout.

const run = promisify(execFile)
const opened = new AsyncDisposableStack()
let scratch: Scratch
let published = ''
let root = ''

beforeAll(async () => {
  scratch = opened.use(Scratch.open('export-oci'))
  published = join(scratch.dir, 'published')
  const tar = join(scratch.dir, 'root.tar')
  const content = randomContent(seeded(9), 2_000_000)
  await writeFile(tar, makeTar({ name: 'tool', content }, { name: 'motd', content: 'hi\n' }))
  const pushed = await runIpdr(['push', tar, '-q', '--repository', published])
  root = pushed.stdout.trim().replace('ipdr.internal/', '')
})
afterAll(() => opened.disposeAsync())

function exported(file: string, image = root, repository = published) {
  const words = ['export', image, '--format', 'oci', '--to', file, '--repository', repository]
  return runIpdr([...words, '-o', 'json', '-q'])
}

test('is what skopeo reads, which checks each blob by its digest', async () => {
  const target = await scratchDir()
  const file = join(target, 'app.tar')
  const { exitCode, stdout } = await exported(file)
  expect(exitCode).toBe(0)
  const { digest, blobs } = JSON.parse(stdout) as { digest: string; blobs: number }
  expect(blobs).toBe(3)
  const archive = `oci-archive:${file}:latest`
  const { stdout: manifest } = await run('skopeo', ['inspect', '--raw', archive])
  expect(digestOf(Buffer.from(manifest))).toBe(digest)
  const words = ['copy', '-q', '--insecure-policy', '--preserve-digests']
  await run('skopeo', [...words, archive, `dir:${join(target, 'copy')}`])
  expect(await readdir(join(target, 'copy'))).toHaveLength(4)
})

test('is imported by a containerd without the agent, under the name that pods have', async () => {
  await using containerd = await Containerd.start({ scratch, snapshotter: 'overlayfs' })
  const file = join(await scratchDir(), 'app.tar')
  const { digest } = JSON.parse((await exported(file)).stdout) as { digest: string }
  await containerd.ctr(['images', 'import', file])
  const listed = await containerd.ctr(['images', 'ls'])
  expect(listed).toContain(`ipdr.internal/${root}:latest`)
  expect(listed).toContain(digest)
  await using mounted = await containerd.mountImage(`ipdr.internal/${root}:latest`)
  expect(await readFile(join(mounted.path, 'motd'), 'utf8')).toBe('hi\n')
})

test('is the same file each time, and by pipe', async () => {
  const target = await scratchDir()
  const files = [join(target, 'a.tar'), join(target, 'b.tar')] as const
  for (const file of files) expect((await exported(file)).exitCode).toBe(0)
  const whole = await readFile(files[0])
  expect((await readFile(files[1])).equals(whole)).toBe(true)
  const words = ['export', root, '--format', 'oci', '-q', '--repository', published]
  const child = startIpdr(words)
  const parts: Buffer[] = []
  child.stdout.on('data', (part: Buffer) => parts.push(part))
  await once(child, 'close')
  expect(Buffer.concat(parts).equals(whole)).toBe(true)
})

test('of a tag that the image has not is refused with those that it has', async () => {
  const target = await scratchDir()
  const { exitCode, stderr } = await exported(join(target, 'a.tar'), `${root}:v9`)
  expect(exitCode).toBe(66)
  expect(stderr).toContain('its tags are: latest')
  expect(await readdir(target)).toEqual([])
})

test('of an image as nerdctl publishes it has the blobs that its descriptors name by URL', async () => {
  const folder = await scratchDir()
  const tar = makeTar({ name: 'motd', content: 'hi\n' })
  const layer = await packLayer(Readable.from([tar]), 'gzip', join(folder, 'layers'))
  const layout = writeOciLayout(join(folder, 'layout'), { layers: [layer] })
  const memory = new MemoryBlocks()
  const ipcr = await addIpcr(memory, layout)
  const repository = join(folder, 'repository')
  {
    await using held = await BlockRepository.open(repository)
    for (const [cid, block] of memory.blocks) await held.put(CID.parse(cid), block)
  }
  const file = join(folder, 'a.tar')
  const { exitCode, stdout } = await exported(file, ipcr.toString(), repository)
  expect(exitCode).toBe(0)
  expect(JSON.parse(stdout)).toMatchObject({ blobs: 3 })
  const copied = join(folder, 'copy')
  await run('skopeo', ['copy', '-q', '--insecure-policy', `oci-archive:${file}`, `dir:${copied}`])
  expect(await readdir(copied)).toContain(layer.digest.slice('sha256:'.length))
})

test.each([
  ['other bytes than its digest says', 'another', /its bytes have digest/],
  ['more bytes than its manifest says', 'a longer layer', /its manifest says 7/],
])('with a blob of %s is no file at all', async (_, bytes, reason) => {
  const memory = new MemoryBlocks()
  const promised = digestOf(Buffer.from('promise'))
  const config = Buffer.from('{}')
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.ociManifest,
      config: { mediaType: MEDIA_TYPES.ociConfig, digest: digestOf(config), size: 2 },
      layers: [{ mediaType: 'application/vnd.oci.image.layer.v1.tar', digest: promised, size: 7 }],
    }),
  )
  const lying = await memory.addDirectory({
    'manifests/latest': manifest,
    [`manifests/${digestOf(manifest)}`]: manifest,
    [`blobs/${digestOf(config)}`]: config,
    [`blobs/${promised}`]: Buffer.from(bytes),
  })
  const repository = await scratchDir()
  {
    await using held = await BlockRepository.open(repository)
    for (const [cid, block] of memory.blocks) await held.put(CID.parse(cid), block)
  }
  const target = await scratchDir()
  const file = join(target, 'a.tar')
  const { exitCode, stderr } = await exported(file, lying.toString(), repository)
  expect(exitCode).not.toBe(0)
  expect(stderr).toMatch(reason)
  expect(await readdir(target)).toEqual([])
})
