import { expect, test } from 'vitest'
import { blobCid, RegistryBlob } from '../../../snapshotter/blobs/registry-blob.ts'
import type { BlockRequest } from '../../../snapshotter/block-source.ts'
import type { ByteRange } from '../../../snapshotter/byte-range.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { failureOf } from '../../support/failure-of.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'

const content = randomContent(seeded(5), 20_000_000)
const name = { digest: digestOf(content), size: content.length }

/** A blob whose bytes come when they are let go; `asked` has the ranges and the requests. */
function blobOf(reply: (range: ByteRange) => Promise<Uint8Array> = async () => new Uint8Array()) {
  const asked: (ByteRange & { request: BlockRequest })[] = []
  const blob = new RegistryBlob(name, async (range, request) => {
    asked.push({ ...range, request })
    const bytes = await reply(range)
    return bytes.length > 0 ? bytes : Uint8Array.from(content.subarray(range.start, range.end))
  })
  return { blob, asked, ranges: () => asked.map(({ start, end }) => ({ start, end })) }
}

const foreground = { priority: 'foreground', signal: new AbortController().signal } as const

test('reads of one turn that lie side by side become one request, and each gets its own bytes', async () => {
  const { blob, ranges } = blobOf()
  const wanted = [
    { start: 600_000, end: 700_000 },
    { start: 0, end: 100_000 },
    { start: 100_000, end: 600_000 },
    { start: 710_000, end: 720_000 },
    { start: 5_000_000, end: 5_000_010 },
  ]
  const read = await Promise.all(wanted.map((range) => blob.readRange(range, foreground)))
  expect(ranges()).toEqual([
    { start: 0, end: 720_000 },
    { start: 5_000_000, end: 5_000_010 },
  ])
  for (const [index, { start, end }] of wanted.entries()) {
    expect(content.subarray(start, end).equals(read[index] ?? Buffer.alloc(0))).toBe(true)
  }
})

test('one request has no more than 8 MiB, however many are together', async () => {
  const { blob, ranges } = blobOf()
  const wanted = Array.from({ length: 19 }, (_, index) => ({
    start: index * 1_000_000,
    end: (index + 1) * 1_000_000,
  }))
  await Promise.all(wanted.map((range) => blob.readRange(range, foreground)))
  expect(ranges()).toEqual([
    { start: 0, end: 8_000_000 },
    { start: 8_000_000, end: 16_000_000 },
    { start: 16_000_000, end: 19_000_000 },
  ])
})

test('reads of different turns are different requests', async () => {
  const { blob, ranges } = blobOf()
  await blob.readRange({ start: 0, end: 10 }, foreground)
  await blob.readRange({ start: 10, end: 20 }, foreground)
  expect(ranges()).toHaveLength(2)
})

test('a request is as urgent as its most urgent read, and given up when none wants it any more', async () => {
  const { promise: never } = Promise.withResolvers<Uint8Array>()
  const { blob, asked } = blobOf(() => never)
  const [first, second] = [new AbortController(), new AbortController()]
  void blob.readRange({ start: 0, end: 10 }, { priority: 'background', signal: first.signal })
  void blob.readRange({ start: 10, end: 20 }, { priority: 'foreground', signal: second.signal })
  await expect.poll(() => asked.length).toBe(1)
  const request = asked[0]?.request
  expect(request?.priority).toBe('foreground')
  first.abort()
  expect(request?.signal.aborted).toBe(false)
  second.abort(new Error('enough'))
  expect(request?.signal.reason).toMatchObject({ message: 'enough' })
})

test('a failure is that of every read in the request', async () => {
  const { blob } = blobOf(() => Promise.reject(new Error('down')))
  const reads = [0, 10].map((start) => blob.readRange({ start, end: start + 10 }, foreground))
  for (const read of reads) expect((await failureOf(() => read)).message).toBe('down')
})

test('a stream has the bytes in order', async () => {
  const { blob } = blobOf()
  const pieces: Uint8Array[] = []
  for await (const piece of blob.stream({ start: 5, end: 17_000_005 }, foreground)) {
    pieces.push(piece)
  }
  expect(content.subarray(5, 17_000_005).equals(Buffer.concat(pieces))).toBe(true)
})

test('what is kept of it finds it again, and is refused if it is damaged', () => {
  const kept = blobOf().blob.toBytes()
  expect(RegistryBlob.isKept(kept)).toBe(true)
  expect(RegistryBlob.nameFromBytes(kept)).toEqual(name)
  for (let at = 0; at < kept.length; at++) {
    const damaged = Uint8Array.from(kept)
    damaged[at] = (damaged[at] ?? 0) ^ 1
    expect(() => RegistryBlob.nameFromBytes(damaged)).toThrow('is damaged')
  }
  for (const length of [0, 3, 4, 36, kept.length - 1]) {
    expect(() => RegistryBlob.nameFromBytes(kept.subarray(0, length))).toThrow('is damaged')
  }
})

test('one beyond a TiB is refused before anything is made for it', () => {
  const huge = { ...name, size: 2 ** 50 }
  expect(() => new RegistryBlob(huge, async () => new Uint8Array())).toThrow(
    'has 1125899906842624 bytes, 1099511627776 are read',
  )
})

test('its CID is made of its digest, and bytes outside of it are not asked for', () => {
  const { blob, asked } = blobOf()
  expect(blob.cid.equals(blobCid(name.digest))).toBe(true)
  expect(Buffer.from(blob.cid.multihash.digest).toString('hex')).toBe(name.digest.slice(7))
  for (const range of [
    { start: -1, end: 5 },
    { start: 5, end: 4 },
    { start: 0, end: content.length + 1 },
  ]) {
    expect(() => blob.readRange(range, foreground)).toThrow(RangeError)
  }
  expect(asked).toEqual([])
})
