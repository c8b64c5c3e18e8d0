import { execFileSync } from 'node:child_process'
import { hash } from 'node:crypto'
import zlib from 'node:zlib'
import { beforeAll, describe, expect, test } from 'vitest'
import { LEAF_BYTES_MAX } from '../../../snapshotter/publish/leaf-boundaries.ts'
import { writeLayer } from '../../../snapshotter/publish/write-layer.ts'
import { readLayerIndex } from '../../../snapshotter/toc/read-layer-toc.ts'
import { sameToc } from '../../../snapshotter/toc/same-toc.ts'
import { TarStreamWalk } from '../../../snapshotter/toc/walk-tar.ts'
import {
  CHUNKED_CHECKSUM_ANNOTATION,
  CHUNKED_POSITION_ANNOTATION,
  TAR_SPLIT_POSITION_ANNOTATION,
} from '../../../snapshotter/toc/zstd-chunked.ts'
import { decodeZstdFrame, zstdFrames } from '../../../snapshotter/toc/zstd-frames.ts'
import { makeTar, paxPart } from '../../support/make-tar.ts'
import { randomContent, randomTreeTar } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { writeWholeLayer } from '../../support/write-whole-layer.ts'

const noAbort = new AbortController().signal

function sha256(bytes: Uint8Array): string {
  return `sha256:${hash('sha256', bytes)}`
}

function decodeFrames(bytes: Uint8Array): Buffer {
  const decoded = zstdFrames(bytes).map(({ start, end, contentSize, kind }) => {
    if (kind === 'skippable') return Buffer.alloc(0)
    if (contentSize === undefined) throw new Error('a frame of ours does not declare its size')
    return decodeZstdFrame(bytes.subarray(start, end), contentSize)
  })
  return Buffer.concat(decoded)
}

describe.each([1, 2])('a random tree, seed %i', (seed) => {
  const tar = randomTreeTar(seeded(seed), 200)
  let layer: Awaited<ReturnType<typeof writeWholeLayer>>
  beforeAll(async () => {
    layer = await writeWholeLayer(tar)
  })

  test('the blob is valid zstd of the tar, for the zstd program and frame by frame', async () => {
    const { blob, written } = layer
    const decoded = execFileSync('zstd', ['-d', '-c', '-q'], { input: blob, maxBuffer: 1 << 28 })
    expect(decoded.equals(tar)).toBe(true)
    expect(decodeFrames(blob).equals(tar)).toBe(true)
    expect(written).toMatchObject({ diffId: sha256(tar), digest: sha256(blob), size: blob.length })
  })

  test('every unit of the map is a leaf, and decodes to its part of the tar', async () => {
    const { blob, leaves, written } = layer
    const { map } = written
    expect(map.starts.length - 1).toBeGreaterThan(10)
    expect(map.layerSize).toBe(tar.length)
    for (let unit = 0; unit + 1 < map.starts.length; unit++) {
      const { start, end } = map.blobRange(unit)
      const leaf = leaves[unit] ?? Buffer.alloc(0)
      expect(blob.subarray(start, end).equals(leaf), `unit ${unit}`).toBe(true)
      const part = tar.subarray(map.starts[unit], map.starts[unit + 1])
      expect(Buffer.from(await map.decode(unit, leaf)).equals(part), `unit ${unit}`).toBe(true)
    }
    // No block is beyond what IPFS implementations pass on, and groups of small files keep to their limit.
    expect(Math.max(...leaves.map(({ length }) => length))).toBeLessThanOrEqual(1 << 20)
    const grouped = leaves.filter((leaf) => zstdFrames(leaf).length > 1)
    expect(Math.max(...grouped.map(({ length }) => length))).toBeLessThanOrEqual(LEAF_BYTES_MAX)
  })

  test('one read at the end of the blob gives the table of contents and the map', async () => {
    const { blob, written } = layer
    const reads: number[] = []
    const index = await readLayerIndex(
      written.annotations,
      async ({ start, end }) => {
        reads.push(end - start)
        return blob.subarray(start, end)
      },
      blob.length,
      noAbort,
    )
    if (index === undefined) throw new Error('the layer has no index')
    expect(reads).toHaveLength(1)
    const walk = new TarStreamWalk()
    walk.push(tar)
    expect(sameToc(index.toc, walk.end())).toBeUndefined()
    expect(Buffer.from(index.map.toBytes()).equals(written.map.toBytes())).toBe(true)
  })

  test('the same tar makes the same blob, however it arrives', async () => {
    const random = seeded(seed)
    const second = await writeWholeLayer(tar, () => 1 + random(5000))
    expect(second.written.digest).toBe(layer.written.digest)
    expect(second.leaves.map(({ length }) => length)).toEqual(
      layer.leaves.map(({ length }) => length),
    )
  })

  test('zstd:chunked readers find every content alone, by the documented fields', async () => {
    const { blob, written } = layer
    const { toc, tocJson } = readChunkedToc(blob, written.annotations)
    expect(Object.keys(tocJson).toSorted()).toEqual(['entries', 'tarSplitDigest', 'version'])
    expect(tocJson).toMatchObject({ version: 1 })
    const files = toc.filter(({ type }) => type !== 'chunk')
    expect(files.map(({ name }) => clean(name))).toEqual(
      written.toc.entries.map(({ path }) => path),
    )
    for (const [index, entry] of written.toc.entries.entries()) {
      const file = files[index]
      if (file === undefined) throw new Error('an entry is missing')
      expect(file).toMatchObject({ type: entry.kind, size: entry.size, uid: entry.uid })
      const seconds = entry.mtimeSec + entry.mtimeNsec / 1e9
      expect(Date.parse(file.modtime) / 1000).toBe(seconds)
      for (const [name, value] of entry.xattrs ?? []) {
        expect(file.xattrs?.[name]).toBe(Buffer.from(value).toString('base64'))
      }
      if (entry.size === 0) continue
      const [extent] = entry.extents ?? []
      const content = tar.subarray(extent?.layerOffset, (extent?.layerOffset ?? 0) + entry.size)
      const chunks = [
        file,
        ...toc.filter(({ type, name }) => type === 'chunk' && name === file.name),
      ]
      const whole = chunks.map(({ offset = 0, chunkOffset = 0, chunkSize, chunkDigest }, chunk) => {
        // As containers/storage: a chunk ends where the next one starts, the last with the file.
        const next = chunks[chunk + 1]
        const end = next?.offset ?? chunks.at(-1)?.endOffset
        const frames = zstdFrames(blob.subarray(offset, end))
        expect(frames, `${file.name} chunk ${chunk}`).toHaveLength(1)
        const bytes = decodeFrames(blob.subarray(offset, end))
        expect(bytes.length).toBe(chunkSize)
        expect(sha256(bytes)).toBe(chunkDigest)
        expect(content.subarray(chunkOffset, chunkOffset + bytes.length).equals(bytes)).toBe(true)
        return bytes
      })
      expect(sha256(Buffer.concat(whole))).toBe(file.digest)
      expect(file.endOffset).toBe(chunks.at(-1)?.endOffset)
    }
    expect(toc.some(({ type }) => type === 'chunk')).toBe(true)
  })

  test('tar-split and the contents make the tar again', async () => {
    const { blob, written } = layer
    const { tarSplit } = readChunkedToc(blob, written.annotations)
    let files = 0
    let end = 0
    const rebuilt = tarSplit.map(({ type, payload, size = 0 }) => {
      const start = end
      if (type === 2) {
        const segment = Buffer.from(payload ?? '', 'base64')
        end += segment.length
        return segment
      }
      files++
      end += size
      const content = tar.subarray(start, end)
      // Bit by bit is slow: the short files are enough.
      const isRight = size === 0 || size > 5000 || payload === slowCrc64(content)
      return isRight ? content : Buffer.from('wrong sum')
    })
    expect(Buffer.concat(rebuilt).equals(tar)).toBe(true)
    expect(tarSplit.map(({ position }) => position)).toEqual([...tarSplit.keys()])
    expect(files).toBe(written.toc.entries.length)
  })

  test('the footers say what the annotations say', async () => {
    const { blob, written } = layer
    const [offset, length, uncompressed] = numbers(written.annotations[CHUNKED_POSITION_ANNOTATION])
    const split = numbers(written.annotations[TAR_SPLIT_POSITION_ANNOTATION])
    const [storage, stargz] = zstdFrames(blob)
      .slice(-2)
      .map(({ start, end }) => blob.subarray(start + 8, end))
    expect(storage).toHaveLength(64)
    expect(storage?.subarray(56).toString()).toBe('GNUlInUx')
    expect(words(storage?.subarray(0, 56))).toEqual([offset, length, uncompressed, 1, ...split])
    expect(stargz).toHaveLength(40)
    expect(stargz?.subarray(32).toString()).toBe('GnUlInUx')
    expect(words(stargz?.subarray(0, 32))).toEqual([offset, length, uncompressed, 1])
  })
})

describe('the same files in another layer', () => {
  const random = seeded(9)
  const shared = Array.from({ length: 400 }, (_, index) => ({
    name: `usr/share/file-${index}`,
    content: randomContent(random, 500 + random(20_000)),
  }))

  test('are the same blocks, but for the ends of the run', async () => {
    const before = makeTar({ name: 'a', content: randomContent(random, 7000) }, ...shared)
    const after = makeTar({ name: 'b', content: randomContent(random, 90_000) }, ...shared, {
      name: 'c',
    })
    const blocks = async (tar: Buffer): Promise<string[]> => {
      const { leaves, written } = await writeWholeLayer(tar)
      return leaves.slice(0, written.map.starts.length - 1).map(sha256)
    }
    const known = new Set(await blocks(before))
    const others = (await blocks(after)).filter((block) => !known.has(block))
    expect(known.size).toBeGreaterThan(12)
    expect(others.length).toBeLessThanOrEqual(4)
  })

  test('and a long file stays the same blocks around a change in its middle', async () => {
    const long = randomContent(random, 12_000_000)
    const changed = Buffer.concat([
      long.subarray(0, 6e6),
      Buffer.from('inserted'),
      long.subarray(6e6),
    ])
    const chunks = async (content: Buffer): Promise<string[]> => {
      const { leaves } = await writeWholeLayer(makeTar({ name: 'long', content }))
      return leaves.map(sha256)
    }
    const known = new Set(await chunks(long))
    const others = (await chunks(changed)).filter((block) => !known.has(block))
    expect(known.size).toBeGreaterThan(15)
    // The chunk with the change, perhaps its neighbour; header, padding; index and tables.
    expect(others.length).toBeLessThanOrEqual(6)
  })
})

describe('layers that zstd:chunked cannot describe have no such tables, and are whole in all else', () => {
  const sparse = paxPart([
    ['GNU.sparse.major', '0'],
    ['GNU.sparse.minor', '1'],
    ['GNU.sparse.size', '100000'],
    ['GNU.sparse.map', '0,512,51200,512'],
  ])
  test.each([
    [
      'a sparse file',
      makeTar(sparse, { name: 's', content: 'd'.repeat(1024) }),
      /"s" is a sparse file/,
    ],
    ['a name twice', makeTar({ name: 'a' }, { name: './a' }), /"a" is in the layer twice/],
    ['a name that is not UTF-8', makeTar({ name: '\xff' }), /not UTF-8/],
    [
      'a global header',
      makeTar(paxPart([['comment', 'x']], 'g'), { name: 'a' }),
      /global PAX header/,
    ],
    [
      'garbage at its end',
      Buffer.concat([makeTar({ name: 'a' }), Buffer.from('x')]),
      /goes on after its end/,
    ],
    [
      'a year beyond 9999',
      makeTar(paxPart([['mtime', '300000000000']]), { name: 'a' }),
      /years 0 to 9999/,
    ],
  ])('%s', async (_, tar, obstacle) => {
    const { written, blob } = await writeWholeLayer(tar)
    expect(written.chunkedObstacle).toMatch(obstacle)
    expect(written.annotations).not.toHaveProperty([CHUNKED_CHECKSUM_ANNOTATION])
    expect(decodeFrames(blob).equals(tar)).toBe(true)
    const read = async ({ start, end }: { start: number; end: number }): Promise<Uint8Array> =>
      blob.subarray(start, end)
    const index = await readLayerIndex(written.annotations, read, blob.length, noAbort)
    expect(index && sameToc(index.toc, written.toc)).toBeUndefined()
    expect(index?.toc.entries.length).toBeGreaterThan(0)
  })
})

test.each([
  ['no byte at all', Buffer.alloc(0)],
  ['nothing but its end', Buffer.alloc(10_240)],
  ['one file', makeTar({ name: 'only', content: 'x' })],
])('a layer with %s is written and read back', async (_, tar) => {
  const { blob, written } = await writeWholeLayer(tar)
  expect(execFileSync('zstd', ['-d', '-c', '-q'], { input: blob }).equals(tar)).toBe(true)
  expect(written).toMatchObject({ diffId: sha256(tar), chunkedObstacle: undefined })
})

test('a truncated tar and an aborted signal leave no finished layer behind', async () => {
  const tar = makeTar({ name: 'file', content: randomContent(seeded(1), 5000) })
  await expect(writeWholeLayer(tar.subarray(0, 3000))).rejects.toMatchObject({
    code: 'DATA_LOSS',
    message: expect.stringContaining('"file" at byte 0 of the layer is cut off'),
  })
  const stop = new AbortController()
  const source = (async function* () {
    stop.abort()
    yield tar
  })()
  await expect(writeLayer(source, { signal: stop.signal }).next()).rejects.toMatchObject({
    code: 'CANCELLED',
  })
})

type ChunkedEntry = {
  type: string
  name: string
  size?: number
  modtime: string
  xattrs?: Record<string, string>
  digest?: string
  offset?: number
  endOffset?: number
  chunkOffset?: number
  chunkSize?: number
  chunkDigest?: string
}
type SplitRecord = {
  type: number
  name?: string
  size?: number
  payload: string | null
  position: number
}

/** Reads the tables as containers/storage does: by annotations, checking digests and lengths. */
function readChunkedToc(
  blob: Buffer,
  annotations: Readonly<Record<string, string>>,
): { toc: ChunkedEntry[]; tocJson: object; tarSplit: SplitRecord[] } {
  const [offset = 0, length = 0, uncompressed, type] = numbers(
    annotations[CHUNKED_POSITION_ANNOTATION],
  )
  const compressed = blob.subarray(offset, offset + length)
  expect(type).toBe(1)
  expect(sha256(compressed)).toBe(annotations[CHUNKED_CHECKSUM_ANNOTATION])
  const json = zlib.zstdDecompressSync(compressed)
  expect(json.length).toBe(uncompressed)
  const tocJson = JSON.parse(json.toString()) as { entries: ChunkedEntry[]; tarSplitDigest: string }
  const split = numbers(annotations[TAR_SPLIT_POSITION_ANNOTATION])
  const splitBytes = blob.subarray(split[0], (split[0] ?? 0) + (split[1] ?? 0))
  expect(sha256(splitBytes)).toBe(tocJson.tarSplitDigest)
  const lines = decodeFrames(splitBytes)
  expect(lines.length).toBe(split[2])
  const tarSplit = lines
    .toString()
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as SplitRecord)
  return { toc: tocJson.entries, tocJson, tarSplit }
}

function numbers(annotation: string | undefined): number[] {
  return (annotation ?? '').split(':').map(Number)
}

function words(bytes: Buffer | undefined): number[] {
  const numbers: number[] = []
  for (let at = 0; at < (bytes?.length ?? 0); at += 8) {
    numbers.push(Number(bytes?.readBigUInt64LE(at)))
  }
  return numbers
}

function clean(name: string): string {
  return name.replace(/^\.\//, '').replace(/\/$/, '')
}

/** CRC-64 (ISO) bit by bit, from its polynomial. */
function slowCrc64(bytes: Uint8Array): string {
  let crc = 0xffffffffffffffffn
  for (const byte of bytes) {
    crc ^= BigInt(byte)
    for (let bit = 0; bit < 8; bit++) {
      crc = (crc & 1n) === 0n ? crc >> 1n : (crc >> 1n) ^ 0xd800000000000000n
    }
  }
  const sum = Buffer.alloc(8)
  sum.writeBigUInt64BE(crc ^ 0xffffffffffffffffn)
  return sum.toString('base64')
}
