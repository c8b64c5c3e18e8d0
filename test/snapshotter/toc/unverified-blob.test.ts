import { createHash } from 'node:crypto'
import zlib from 'node:zlib'
import { describe, expect, test } from 'vitest'
import { LayerError } from '../../../snapshotter/errors.ts'
import { readLayerMap } from '../../../snapshotter/layers/read-layer-map.ts'
import type { ChunkLayerMap } from '../../../snapshotter/toc/chunked/chunk-layer-map.ts'
import { fetchChunkedTables } from '../../../snapshotter/toc/chunked/fetch-chunked-tables.ts'
import { joinChunkedTables } from '../../../snapshotter/toc/chunked/join-chunked-tables.ts'
import { estargzLayer } from '../../../snapshotter/toc/estargz/estargz-layer.ts'
import { fetchEstargzToc } from '../../../snapshotter/toc/estargz/fetch-estargz-toc.ts'
import type { LayerToc } from '../../../snapshotter/toc/layer-toc.ts'
import {
  CHUNKED_CHECKSUM_ANNOTATION,
  CHUNKED_POSITION_ANNOTATION,
} from '../../../snapshotter/toc/zstd-chunked.ts'
import { decodeZstdFrames, skippableFrame } from '../../../snapshotter/toc/zstd-frames.ts'
import { failureOf } from '../../support/failure-of.ts'
import { makeTar } from '../../support/make-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { writeEstargz } from '../../support/write-estargz.ts'
import { chunkedLayer } from '../layers/published-image.ts'
import { skopeoLayer } from './chunked/golden/skopeo-layer.ts'

// Layers in a registry: no block has a CID, so nothing may be shown that the manifest's digest of a table does not vouch for.

type Layer = {
  readonly blob: Uint8Array
  readonly annotations?: Readonly<Record<string, string>>
}
type Opened = { readonly toc: LayerToc; readonly map: ChunkLayerMap }

const LEAF_BYTES = 4096
const { signal } = new AbortController()

async function open({ blob, annotations = {} }: Layer): Promise<Opened> {
  const read = async ({ start, end }: { start: number; end: number }): Promise<Uint8Array> =>
    blob.subarray(start, end)
  const leafStarts = Float64Array.from(
    { length: Math.ceil(blob.length / LEAF_BYTES) + 1 },
    (_, leaf) => Math.min(leaf * LEAF_BYTES, blob.length),
  )
  const of = { size: blob.length, leafStarts, unverified: true }
  const table = await fetchEstargzToc(annotations, read, blob.length, signal)
  if (table !== undefined) return estargzLayer(table, of)
  const tables = await fetchChunkedTables(annotations, read, blob.length, signal)
  if (tables === undefined) throw new LayerError('NOT_FOUND', 'no table')
  return joinChunkedTables(tables, of, signal)
}

/** Each file's content by its path, where every unit of it decodes; `refused` counts the units that do not. */
async function contentsOf({ toc, map }: Opened, blob: Uint8Array) {
  const layer = Buffer.alloc(map.layerSize)
  const missing: { start: number; end: number }[] = []
  for (let unit = 0; unit + 1 < map.starts.length; unit++) {
    const { start, end } = map.blobRange(unit)
    const [layerStart = 0, layerEnd = 0] = map.starts.subarray(unit, unit + 2)
    try {
      layer.set(await map.decode(unit, blob.subarray(start, end)), layerStart)
    } catch (error) {
      if (!(error instanceof LayerError)) throw error
      missing.push({ start: layerStart, end: layerEnd })
    }
  }
  const contents = new Map<string, string>()
  for (const { path, extents = [] } of toc.entries) {
    const parts = extents.map(({ layerOffset, length }) => ({
      start: layerOffset,
      end: layerOffset + length,
    }))
    const isHere = parts.every((part) =>
      missing.every(({ start, end }) => end <= part.start || part.end <= start),
    )
    const bytes = parts.map(({ start, end }) => layer.subarray(start, end))
    if (isHere) contents.set(path, Buffer.concat(bytes).toString('latin1'))
  }
  return { contents, refused: missing.length }
}

const tar = makeTar(
  { name: 'etc/', typeflag: '5', mode: 0o755 },
  { name: 'etc/passwd', content: 'root:x:0:0::/root:/bin/sh\n' },
  { name: 'data', content: 'abcdefgh'.repeat(9_000) },
  { name: 'more', content: '0123'.repeat(7_000) },
)

const layers: [string, () => Promise<Layer>][] = [
  ['eStargz', async () => writeEstargz(tar, { chunkBytes: 10_000 })],
  ['zstd:chunked of skopeo', skopeoLayer],
  ['ipdr push', () => chunkedLayer(tar)],
]

describe.each(layers)('a layer of %s', (_, make) => {
  test('shows the same files as ever', async () => {
    const layer = await make()
    const { contents, refused } = await contentsOf(await open(layer), layer.blob)
    expect(refused).toBe(0)
    expect(contents.size).toBeGreaterThan(2)
  })

  // Goal: no wrong byte is shown. Method: one byte of the blob is another; each file is as it was, or cannot be read.
  test('shows no wrong byte, whichever of the blob is changed', async () => {
    const layer = await make()
    const honest = (await contentsOf(await open(layer), layer.blob)).contents
    const random = seeded(11)
    let [unopened, unread] = [0, 0]
    for (let change = 0; change < 300; change++) {
      const blob = Buffer.from(layer.blob)
      const at = random(blob.length)
      blob[at] = (blob[at] ?? 0) ^ (1 + random(255))
      let opened: Opened
      try {
        opened = await open({ ...layer, blob })
      } catch (error) {
        if (!(error instanceof LayerError)) throw error
        unopened += 1
        continue
      }
      const { contents, refused } = await contentsOf(opened, blob)
      unread += refused
      for (const [path, content] of contents) {
        expect(content === honest.get(path), `byte ${at} changed ${path}`).toBe(true)
      }
    }
    expect({ unopened: unopened > 0, unread: unread > 0 }).toEqual({ unopened: true, unread: true })
  })

  test('is checked by what is on disk after a restart', async () => {
    const layer = await make()
    const { toc, map } = await open(layer)
    const stored = readLayerMap(map.toBytes()) as ChunkLayerMap
    expect(stored.isBound).toBe(true)
    const again = await contentsOf({ toc, map: stored }, layer.blob)
    expect(again).toEqual(await contentsOf({ toc, map }, layer.blob))
  })

  test('is refused if the manifest does not say the digest of its table', async () => {
    const { blob, annotations = {} } = await make()
    const named = Object.entries(annotations).filter(([name]) => !/checksum|toc\.digest/.test(name))
    const failure = await failureOf(() => open({ blob, annotations: Object.fromEntries(named) }))
    expect(failure.message).toContain('the manifest has no digest of its table of contents')
  })
})

describe('a layer is refused', () => {
  test('if a chunk of eStargz has no digest', async () => {
    const layer = writeEstargz(tar, {
      change: (lines) => {
        for (const line of lines) {
          if (line['name'] !== 'data') continue
          delete line['chunkDigest']
          delete line['digest']
        }
      },
    })
    const failure = await failureOf(() => open(layer))
    expect(failure.message).toBe('eStargz: a chunk has no digest in its table of contents')
  })

  test.each([
    [
      'has no digest of its tar-split',
      { tarSplitDigest: undefined },
      /has no digest of its tar-split/,
    ],
    [
      'has another',
      { tarSplitDigest: `sha256:${'0'.repeat(64)}` },
      /its table of contents says sha256:0{64}/,
    ],
    ['has a chunk without digest', { chunks: 'bare' }, /a chunk has no digest/],
  ])('if its zstd:chunked table %s', async (_, change, problem) => {
    const { blob, annotations } = await skopeoLayer()
    const [start = 0, length = 0, bytes = 0] = (annotations[CHUNKED_POSITION_ANNOTATION] ?? '')
      .split(':')
      .map(Number)
    const json = decodeZstdFrames(blob.subarray(start, start + length), bytes)
    const table = JSON.parse(Buffer.from(json).toString()) as {
      tarSplitDigest: string
      entries: Record<string, unknown>[]
    }
    if ('chunks' in change) {
      for (const entry of table.entries) {
        delete entry['chunkDigest']
        delete entry['digest']
      }
    } else Object.assign(table, change)
    const text = Buffer.from(JSON.stringify(table))
    const stored = zlib.zstdCompressSync(text)
    // Behind the rest, whose places stay as they are.
    const changed = Buffer.concat([blob, skippableFrame(stored)])
    const failure = await failureOf(() =>
      open({
        blob: changed,
        annotations: {
          ...annotations,
          [CHUNKED_POSITION_ANNOTATION]: `${blob.length + 8}:${stored.length}:${text.length}:1`,
          [CHUNKED_CHECKSUM_ANNOTATION]: `sha256:${createHash('sha256').update(stored).digest('hex')}`,
        },
      }),
    )
    expect(failure.message).toMatch(problem)
  })
})
