import { UnixFS } from 'ipfs-unixfs'
import type { ImporterOptions } from 'ipfs-unixfs-importer'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { balanced, trickle } from 'ipfs-unixfs-importer/layout'
import { CID } from 'multiformats/cid'
import { create } from 'multiformats/hashes/digest'
import { expect, test } from 'vitest'
import type { BlockMemory, BlockRequest } from '../../../snapshotter/block-source.ts'
import { UnixfsFile } from '../../../snapshotter/dag/unixfs-file.ts'
import { BLOCK_BYTES_MAX } from '../../../snapshotter/dag/unixfs-node.ts'
import { failureOf } from '../../support/failure-of.ts'
import { cidOf, MemoryBlocks } from '../../support/memory-blocks.ts'
import { seeded } from '../../support/seeded.ts'

const request: BlockRequest = { priority: 'foreground', signal: new AbortController().signal }

function randomBytes(length: number, seed = 1): Uint8Array {
  const random = seeded(seed)
  return Uint8Array.from({ length }, () => random(256))
}

const layouts: [string, ImporterOptions][] = [
  ['raw leaves, balanced', { rawLeaves: true }],
  ['dag-pb leaves as CIDv0 writers made them', { rawLeaves: false, cidVersion: 0 }],
  ['leaves of UnixFS type raw', { rawLeaves: false, leafType: 'raw' }],
  [
    'raw leaves, trickle',
    { rawLeaves: true, layout: trickle({ layerRepeat: 2, maxChildrenPerNode: 3 }) },
  ],
  [
    'dag-pb leaves, trickle',
    { rawLeaves: false, layout: trickle({ layerRepeat: 2, maxChildrenPerNode: 3 }) },
  ],
]

// Goal: any range of any layout is what the file has there. Method: random ranges against the bytes that were imported.
test.each(layouts)('random ranges of a file with %s equal the file', async (_, options) => {
  const blocks = new MemoryBlocks()
  const bytes = randomBytes(10_007)
  const cid = await blocks.addFile(bytes, {
    chunker: fixedSize({ chunkSize: 100 }),
    layout: balanced({ maxChildrenPerNode: 4 }),
    ...options,
  })
  const file = await UnixfsFile.open(cid, blocks, request)
  expect(file.size).toBe(bytes.length)
  expect(file.leafStarts.at(-1)).toBe(bytes.length)
  const random = seeded(2)
  for (let read = 0; read < 200; read++) {
    const start = random(bytes.length)
    const end = start + random(bytes.length - start + 1)
    const got = await file.readRange({ start, end }, request)
    const same = Buffer.compare(got, bytes.subarray(start, end)) === 0
    expect({ start, end, same }).toEqual({ start, end, same: true })
  }
  const streamed: Uint8Array[] = []
  for await (const part of file.stream({ start: 50, end: 9_950 }, request)) streamed.push(part)
  expect(Buffer.compare(Buffer.concat(streamed), bytes.subarray(50, 9_950))).toBe(0)
})

test('opening a file reads its inner nodes and not its raw leaves', async () => {
  const blocks = new MemoryBlocks()
  const cid = await blocks.addFile(randomBytes(10_000), { chunker: fixedSize({ chunkSize: 100 }) })
  const file = await UnixfsFile.open(cid, blocks, request)
  expect(file.leafCount).toBe(100)
  expect(blocks.asked).toEqual([cid.toString()])
})

test('opening a file with dag-pb leaves reads one leaf of each node only', async () => {
  const blocks = new MemoryBlocks()
  const cid = await blocks.addFile(randomBytes(10_000), {
    chunker: fixedSize({ chunkSize: 100 }),
    layout: balanced({ maxChildrenPerNode: 10 }),
    rawLeaves: false,
  })
  await UnixfsFile.open(cid, blocks, request)
  expect(new Set(blocks.asked).size).toBe(1 + 10 + 10)
})

test('a range of several leaves gives the memory of each back, one of a single leaf leaves that to the reader', async () => {
  const blocks = new MemoryBlocks()
  const content = randomBytes(1_000)
  const cid = await blocks.addFile(content, { chunker: fixedSize({ chunkSize: 100 }) })
  const lent = new Set<Uint8Array>()
  const memory: BlockMemory = {
    take(bytes) {
      const array = new Uint8Array(bytes)
      lent.add(array)
      return array
    },
    giveBack({ buffer }) {
      for (const array of lent) if (array.buffer === buffer) lent.delete(array)
    },
  }
  const file = await UnixfsFile.open(
    cid,
    {
      async get(leaf, asked) {
        const block = await blocks.get(leaf, asked)
        const into = asked.memory?.take(block.length)
        into?.set(block)
        return into ?? block
      },
    },
    request,
  )
  const several = await file.readRange({ start: 150, end: 450 }, { ...request, memory })
  expect(Buffer.compare(several, content.subarray(150, 450))).toBe(0)
  expect(lent.size).toBe(0)
  const single = await file.readRange({ start: 110, end: 190 }, { ...request, memory })
  expect(Buffer.compare(single, content.subarray(110, 190))).toBe(0)
  expect([...lent].map(({ buffer }) => buffer)).toEqual([single.buffer])
})

test('a range asks for the leaves that it overlaps, some at once but never all', async () => {
  const blocks = new MemoryBlocks()
  const cid = await blocks.addFile(randomBytes(10_000), { chunker: fixedSize({ chunkSize: 100 }) })
  const file = await UnixfsFile.open(cid, blocks, request)
  blocks.asked.length = 0
  await file.readRange({ start: 199, end: 401 }, request)
  expect(blocks.asked.toSorted()).toEqual(
    [1, 2, 3, 4].map((leaf) => String(file.leafCid(leaf))).toSorted(),
  )
  blocks.mostOpen = 0
  await file.readRange({ start: 0, end: 10_000 }, request)
  expect(blocks.mostOpen).toBe(8)
})

test('a stream reads a bounded way ahead of its reader', async () => {
  const blocks = new MemoryBlocks()
  const cid = await blocks.addFile(randomBytes(10_000), { chunker: fixedSize({ chunkSize: 100 }) })
  const file = await UnixfsFile.open(cid, blocks, request)
  blocks.asked.length = 0
  const reader = file.stream({ start: 0, end: 10_000 }, request)
  await reader.next()
  await reader.next()
  expect(blocks.asked.length).toBe(9)
  await reader.return()
})

test('an empty file, one raw block, one dag-pb block and an inlined one are files too', async () => {
  const blocks = new MemoryBlocks()
  const small = randomBytes(50)
  const cids: [CID, Uint8Array][] = [
    [await blocks.addFile(new Uint8Array()), new Uint8Array()],
    [await blocks.addFile(new Uint8Array(), { rawLeaves: false }), new Uint8Array()],
    [blocks.add(small), small],
    [await blocks.addFile(small, { rawLeaves: false }), small],
    [CID.createV1(0x55, create(0x00, small)), small],
  ]
  for (const [cid, bytes] of cids) {
    const file = await UnixfsFile.open(cid, blocks, request)
    const got = await file.readRange({ start: 0, end: file.size }, request)
    expect([cid, Buffer.from(got)]).toEqual([cid, Buffer.from(bytes)])
  }
})

test('content in an inner node comes before its children', async () => {
  const blocks = new MemoryBlocks()
  const unixfs = new UnixFS({ type: 'file', data: Buffer.from('head '), blockSizes: [4n] })
  const cid = blocks.addNode(unixfs, [{ cid: blocks.add(Buffer.from('tail')) }])
  const file = await UnixfsFile.open(cid, blocks, request)
  const got = await file.readRange({ start: 0, end: file.size }, request)
  expect(Buffer.from(got).toString()).toBe('head tail')
})

test('what looked like a leaf beside leaves and is a small tree is read all the same', async () => {
  const blocks = new MemoryBlocks()
  const leaf = (text: string): CID =>
    blocks.addNode(new UnixFS({ type: 'file', data: Buffer.from(text) }), [])
  const tree = blocks.addNode(new UnixFS({ type: 'file', blockSizes: [2n, 2n] }), [
    { cid: leaf('cd') },
    { cid: leaf('ef') },
  ])
  const cid = blocks.addNode(new UnixFS({ type: 'file', blockSizes: [4n, 4n] }), [
    { cid: leaf('89ab') },
    { cid: tree },
  ])
  const file = await UnixfsFile.open(cid, blocks, request)
  const got = await file.readRange({ start: 2, end: 7 }, request)
  expect(Buffer.from(got).toString()).toBe('abcde')
})

test('a stored list of leaves opens the file again without asking for a block, and damage to it is seen', async () => {
  const blocks = new MemoryBlocks()
  const bytes = randomBytes(5_000)
  const cid = await blocks.addFile(bytes, { chunker: fixedSize({ chunkSize: 64 }) })
  const stored = (await UnixfsFile.open(cid, blocks, request)).toBytes()
  blocks.asked.length = 0
  const file = UnixfsFile.fromBytes(stored, blocks)
  expect(file.cid.equals(cid)).toBe(true)
  expect(blocks.asked).toEqual([])
  const got = await file.readRange({ start: 1_000, end: 3_000 }, request)
  expect(Buffer.compare(got, bytes.subarray(1_000, 3_000))).toBe(0)
  for (const at of [0, 9, 40, stored.length - 1]) {
    const damaged = Uint8Array.from(stored)
    damaged[at] = (damaged[at] ?? 0) ^ 1
    const failure = await failureOf(() => UnixfsFile.fromBytes(damaged, blocks))
    expect(failure).toMatchObject({ name: 'BlockError', code: 'DATA_LOSS' })
  }
  const short = await failureOf(() => UnixfsFile.fromBytes(stored.subarray(0, 20), blocks))
  expect(short.code).toBe('DATA_LOSS')
})

const file = (blockSizes: bigint[], data?: Uint8Array): UnixFS =>
  new UnixFS(data === undefined ? { type: 'file', blockSizes } : { type: 'file', blockSizes, data })

const hostile: [string, (blocks: MemoryBlocks) => CID | Promise<CID>, string, RegExp][] = [
  [
    'is a directory',
    (blocks) => blocks.addDirectory({ a: Buffer.from('a') }),
    'NOT_FOUND',
    /is a directory, not a file/,
  ],
  [
    'is dag-cbor',
    (blocks) => blocks.add(Buffer.from('a0', 'hex'), 0x71),
    'FAILED_PRECONDITION',
    /is dag-cbor, not a UnixFS file or directory; images are UnixFS: make one with ipdr push/,
  ],
  [
    'is dag-json',
    (blocks) => blocks.add(Buffer.from('{}'), 0x0129),
    'FAILED_PRECONDITION',
    /is dag-json/,
  ],
  [
    'is garbage',
    (blocks) => blocks.add(Buffer.from('garbage'), 0x70),
    'DATA_LOSS',
    /is not UnixFS/,
  ],
  [
    'has fewer sizes than links',
    (blocks) => blocks.addNode(file([]), [{ cid: blocks.add(Buffer.from('x')) }]),
    'DATA_LOSS',
    /1 links and 0 block sizes/,
  ],
  [
    'says 2^60 bytes',
    (blocks) => blocks.addNode(file([2n ** 60n]), [{ cid: blocks.add(Buffer.from('x')) }]),
    'DATA_LOSS',
    /says that 1152921504606846976 bytes/,
  ],
  [
    'has a leaf of 3 MiB',
    (blocks) => blocks.addNode(file([3n << 20n]), [{ cid: cidOf(Buffer.from('x')) }]),
    'RESOURCE_EXHAUSTED',
    new RegExp(`limit of blocks of ${BLOCK_BYTES_MAX} bytes`),
  ],
  [
    'is 40 nodes deep',
    (blocks) => {
      let cid = blocks.add(new Uint8Array(1 << 20))
      for (let depth = 0; depth < 40; depth++) {
        cid = blocks.addNode(file([1n << 20n]), [{ cid }])
      }
      return cid
    },
    'RESOURCE_EXHAUSTED',
    /limit of a depth of 32 nodes/,
  ],
  [
    'names one small tree a million times over',
    (blocks) => {
      const leaf = blocks.add(new Uint8Array(1))
      let [cid, size] = [leaf, 1n]
      for (let depth = 0; depth < 7; depth++) {
        cid = blocks.addNode(
          file(Array<bigint>(10).fill(size)),
          Array.from({ length: 10 }, () => ({ cid })),
        )
        size *= 10n
      }
      return cid
    },
    'RESOURCE_EXHAUSTED',
    /limit of (262144 leaves|16384 inner nodes)/,
  ],
  [
    'has a child of another size than its parent says',
    (blocks) => {
      const child = blocks.addNode(file([4n]), [{ cid: blocks.add(Buffer.from('four')) }])
      return blocks.addNode(file([5n]), [{ cid: child }])
    },
    'DATA_LOSS',
    /has 4 bytes under it, its parent says 5/,
  ],
]
test.each(hostile)('a file that %s is refused with the reason', async (_, build, code, reason) => {
  const blocks = new MemoryBlocks()
  const cid = await build(blocks)
  const failure = await failureOf(() => UnixfsFile.open(cid, blocks, request))
  expect(failure.message).toMatch(reason)
  expect(failure.code).toBe(code)
})

test('a leaf of another length than the list says is data loss, not a short read', async () => {
  const blocks = new MemoryBlocks()
  const leaf = blocks.add(Buffer.from('four'))
  const opened = await UnixfsFile.open(blocks.addNode(file([5n]), [{ cid: leaf }]), blocks, request)
  const failure = await failureOf(() => opened.readRange({ start: 0, end: 5 }, request))
  expect(failure).toMatchObject({ code: 'DATA_LOSS' })
  expect(failure.message).toMatch(/leaf 0, .* has 4 bytes, its parent says 5/)
})

test('a missing leaf fails the read with the block, and stops the others', async () => {
  const blocks = new MemoryBlocks()
  const cid = await blocks.addFile(randomBytes(10_000), { chunker: fixedSize({ chunkSize: 100 }) })
  const opened = await UnixfsFile.open(cid, blocks, request)
  blocks.blocks.delete(opened.leafCid(3).toString())
  blocks.asked.length = 0
  const failure = await failureOf(() => opened.readRange({ start: 0, end: 10_000 }, request))
  expect(failure).toMatchObject({ name: 'BlockError', code: 'NOT_FOUND' })
  expect(blocks.asked.length).toBeLessThan(30)
})

test('a read that is cancelled, or late, says which', async () => {
  const blocks = new MemoryBlocks()
  const cid = await blocks.addFile(randomBytes(1_000), { chunker: fixedSize({ chunkSize: 100 }) })
  const opened = await UnixfsFile.open(cid, blocks, request)
  const cancelled = { ...request, signal: AbortSignal.abort() }
  const late = { ...request, signal: AbortSignal.abort(new DOMException('late', 'TimeoutError')) }
  const whole = { start: 0, end: 1_000 }
  expect((await failureOf(() => opened.readRange(whole, cancelled))).code).toBe('CANCELLED')
  expect((await failureOf(() => opened.readRange(whole, late))).code).toBe('DEADLINE_EXCEEDED')
})

test('a range that is not in the file is a mistake of the caller', async () => {
  const blocks = new MemoryBlocks()
  const opened = await UnixfsFile.open(blocks.add(randomBytes(10)), blocks, request)
  for (const [start, end] of [
    [0, 11],
    [-1, 5],
    [6, 5],
    [0.5, 2],
  ] as const) {
    expect((await failureOf(() => opened.readRange({ start, end }, request))).name).toBe(
      'RangeError',
    )
  }
})
