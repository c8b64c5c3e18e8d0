import { mkdir, readdir, truncate, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { CID } from 'multiformats/cid'
import { afterAll, expect, onTestFinished, test } from 'vitest'
import { BlockCache } from '../../../agent/cluster/block-cache.ts'
import { cidOf } from '../../support/memory-blocks.ts'
import { Scratch } from '../../support/scratch.ts'

const scratch = Scratch.open('block-cache')
afterAll(() => scratch[Symbol.asyncDispose]())

let directories = 0
const newDirectory = (): string => join(scratch.dir, String(directories++))

function block(text: string, bytes = 1_000): { cid: CID; bytes: Buffer } {
  const content = Buffer.alloc(bytes, text)
  return { cid: cidOf(content), bytes: content }
}

async function openCache(
  directory = newDirectory(),
  bytesMax = 10_000,
): Promise<{ cache: BlockCache; directory: string; damaged: string[]; warnings: string[] }> {
  const damaged: string[] = []
  const warnings: string[] = []
  const cache = await BlockCache.open(directory, bytesMax, {
    log: { warn: (_facts: object, sentence: string) => void warnings.push(sentence) },
    onDamaged: (cid) => damaged.push(cid.toString()),
  })
  onTestFinished(() => cache[Symbol.asyncDispose]())
  return { cache, directory, damaged, warnings }
}

const [a, b, c] = [block('a'), block('b'), block('c')]

test('a block is here once it was put, under the CID of its version 1', async () => {
  const { cache, directory } = await openCache()
  expect(await cache.get(a.cid)).toBeUndefined()
  await cache.put(a.cid, a.bytes)
  expect(cache.sizeOf(a.cid)).toBe(1_000)
  expect(Buffer.from((await cache.get(a.cid)) ?? [])).toEqual(a.bytes)
  expect(cache.bytes).toBe(1_000)
  expect(await readdir(directory)).toEqual([a.cid.toString()])
})

test('beyond its bytes the oldest blocks go, and one that is larger than all of it is not taken', async () => {
  const { cache, directory } = await openCache(newDirectory(), 2_500)
  for (const { cid, bytes } of [a, b, c]) await cache.put(cid, bytes)
  expect([a, b, c].map(({ cid }) => cache.sizeOf(cid))).toEqual([undefined, 1_000, 1_000])
  expect(await readdir(directory)).toHaveLength(2)
  const large = block('large', 2_501)
  await cache.put(large.cid, large.bytes)
  expect(cache.sizeOf(large.cid)).toBeUndefined()
  expect(cache.bytes).toBe(2_000)
})

test('blocks put twice, or at the same time, count once', async () => {
  const { cache } = await openCache()
  await Promise.all([cache.put(a.cid, a.bytes), cache.put(a.cid, a.bytes)])
  await cache.put(a.cid, a.bytes)
  expect(cache.bytes).toBe(1_000)
})

test('what was kept is there after a restart, and the oldest is still the first to go', async () => {
  const { cache: before, directory } = await openCache()
  for (const { cid, bytes } of [a, b, c]) await before.put(cid, bytes)
  // As if b had come first.
  await utimes(join(directory, b.cid.toString()), 1, 1)
  const { cache } = await openCache(directory, 2_000)
  expect([a, b, c].map(({ cid }) => cache.sizeOf(cid))).toEqual([1_000, undefined, 1_000])
  expect(Buffer.from((await cache.get(c.cid)) ?? [])).toEqual(c.bytes)
})

test('what is no block in its directory is removed at the start: half-written ones, and what others left', async () => {
  const { cache: before, directory } = await openCache()
  await before.put(a.cid, a.bytes)
  await writeFile(join(directory, `${b.cid.toString()}.tmp`), 'half')
  await writeFile(join(directory, 'notes.txt'), 'x')
  await openCache(directory)
  expect(await readdir(directory)).toEqual([a.cid.toString()])
})

test('a block that the disk changed or lost is not served, is told of, and can be put again', async () => {
  const { cache, directory, damaged } = await openCache()
  for (const { cid, bytes } of [a, b, c]) await cache.put(cid, bytes)
  await writeFile(join(directory, a.cid.toString()), Buffer.alloc(1_000, 'x'))
  await truncate(join(directory, b.cid.toString()), 10)
  expect(await cache.get(a.cid)).toBeUndefined()
  expect(await cache.get(b.cid)).toBeUndefined()
  expect(damaged).toEqual([a.cid.toString(), b.cid.toString()])
  expect(await readdir(directory)).toEqual([c.cid.toString()])
  expect(cache.bytes).toBe(1_000)
  await cache.put(a.cid, a.bytes)
  expect(Buffer.from((await cache.get(a.cid)) ?? [])).toEqual(a.bytes)
})

test('a disk that takes nothing is told of once, and no block fails for it', async () => {
  const { cache, directory, warnings } = await openCache()
  // In the way of its files, whoever runs this.
  for (const { cid } of [a, b]) await mkdir(join(directory, `${cid.toString()}.tmp`))
  await cache.put(a.cid, a.bytes)
  await cache.put(b.cid, b.bytes)
  expect(cache.sizeOf(a.cid)).toBeUndefined()
  expect(warnings).toHaveLength(1)
  expect(warnings[0]).toMatch(/^blocks cannot be kept for other nodes: EISDIR/)
})

test('of many blocks at once only so many are written as fit into 32 MiB', async () => {
  const { cache } = await openCache(newDirectory(), 1_000 * 1024 ** 2)
  const blocks = Array.from({ length: 40 }, (_, at) => block(`${at} `, 1024 ** 2))
  await Promise.all(blocks.map(({ cid, bytes }) => cache.put(cid, bytes)))
  expect(cache.bytes).toBe(32 * 1024 ** 2)
})
