import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { MEDIA_TYPES } from '../../snapshotter/oci/descriptor.ts'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import { addIpcr, addOciLayout, blobOf } from '../support/image-layouts.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { type OciLayout, packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode } from '../support/lazy-node.ts'
import { makeTar } from '../support/make-tar.ts'
import { MemoryBlocks } from '../support/memory-blocks.ts'
import { Scratch } from '../support/scratch.ts'

// Images as other publishers lay them out on IPFS, from their CID to a running container.

const opened = new AsyncDisposableStack()
let node: LazyNode
let layout: OciLayout
/** As many layers as builders make. */
let many: OciLayout

beforeAll(async () => {
  const scratch = opened.use(Scratch.open('image-layouts'))
  node = opened.use(await LazyNode.start('layouts'))
  const tar = makeTar(...busyboxFiles('cat', 'sleep'), { name: 'layout', content: 'read\n' })
  const layer = await packLayer(Readable.from([tar]), 'gzip', join(scratch.dir, 'layers'))
  const process = { Env: ['PATH=/bin'] }
  layout = writeOciLayout(join(scratch.dir, 'layout'), { layers: [layer], process })
  const layers = [layer]
  for (let number = 1; number < 127; number++) {
    const files = { name: `layers/${number}`, content: `${number}\n` }
    const packed = Readable.from([makeTar(files, { name: 'layout', content: `layer ${number}\n` })])
    layers.push(await packLayer(packed, 'gzip', join(scratch.dir, 'layers')))
  }
  many = writeOciLayout(join(scratch.dir, 'many'), { layers, process })
}, 120_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

test.each([
  ['a descriptor with ipfs:// addresses', addIpcr],
  ['an OCI layout in a directory', addOciLayout],
])(
  'a pod runs from %s',
  async (_, add) => {
    const blocks = new MemoryBlocks()
    const name = `ipdr.internal/${(await add(blocks, layout)).toString()}`
    await node.publisher.offer(blocks)
    await node.cri.pullImage(name)
    await using container = await node.startContainer(name, ['sleep', 'infinity'])
    expect((await node.cri.execSync(container.id, ['cat', '/layout'])).stdout).toBe('read\n')
  },
  60_000,
)

test.each([
  ['an IPDR directory', undefined],
  ['a descriptor with ipfs:// addresses', addIpcr],
  ['an OCI layout in a directory', addOciLayout],
])(
  'a pod runs from an image of 127 layers that is %s',
  async (_, add) => {
    await using fresh = await LazyNode.start('many', { publisher: node.publisher })
    let root: string
    if (add === undefined) root = await node.publisher.importAsIs(many)
    else {
      const blocks = new MemoryBlocks()
      root = (await add(blocks, many)).toString()
      await node.publisher.offer(blocks)
    }
    await fresh.cri.pullImage(`ipdr.internal/${root}`)
    await using container = await fresh.startContainer(`ipdr.internal/${root}`, [
      'sleep',
      'infinity',
    ])
    const read = ['cat', '/layout', '/layers/1', '/layers/126']
    expect((await fresh.cri.execSync(container.id, read)).stdout).toBe('layer 126\n1\n126\n')
  },
  120_000,
)

test('a pod runs from an OCI layout whose index has an index of platforms, by the manifest for this one', async () => {
  const platform = { os: 'linux', architecture: process.arch === 'x64' ? 'amd64' : process.arch }
  const own = blobOf(layout, layout.manifestDigest)
  const other = Buffer.from('{"schemaVersion":2,"not":"for this machine"}')
  const entry = (bytes: Uint8Array, architecture: string): object => ({
    mediaType: MEDIA_TYPES.ociManifest,
    digest: digestOf(bytes),
    size: bytes.length,
    platform: { ...platform, architecture },
  })
  const index = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.ociIndex,
      manifests: [entry(other, 's390x'), entry(own, platform.architecture)],
    }),
  )
  const named = {
    mediaType: MEDIA_TYPES.ociIndex,
    digest: digestOf(index),
    size: index.length,
    annotations: { 'org.opencontainers.image.ref.name': 'v2' },
  }
  const blocks = new MemoryBlocks()
  const blobs = readdirSync(join(layout.dir, 'blobs/sha256'))
  const root = await blocks.addDirectory({
    'oci-layout': readFileSync(join(layout.dir, 'oci-layout')),
    'index.json': Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: [named] })),
    [`blobs/sha256/${digestOf(index).slice(7)}`]: index,
    ...Object.fromEntries(
      blobs.map((hex) => [`blobs/sha256/${hex}`, blobOf(layout, `sha256:${hex}`)]),
    ),
  })
  await node.publisher.offer(blocks)
  const name = `ipdr.internal/${root.toString()}:v2`
  await node.cri.pullImage(name)
  await using container = await node.startContainer(name, ['sleep', 'infinity'])
  expect((await node.cri.execSync(container.id, ['cat', '/layout'])).stdout).toBe('read\n')
}, 60_000)
