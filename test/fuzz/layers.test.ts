import { createHash } from 'node:crypto'
import { gzipSync, zstdCompressSync, zstdDecompressSync } from 'node:zlib'
import { writeErofsImage } from '../../snapshotter/erofs/write-image.ts'
import { readLayerMap } from '../../snapshotter/layers/read-layer-map.ts'
import { StreamedLayerMap } from '../../snapshotter/layers/streamed-layer-map.ts'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import { decodePrefetchList, encodePrefetchList } from '../../snapshotter/prefetch/prefetch-list.ts'
import { buildTree } from '../../snapshotter/toc/build-tree.ts'
import { fetchChunkedTables } from '../../snapshotter/toc/chunked/fetch-chunked-tables.ts'
import { joinChunkedTables } from '../../snapshotter/toc/chunked/join-chunked-tables.ts'
import { decodeZstdStream } from '../../snapshotter/toc/decode-zstd-stream.ts'
import { estargzLayer } from '../../snapshotter/toc/estargz/estargz-layer.ts'
import { fetchEstargzToc } from '../../snapshotter/toc/estargz/fetch-estargz-toc.ts'
import { GzipIndexer } from '../../snapshotter/toc/gzip/gzip-indexer.ts'
import {
  decodeLayerIndex,
  decodeToc,
  encodeLayerIndex,
  encodeToc,
} from '../../snapshotter/toc/layer-index.ts'
import type { LayerToc } from '../../snapshotter/toc/layer-toc.ts'
import { decodeSideIndex, encodeSideIndex } from '../../snapshotter/toc/side-index.ts'
import { TarLayerMap } from '../../snapshotter/toc/tar-layer-map.ts'
import { TarStreamWalk } from '../../snapshotter/toc/walk-tar.ts'
import { zstdFrames } from '../../snapshotter/toc/zstd-frames.ts'
import { makeTar, paxPart, type TarPart } from '../support/make-tar.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { seeded } from '../support/seeded.ts'
import { writeEstargz } from '../support/write-estargz.ts'
import { writeWholeLayer } from '../support/write-whole-layer.ts'
import { fuzz, reportTotal } from './fuzz.ts'
import { mutateBytes } from './mutate.ts'

// Everything about a layer that somebody else wrote, and what this node wrote down of it.

const { signal } = new AbortController()
reportTotal()

const random = seeded(1)
const tars: readonly Buffer[] = [
  makeTar(
    { name: 'd/', typeflag: '5' },
    { name: 'd/one', content: randomContent(random, 3000), mtime: 1_700_000_000 },
    { name: 'd/link', typeflag: '2', linkName: '../d/one' },
    { name: 'd/twin', typeflag: '1', linkName: 'd/one' },
    { name: 'd/null', typeflag: '3', devMajor: 1, devMinor: 3 },
    { name: 'd/.wh.gone' },
    { name: 'd/.wh..wh..opq' },
  ),
  makeTar(
    paxPart([
      ['path', 'long/'.repeat(40)],
      ['SCHILY.xattr.user.a', 'b'],
      ['mtime', '1.5'],
      ['size', '5'],
    ]),
    { name: 'short', content: Buffer.from('12345') },
    paxPart([
      ['GNU.sparse.major', '1'],
      ['GNU.sparse.minor', '0'],
      ['GNU.sparse.realsize', '2048'],
      ['GNU.sparse.name', 'sparse'],
    ]),
    {
      name: 'sparse',
      content: Buffer.concat([
        Buffer.from('1\n1024\n512\n'.padEnd(512, '\0')),
        Buffer.alloc(512, 7),
      ]),
    },
  ),
  makeTar(
    ...Array.from(
      { length: 20 },
      (_, index): TarPart => ({ name: `f${index}`, content: Buffer.alloc(index * 70, index) }),
    ),
  ),
]

function walk(tar: Uint8Array): LayerToc {
  const tarWalk = new TarStreamWalk()
  tarWalk.push(tar)
  return tarWalk.end()
}

fuzz('a tar', {
  cases: 15_000,
  inputs: () => tars,
  mutate: mutateBytes,
  read: (tar) => {
    const toc = walk(tar)
    decodeToc(encodeToc(toc))
    buildTree(toc)
  },
})

fuzz('a table of contents, down to the EROFS image that is made of it', {
  cases: 6000,
  inputs: (): Buffer[] => tars.map((tar) => zstdDecompressSync(encodeToc(walk(tar)))),
  mutate: mutateBytes,
  read: (body) => {
    const toc = decodeToc(zstdCompressSync(body))
    writeErofsImage(buildTree(toc), {
      devices: [{ tag: 'layer', bytes: toc.layerSize }],
      uuid: new Uint8Array(16),
      inline: ({ size }) => Buffer.alloc(Math.min(size, 1 << 20)),
    })
  },
})

fuzz('gzip', {
  cases: 8000,
  inputs: (): Buffer[] => tars.map((tar) => gzipSync(tar)),
  mutate: mutateBytes,
  read: (blob) => {
    const indexer = new GzipIndexer({ outputBytesMax: 1 << 20 })
    for (const bytes of indexer.push(blob)) if (bytes.length > 1 << 20) throw new Error('too long')
    readLayerMap(indexer.finish().toBytes())
  },
})

fuzz('a zstd stream', {
  cases: 5000,
  inputs: (): Buffer[] => tars.map((tar) => zstdCompressSync(tar)),
  mutate: mutateBytes,
  read: async (blob) => {
    let bytes = 0
    const content = (async function* () {
      yield blob
    })()
    for await (const part of decodeZstdStream(content, { outputBytesMax: 1 << 20, signal }))
      bytes += part.length
    if (bytes > 1 << 20) throw new Error('more than the limit came out')
  },
})

fuzz('zstd frames', {
  cases: 8000,
  inputs: () => tars.map((tar) => Buffer.concat([zstdCompressSync(tar), zstdCompressSync('more')])),
  mutate: mutateBytes,
  read: (blob) => zstdFrames(blob),
})

fuzz('the index of a layer that ipdr push wrote', {
  cases: 10_000,
  inputs: async () => {
    const layers = await Promise.all(tars.map((tar) => writeWholeLayer(tar)))
    return layers.map(({ blob, written: { toc, map } }) => ({
      body: Buffer.from(zstdDecompressSync(encodeLayerIndex(toc, map))),
      place: { framesEnd: map.framesEnd, blobSize: blob.length },
    }))
  },
  mutate: (random, { body, place }, other) => ({
    body: mutateBytes(random, body, other.body),
    place,
  }),
  read: ({ body, place }) => decodeLayerIndex(zstdCompressSync(body), place),
})

const maps: Promise<readonly Uint8Array[]> = (async () => {
  const kinds: Uint8Array[] = [
    new TarLayerMap(Float64Array.from([262_144, 300_000])).toBytes(),
    new StreamedLayerMap({ layerSize: 5_000_000, blobSize: 1_000_000 }).toBytes(),
  ]
  for (const tar of tars) {
    kinds.push((await writeWholeLayer(tar)).written.map.toBytes())
    const indexer = new GzipIndexer({ outputBytesMax: 1 << 30 })
    for (const _ of indexer.push(gzipSync(tar))) continue
    kinds.push(indexer.finish().toBytes())
  }
  const { toc, map } = estargz(writeEstargz(tars[2] ?? Buffer.alloc(0)))
  encodeToc(toc)
  kinds.push(map.toBytes())
  return kinds
})()

fuzz<Uint8Array>('a layer map on the disk, of any kind', {
  cases: 12_000,
  inputs: () => maps,
  mutate: mutateBytes,
  read: (bytes) => {
    const map = readLayerMap(bytes)
    // Its units have no range of the blob of their own.
    if (map instanceof StreamedLayerMap) return
    for (let unit = 0; unit + 1 < Math.min(map.starts.length, 50); unit++) {
      const { start, end } = map.blobRange(unit)
      if (start < 0 || end < start || end > map.blobSize)
        throw new Error('a range outside the blob')
    }
  },
})

fuzz('a side index whose checksum fits', {
  cases: 6000,
  inputs: () =>
    tars.map((tar) => {
      const blob = gzipSync(tar)
      const indexer = new GzipIndexer({ outputBytesMax: 1 << 30 })
      for (const _ of indexer.push(blob)) continue
      const map = indexer.finish()
      const layer = { blobDigest: digestOf(blob), blobSize: blob.length, diffId: digestOf(tar) }
      return {
        layer,
        body: Buffer.from(encodeSideIndex(layer, { map, toc: walk(tar) })).subarray(0, -32),
      }
    }),
  mutate: (random, input, other) => ({
    ...input,
    body: mutateBytes(random, input.body, other.body),
  }),
  read: ({ layer, body }) =>
    decodeSideIndex(Buffer.concat([body, createHash('sha256').update(body).digest()]), layer),
})

type Blob = { readonly blob: Buffer; readonly annotations: Readonly<Record<string, string>> }
const readOf =
  (blob: Buffer) =>
  async ({ start, end }: { start: number; end: number }) =>
    new Uint8Array(blob.subarray(start, end))

/** Only the end is changed: that is where tables lie. */
const mutateEnd = (random: (max: number) => number, input: Blob, other: Blob): Blob => {
  const cut = input.blob.length - 1 - random(Math.min(input.blob.length - 1, 3000))
  const changed = mutateBytes(random, input.blob.subarray(cut), other.blob)
  return { ...input, blob: Buffer.concat([input.blob.subarray(0, cut), changed]) }
}

function estargz({ blob, annotations }: Blob) {
  const start = Number.parseInt(blob.subarray(-51).subarray(16, 32).toString('latin1'), 16)
  const digest = annotations['containerd.io/snapshot/stargz/toc.digest']
  return estargzLayer({ stored: blob.subarray(start), start, digest }, leavesOf(blob))
}

function leavesOf(blob: Buffer): { size: number; leafStarts: Float64Array } {
  return { size: blob.length, leafStarts: Float64Array.from([0, blob.length]) }
}

fuzz('the end of an eStargz layer, with its footer and table', {
  cases: 5000,
  inputs: () =>
    tars.slice(2).map((tar): Blob => ({ blob: writeEstargz(tar).blob, annotations: {} })),
  mutate: mutateEnd,
  read: async ({ blob, annotations }) => {
    const found = await fetchEstargzToc(annotations, readOf(blob), blob.length, signal)
    if (found !== undefined) estargzLayer(found, leavesOf(blob))
  },
})

fuzz('the end of a zstd:chunked layer, with its footer, table and tar-split', {
  cases: 5000,
  inputs: async () => {
    const layers = await Promise.all(
      [tars[0], tars[2]].map((tar) => writeWholeLayer(tar ?? Buffer.alloc(0))),
    )
    return layers.map(({ blob }): Blob => ({ blob, annotations: {} }))
  },
  mutate: mutateEnd,
  read: async ({ blob, annotations }) => {
    const found = await fetchChunkedTables(annotations, readOf(blob), blob.length, signal)
    if (found !== undefined) await joinChunkedTables(found, leavesOf(blob), signal)
  },
})

fuzz('a prefetch list', {
  cases: 8000,
  inputs: (): Buffer[] => [
    zstdDecompressSync(
      encodePrefetchList({
        layers: tars.map((tar) => ({ diffId: digestOf(tar), layerSize: tar.length })),
        ranges: Array.from({ length: 12 }, (_, index) => ({
          layer: index % 3,
          path: `d/f${index}`,
          fileSize: 100,
          fileOffset: index,
          layerOffset: 512 * (index % 4),
          length: 20,
        })),
      }),
    ),
  ],
  mutate: mutateBytes,
  read: (body) => decodePrefetchList(zstdCompressSync(body)),
})
