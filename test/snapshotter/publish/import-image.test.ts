import { CID } from 'multiformats/cid'
import { describe, expect, test } from 'vitest'
import { UnixfsFile } from '../../../snapshotter/dag/unixfs-file.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import type { BlockSink } from '../../../snapshotter/publish/import-image.ts'
import { ImageDirectory, importBlob } from '../../../snapshotter/publish/import-image.ts'
import { cidOf, MemoryBlocks } from '../../support/memory-blocks.ts'

const { signal } = new AbortController()

/** A sink that keeps blocks for reading, and refuses one that is not what its CID says. */
function sinkInto(memory: MemoryBlocks): BlockSink {
  return {
    put: async (cid, block) => {
      expect(cidOf(block, cid.code).equals(cid)).toBe(true)
      memory.blocks.set(cid.toString(), block)
    },
  }
}

async function* pieces(...all: Uint8Array[]): AsyncGenerator<Uint8Array> {
  yield* all
}

describe('the image that the existing publisher would make', () => {
  // Recomputed from the publisher's settings: Kubo 0.23, leaves of 262,144 bytes, CIDv1.
  const golden = {
    config: '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}',
    manifestSha256: '3d06950dac99af69600bb3d81228962fc6f9e040eb0888ffd88cdcdfe165ef8e',
    manifestCid: 'bafkreib5a2kq3lezv5uwac5t3ajcrfrpy346aqhlbcep7wem3tp6czppry',
    configCid: 'bafkreigfwhldmbhsondc543pvwwddawuhltkme4hghhvsszrja246hadj4',
    layerCid: 'bafybeifkhqdf426lf6kl5oshczyo2ahhhib6zxruehy2yo72ay74kukg3q',
    rootCid: 'bafybeifsgierqdgmnlaawzggr4glgew5wnyzxwx3sqbx2bexjizsgp4aay',
  }

  test('comes out with the same CIDs', async () => {
    const memory = new MemoryBlocks()
    const sink = sinkInto(memory)
    const config = Buffer.from(golden.config)
    const layer = Buffer.alloc(300_000, 7)
    const manifest = Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: 'application/vnd.oci.image.manifest.v1+json',
        config: {
          mediaType: 'application/vnd.oci.image.config.v1+json',
          digest: digestOf(config),
          size: config.length,
        },
        layers: [
          {
            mediaType: 'application/vnd.oci.image.layer.v1.tar',
            digest: digestOf(layer),
            size: layer.length,
          },
        ],
      }),
    )
    expect(digestOf(manifest)).toBe(`sha256:${golden.manifestSha256}`)
    const directory = new ImageDirectory()
    const imported = {
      manifest: await importBlob(pieces(manifest), 'kubo', sink, signal),
      config: await importBlob(pieces(config), 'kubo', sink, signal),
      layer: await importBlob(
        pieces(layer.subarray(0, 11), layer.subarray(11)),
        'kubo',
        sink,
        signal,
      ),
    }
    expect(imported.manifest.cid.toString()).toBe(golden.manifestCid)
    expect(imported.config.cid.toString()).toBe(golden.configCid)
    expect(imported.layer.cid.toString()).toBe(golden.layerCid)
    directory.addManifest(digestOf(manifest), imported.manifest, 'latest')
    directory.addBlob(digestOf(config), imported.config)
    directory.addBlob(digestOf(layer), imported.layer)
    const root = await directory.write(sink, signal)
    expect(root.cid.toString()).toBe(golden.rootCid)
    expect(memory.blocks.has(golden.rootCid)).toBe(true)
  })
})

test('pieces become leaves as they come, at most 174 to a node, and read back in order', async () => {
  const memory = new MemoryBlocks()
  const leaves = Array.from({ length: 400 }, (_, index) => Buffer.alloc(1 + index, index))
  const { cid, size } = await importBlob(pieces(...leaves), 'pieces', sinkInto(memory), signal)
  const file = await UnixfsFile.open(cid, memory, { priority: 'foreground', signal })
  expect(
    Array.from({ length: file.leafCount }, (_, index) => file.leafCid(index).toString()),
  ).toEqual(leaves.map((leaf) => cidOf(leaf).toString()))
  expect(file.size).toBe(Buffer.concat(leaves).length)
  expect(size).toBeGreaterThan(file.size)
  // 400 leaves are three nodes and their root.
  const inner = [...memory.blocks.keys()].filter((key) => CID.parse(key).code === 0x70)
  expect(inner).toHaveLength(4)
})

test('a failing sink ends the import and closes the source', async () => {
  let isClosed = false
  const source = (async function* () {
    try {
      for (let index = 0; ; index++) yield Buffer.alloc(9, index)
    } finally {
      isClosed = true
    }
  })()
  const sink = { put: () => Promise.reject(new Error('disk full')) }
  await expect(importBlob(source, 'pieces', sink, signal)).rejects.toThrow('disk full')
  expect(isClosed).toBe(true)
})
