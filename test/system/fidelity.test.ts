import { createReadStream, globSync, readFileSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { PassThrough, type Transform } from 'node:stream'
import { createGunzip, createZstdDecompress } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { compareTrees } from '../support/compare-trees.ts'
import { Containerd, writeHostsFile } from '../support/containerd.ts'
import { fsckErofs } from '../support/fsck-erofs.ts'
import { buildDebianImages, DEBIAN_IMAGES } from '../support/images/debian-images.ts'
import {
  type LayerBlob,
  type OciLayout,
  packLayer,
  writeOciLayout,
} from '../support/images/oci-layout.ts'
import { buildOddImage, UNMENTIONED_FOLDERS } from '../support/images/odd-image.ts'
import { LazyNode, Publisher } from '../support/lazy-node.ts'
import { startOciRegistry } from '../support/oci-registry.ts'
import { Scratch } from '../support/scratch.ts'

// Goal: a container cannot tell our mount from what containerd unpacks. Method: containerd 1.6 unpacks each image into its
// own overlayfs snapshotter; we mount the same image lazily; the two trees must not differ in anything that can be seen.

const opened = new AsyncDisposableStack()
let scratch: Scratch
let publisher: Publisher
/** Where containerd's own unpack of each image is mounted. */
const references = new Map<string, string>()
let images: ReadonlyMap<string, OciLayout>

const NAMES = [...DEBIAN_IMAGES.map(({ name }) => name), 'odd']

/** containerd ignores what a tar says of the root. */
const ROOT = ''

/** Folders of the odd image that a layer changes without a word on them: containerd leaves the time of its unpacking there. */
const CHANGED_FOLDERS = ['devices', 'links', 'modes', 'posix', 'sizes', 'sparse']

beforeAll(async () => {
  scratch = opened.use(Scratch.open('fidelity'))
  publisher = opened.use(await Publisher.start(scratch))
  images = new Map([...(await buildDebianImages()), ['odd', await buildOddImage()]])
  const registry = opened.use(await startOciRegistry(scratch))
  const certsDir = join(scratch.dir, 'certs.d')
  writeHostsFile(certsDir, 'registry.test', `http://${registry.host}`)
  const containerd = opened.use(
    await Containerd.start({ scratch, snapshotter: 'overlayfs', certsDir }),
  )
  for (const [name, layout] of images) {
    const pushed = (await registry.push(layout, name)).replace(registry.host, 'registry.test')
    await containerd.pull(pushed)
    references.set(name, opened.use(await containerd.mountImage(pushed)).path)
  }
}, 300_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

/** How an image may have come to IPFS. Each resolves to the root CID. */
const WAYS: readonly [string, (layout: OciLayout) => Promise<string>][] = [
  ['published by ipdr push', (layout) => publisher.push(layout)],
  ['with its gzip and zstd layers as they are', (layout) => publisher.importAsIs(layout)],
  ['with plain tars', async (layout) => publisher.importAsIs(await uncompressed(layout))],
]

describe.each(WAYS)('%s,', (_, publish) => {
  let node: LazyNode

  // A node of its own for each way: on one node the layers of all three would have the same chain IDs.
  beforeAll(async () => {
    node = await LazyNode.start('fidelity-node', { publisher })
  }, 60_000)

  afterAll(async () => await node[Symbol.asyncDispose](), 60_000)

  test.each(NAMES)(
    '%s is mounted as containerd unpacks it',
    async (name) => {
      const root = await publish(required(images.get(name)))
      await node.cri.pullImage(`ipdr.internal/${root}`)
      await using mounted = await node.mountImage(`ipdr.internal/${root}`)
      expect(
        await compareTrees(mounted.path, required(references.get(name)), {
          anyTimeOf: name === 'odd' ? [ROOT, ...UNMENTIONED_FOLDERS, ...CHANGED_FOLDERS] : [ROOT],
        }),
      ).toEqual([])
      expect(node.layerMounts).not.toEqual([])
    },
    120_000,
  )

  test('fsck.erofs accepts every metadata image, and every file lies within its layer', () => {
    const layers = join(node.agent.root, 'layers')
    const dataOf = (layer: number | string): string => join(layers, String(layer), 'data')
    const checked = globSync([
      join(layers, '*/meta.erofs'),
      join(node.agent.root, 'derived/*.erofs'),
    ])
    expect(checked.length).toBeGreaterThanOrEqual(NAMES.length)
    for (const path of checked) {
      const isLayer = basename(path) === 'meta.erofs'
      const devices = isLayer ? [basename(dirname(path))] : devicesOf(path)
      const { status, output } = fsckErofs(path, devices.map(dataOf))
      expect({ path, status, output }).toEqual({ path, status: 0, output })
    }
  }, 120_000)
})

/** The layers that an image made from several ones takes its content from. */
function devicesOf(derivedPath: string): number[] {
  const record = readFileSync(derivedPath.replace(/\.erofs$/, '.json'), 'utf8')
  return (JSON.parse(record) as { devices: number[] }).devices
}

/** Layers by their compressed digest: images share them. */
const plainLayers = new Map<string, LayerBlob>()

/** The same image, with the same chain IDs, of layers that are not compressed. */
async function uncompressed({ layers, manifestDigest, tag }: OciLayout): Promise<OciLayout> {
  const dir = join(scratch.dir, 'plain')
  const plain: LayerBlob[] = []
  for (const { path, digest, mediaType, diffId } of layers) {
    const tar = createReadStream(path).pipe(decompressor(mediaType))
    const layer = plainLayers.get(digest) ?? (await packLayer(tar, 'none', join(dir, 'layers')))
    expect(layer.diffId).toBe(diffId)
    plainLayers.set(digest, layer)
    plain.push(layer)
  }
  return writeOciLayout(join(dir, manifestDigest.replace(':', '-')), { layers: plain, tag })
}

function decompressor(mediaType: string): Transform {
  if (mediaType.endsWith('+gzip')) return createGunzip()
  return mediaType.endsWith('+zstd') ? createZstdDecompress() : new PassThrough()
}

function required<T>(value: T | undefined): T {
  if (value === undefined) throw new Error('no such image')
  return value
}
