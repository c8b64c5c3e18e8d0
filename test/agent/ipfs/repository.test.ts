import { mkdir, mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CID } from 'multiformats/cid'
import { create } from 'multiformats/hashes/digest'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { BlockRepository } from '../../../agent/ipfs/repository.ts'
import { ReusedMemory } from '../../../snapshotter/reused-memory.ts'
import { failureOf } from '../../support/failure-of.ts'
import { cidOf, MemoryBlocks } from '../../support/memory-blocks.ts'
import { seeded } from '../../support/seeded.ts'

const { signal } = new AbortController()
const random = seeded(12)
const content = Uint8Array.from({ length: 600_000 }, () => random(256))
let work = ''
beforeAll(async () => {
  work = await mkdtemp(join(tmpdir(), 'repository-'))
})
afterAll(() => rm(work, { recursive: true }))

describe('a repository', () => {
  test('reads a block into memory that it is given', async () => {
    await using repository = await BlockRepository.open(join(work, 'into-memory'))
    using memory = new ReusedMemory()
    const block = content.subarray(0, 100_000)
    await repository.put(cidOf(block), block)
    const first = await repository.get(cidOf(block), memory)
    expect(Buffer.compare(first ?? new Uint8Array(), block)).toBe(0)
    memory.giveBack(first ?? new Uint8Array())
    const second = await repository.get(cidOf(block), memory)
    expect(second?.buffer).toBe(first?.buffer)
    const absent = cidOf(content.subarray(1))
    expect(await repository.get(absent, memory)).toBeUndefined()
  })

  test('keeps what its roots lead to when it collects, and lets go of the rest', async () => {
    await using repository = await BlockRepository.open(join(work, 'collected'))
    const kept = new MemoryBlocks()
    const keptRoot = await kept.addDirectory({
      'a/b': content.subarray(0, 50_000),
      c: Buffer.from('c'),
    })
    const dropped = new MemoryBlocks()
    const droppedRoot = await dropped.addDirectory({
      'a/b': content.subarray(50_000),
      c: Buffer.from('c'),
    })
    for (const { blocks } of [kept, dropped]) {
      for (const [cid, block] of blocks) await repository.put(CID.parse(cid), block)
    }
    await repository.addRoot(keptRoot, 'kept')
    await repository.addRoot(droppedRoot, 'dropped')
    expect((await repository.roots()).map(({ name }) => name).toSorted()).toEqual([
      'dropped',
      'kept',
    ])
    expect((await repository.collect({ signal, minAgeMs: -1 })).removed).toBe(0)
    expect(await repository.removeRoot(droppedRoot)).toBe(true)
    expect(await repository.removeRoot(droppedRoot)).toBe(false)
    expect((await repository.collect({ signal })).removed).toBe(0)
    const only = [...dropped.blocks.keys()].filter((cid) => !kept.blocks.has(cid))
    expect(await repository.collect({ signal, minAgeMs: -1 })).toMatchObject({
      removed: only.length,
      kept: kept.blocks.size,
      missing: 0,
    })
    for (const cid of kept.blocks.keys()) expect(await repository.has(CID.parse(cid))).toBe(true)
    for (const cid of only) expect(await repository.get(CID.parse(cid))).toBeUndefined()
  })

  test('does not say that a block is not here when it is the disk that cannot read it', async () => {
    const dir = join(work, 'unreadable')
    await using repository = await BlockRepository.open(dir)
    const block = Buffer.from('bytes')
    await repository.put(cidOf(block), block)
    const path = await onlyBlockFile(dir)
    await rm(path)
    expect(await repository.get(cidOf(block))).toBeUndefined()
    // Reading a directory fails with EISDIR, as a broken disk does with EIO.
    await mkdir(path)
    await expect(repository.get(cidOf(block))).rejects.toThrow('EISDIR')
  })

  test('refuses a block that is not the one its CID names, and sees one that the disk has changed, however long it is now', async () => {
    await using repository = await BlockRepository.open(join(work, 'damaged'))
    const block = Buffer.from('the right bytes')
    const wrong = await failureOf(() => repository.put(cidOf(Buffer.from('other')), block))
    expect(wrong.code).toBe('DATA_LOSS')
    await repository.put(cidOf(block), block)
    const path = await onlyBlockFile(join(work, 'damaged'))
    const stored = await readFile(path)
    await writeFile(path, stored.fill(1, 0, 1))
    expect((await failureOf(() => repository.get(cidOf(block)))).code).toBe('DATA_LOSS')
    // As large as no memory is.
    await truncate(path, 2 ** 42)
    const large = await failureOf(() => repository.get(cidOf(block)))
    expect(large.message).toContain(`${2 * 1024 ** 2 + 1} bytes with digest`)
  })

  test('a root that is no UnixFS is refused', async () => {
    await using repository = await BlockRepository.open(join(work, 'codecs'))
    const cbor = CID.createV1(0x71, create(0x12, new Uint8Array(32)))
    expect((await failureOf(() => repository.addRoot(cbor, 'x'))).code).toBe('INVALID_ARGUMENT')
  })
})

/** The file of the one block of a repository. */
async function onlyBlockFile(directory: string): Promise<string> {
  const blocks = join(directory, 'blocks')
  const names = await readdir(blocks, { recursive: true })
  const files = names.filter((name) => name.endsWith('.data'))
  expect(files).toHaveLength(1)
  return join(blocks, files[0] ?? '')
}
