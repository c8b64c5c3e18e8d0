import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import type { CID } from 'multiformats/cid'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type Descriptor, MEDIA_TYPES } from '../../snapshotter/oci/descriptor.ts'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import { parseManifest } from '../../snapshotter/oci/manifest.ts'
import { busyboxPath } from '../support/debian-programs.ts'
import { type OciLayout, packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode } from '../support/lazy-node.ts'
import { makeTar } from '../support/make-tar.ts'
import { MemoryBlocks } from '../support/memory-blocks.ts'
import { Scratch } from '../support/scratch.ts'

// Images as other publishers lay them out on IPFS, from their CID to a running container.

const opened = new AsyncDisposableStack()
let node: LazyNode
let layout: OciLayout

beforeAll(async () => {
  const scratch = opened.use(Scratch.open('image-layouts'))
  node = opened.use(await LazyNode.start('layouts'))
  const tar = makeTar(
    { name: 'bin/', typeflag: '5', mode: 0o755 },
    { name: 'bin/busybox', mode: 0o755, content: readFileSync(busyboxPath) },
    { name: 'bin/cat', typeflag: '2', linkName: 'busybox' },
    { name: 'bin/sleep', typeflag: '2', linkName: 'busybox' },
    { name: 'layout', content: 'read\n' },
  )
  const layer = await packLayer(Readable.from([tar]), 'gzip', join(scratch.dir, 'layers'))
  const process = { Env: ['PATH=/bin'] }
  layout = writeOciLayout(join(scratch.dir, 'layout'), { layers: [layer], process })
}, 120_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

const blobOf = (digest: string): Uint8Array =>
  readFileSync(join(layout.dir, 'blobs/sha256', digest.slice(7)))

/** The directory of the layout, file by file. */
async function addOciLayout(blocks: MemoryBlocks): Promise<CID> {
  const files = readdirSync(layout.dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
  return await blocks.addDirectory(
    Object.fromEntries(
      files.map((path) => [path.slice(layout.dir.length + 1), readFileSync(path)]),
    ),
  )
}

/** What nerdctl push ipfs:// makes of the image: a file with a descriptor, and addresses in every descriptor. */
async function addIpcr(blocks: MemoryBlocks): Promise<CID> {
  const addressed = async (of: Descriptor): Promise<Descriptor> => ({
    ...of,
    urls: [`ipfs://${(await blocks.addFile(blobOf(of.digest))).toString()}`],
  })
  const manifest = parseManifest(blobOf(layout.manifestDigest), 'the manifest')
  if (manifest.kind !== 'manifest') throw new Error('the layout holds an index')
  const config = await addressed(manifest.config)
  const layers = await Promise.all(manifest.layers.map(addressed))
  const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, config, layers }))
  const urls = [`ipfs://${(await blocks.addFile(bytes)).toString()}`]
  const mediaType = MEDIA_TYPES.ociManifest
  const descriptor = { mediaType, digest: digestOf(bytes), size: bytes.length, urls }
  return await blocks.addFile(Buffer.from(JSON.stringify(descriptor)))
}

test.each([
  ['a descriptor with ipfs:// addresses', addIpcr],
  ['an OCI layout in a directory', addOciLayout],
])(
  'a pod runs from %s',
  async (_, add) => {
    const blocks = new MemoryBlocks()
    const name = `ipdr.internal/${(await add(blocks)).toString()}`
    await node.publisher.offer(blocks)
    await node.cri.pullImage(name)
    await using container = await node.startContainer(name, ['sleep', 'infinity'])
    expect((await node.cri.execSync(container.id, ['cat', '/layout'])).stdout).toBe('read\n')
  },
  60_000,
)
