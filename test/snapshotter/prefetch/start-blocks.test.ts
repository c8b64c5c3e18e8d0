import { CID } from 'multiformats/cid'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import type { FilePath } from '../../../snapshotter/block-source.ts'
import { BlockError } from '../../../snapshotter/errors.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { StartBlocks } from '../../../snapshotter/prefetch/start-blocks.ts'
import {
  encodeStartBlocks,
  type StartBlock,
} from '../../../snapshotter/prefetch/start-blocks-list.ts'
import { encodeStartNodes } from '../../../snapshotter/prefetch/start-nodes.ts'
import { listeningLog } from '../../support/fuse-mount.ts'
import { cidOf, MemoryBlocks } from '../../support/memory-blocks.ts'

const { signal } = new AbortController()
const request = { priority: 'foreground', signal } as const
const MIB = 1024 * 1024
/** The name under which the start of an image's only manifest is found. */
const ONLY = 'only'
const MANIFEST = digestOf(Buffer.from('a manifest'))

/** Blocks of an image beside which lists stand, by the manifest that they are for. */
async function imageWith(
  lists: Record<string, Uint8Array>,
  leaves: readonly Uint8Array[] = [],
): Promise<{ blocks: MemoryBlocks; root: CID; leaves: CID[] }> {
  const blocks = new MemoryBlocks()
  const files = Object.entries(lists).map(([name, bytes]) => [
    name.includes('.') ? name : `${name === ONLY ? 'start' : `start-${name}`}.blocks`,
    bytes,
  ])
  const root = await blocks.addDirectory({
    ...Object.fromEntries(files),
    'manifests/latest': Buffer.from('a manifest'),
  })
  return { blocks, root, leaves: leaves.map((leaf) => blocks.add(leaf)) }
}

function listOf(...cids: readonly (CID | StartBlock)[]): Uint8Array {
  return encodeStartBlocks(cids.map((cid) => ('cid' in cid ? cid : { cid })))
}

const LEAVES = Array.from({ length: 6 }, (_, index) => Buffer.alloc(1000, `leaf ${index}`))
const CIDS = LEAVES.map((leaf) => cidOf(leaf))
const BLOB = cidOf(Buffer.from('a blob'))

type Here = Partial<Pick<ConstructorParameters<typeof StartBlocks>[0], 'isOpen' | 'isHere'>>

function open(
  blocks: MemoryBlocks,
  here: Here = {},
): { starts: StartBlocks; log: ReturnType<typeof listeningLog> } {
  const log = listeningLog()
  const starts = new StartBlocks({
    blocks,
    isOpen: () => false,
    isHere: () => false,
    log,
    ...here,
  })
  onTestFinished(() => starts[Symbol.asyncDispose]())
  return { starts, log }
}

const timesAsked = (blocks: MemoryBlocks, cid: CID): number =>
  blocks.asked.filter((asked) => asked === cid.toString()).length

describe('what an image says its start wants', () => {
  test('is fetched once the image is named, and not again when it is asked for', async () => {
    const { blocks, root } = await imageWith({ [MANIFEST]: listOf(...CIDS) }, LEAVES)
    const { starts } = open(blocks)
    starts.begin(root, MANIFEST)
    await vi.waitFor(() => expect(starts.heldBytes).toBe(6000))
    for (const [index, cid] of CIDS.entries()) {
      expect(Buffer.from(await starts.get(cid, request))).toEqual(LEAVES[index])
    }
    expect(starts.heldBytes).toBe(0)
    expect(CIDS.map((cid) => timesAsked(blocks, cid))).toEqual([1, 1, 1, 1, 1, 1])
    await starts.get(CIDS[0] as CID, request)
    expect(timesAsked(blocks, CIDS[0] as CID)).toBe(2)
  })

  test('may lie beside it in one piece, and is then given as often as it is asked for', async () => {
    const nodes = CIDS.slice(0, 3).map((cid, index) => ({
      cid,
      bytes: LEAVES[index] ?? Buffer.alloc(0),
    }))
    const { blocks, root } = await imageWith(
      {
        [MANIFEST]: listOf(...CIDS.slice(3)),
        [`start-${MANIFEST}.car`]: await encodeStartNodes(nodes),
      },
      LEAVES,
    )
    const { starts } = open(blocks)
    starts.begin(root, MANIFEST)
    await vi.waitFor(() => expect(starts.heldBytes).toBe(6000))
    for (const [index, cid] of CIDS.entries()) {
      expect(Buffer.from(await starts.get(cid, request))).toEqual(LEAVES[index])
    }
    const node = await starts.get(CIDS[0] as CID, request)
    node.fill(0)
    expect(Buffer.from(await starts.get(CIDS[0] as CID, request))).toEqual(LEAVES[0])
    expect(CIDS.map((cid) => timesAsked(blocks, cid))).toEqual([0, 0, 0, 1, 1, 1])
  })

  test('comes only when the small blocks that lead to it are here', async () => {
    const nodes = [{ cid: CIDS[0] as CID, bytes: LEAVES[0] ?? Buffer.alloc(0) }]
    const car = await encodeStartNodes(nodes)
    const { blocks, root } = await imageWith(
      { [MANIFEST]: listOf(...CIDS.slice(1)), [`start-${MANIFEST}.car`]: car },
      LEAVES,
    )
    const { starts } = open(blocks)
    const [gate, isAsked] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
    const get = blocks.get.bind(blocks)
    let listsCame = 0
    vi.spyOn(blocks, 'get').mockImplementation(async (cid, asked) => {
      if (cid.equals(cidOf(car))) {
        isAsked.resolve()
        await gate.promise
      }
      const block = await get(cid, asked)
      if (cid.equals(cidOf(listOf(...CIDS.slice(1))))) listsCame += 1
      return block
    })
    starts.begin(root, MANIFEST)
    await isAsked.promise
    await vi.waitFor(() => expect(listsCame).toBe(1))
    for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve))
    expect(CIDS.map((cid) => timesAsked(blocks, cid))).toEqual([0, 0, 0, 0, 0, 0])
    gate.resolve()
    await vi.waitFor(() => expect(starts.heldBytes).toBe(6000))
  })

  test('is found without the manifest if the image has no other, and is fetched once however often it is named', async () => {
    const { blocks, root } = await imageWith({ [ONLY]: listOf(...CIDS) }, LEAVES)
    const { starts } = open(blocks)
    starts.begin(root)
    starts.begin(root, MANIFEST)
    await vi.waitFor(() => expect(starts.heldBytes).toBe(6000))
    starts.begin(root, MANIFEST)
    await starts[Symbol.asyncDispose]()
    expect(CIDS.map((cid) => timesAsked(blocks, cid))).toEqual([1, 1, 1, 1, 1, 1])
  })

  test('is that of the manifest if the image has several, and waits until that is known', async () => {
    const other = digestOf(Buffer.from('another'))
    const lists = { [MANIFEST]: listOf(...CIDS.slice(0, 2)), [other]: listOf(...CIDS.slice(2)) }
    const { blocks, root } = await imageWith(lists, LEAVES)
    const { starts } = open(blocks)
    starts.begin(root)
    starts.begin(root, MANIFEST)
    await vi.waitFor(() => expect(starts.heldBytes).toBe(2000))
    expect(timesAsked(blocks, CIDS[2] as CID)).toBe(0)
  })

  test('is left out as far as it is on the disk, or opens a layer that is open', async () => {
    const [first, second, third] = CIDS as [CID, CID, CID]
    const list = listOf({ cid: first }, { cid: second, opens: BLOB }, { cid: third, opens: first })
    const { blocks, root } = await imageWith({ [MANIFEST]: list }, LEAVES)
    const { starts } = open(blocks, {
      isHere: (leaf) => leaf.equals(first),
      isOpen: (blob) => blob.equals(BLOB),
    })
    starts.begin(root, MANIFEST)
    await vi.waitFor(() => expect(starts.heldBytes).toBe(1000))
    expect([first, second, third].map((cid) => timesAsked(blocks, cid))).toEqual([0, 0, 1])
  })

  test('is for whoever asks first, while it is on its way or before its turn, and is then not held', async () => {
    const { blocks, root } = await imageWith({ [MANIFEST]: listOf(...CIDS) }, LEAVES)
    const { starts } = open(blocks)
    const gate = Promise.withResolvers<void>()
    const get = blocks.get.bind(blocks)
    let waiting = 0
    vi.spyOn(blocks, 'get').mockImplementation(async (cid, asked) => {
      if (
        asked.priority === 'prefetch' &&
        cid.code === 0x55 &&
        CIDS.some((each) => each.equals(cid))
      ) {
        waiting += 1
        await gate.promise
      }
      return get(cid, asked)
    })
    starts.begin(root, MANIFEST)
    await vi.waitFor(() => expect(waiting).toBe(6))
    expect(Buffer.from(await starts.get(CIDS[3] as CID, request))).toEqual(LEAVES[3])
    gate.resolve()
    await vi.waitFor(() => expect(starts.heldBytes).toBe(5000))
  })

  test('is held up to a limit, and goes on as it is taken', async () => {
    const leaves = Array.from({ length: 60 }, (_, index) => Buffer.alloc(MIB, index + 1))
    const cids = leaves.map((leaf) => cidOf(leaf))
    const { blocks, root } = await imageWith({ [MANIFEST]: listOf(...cids) }, leaves)
    const { starts } = open(blocks)
    starts.begin(root, MANIFEST)
    await vi.waitFor(() => expect(starts.heldBytes).toBeGreaterThanOrEqual(32 * MIB))
    const asked = (): number => cids.filter((cid) => timesAsked(blocks, cid) > 0).length
    expect(starts.heldBytes).toBeLessThanOrEqual(44 * MIB)
    expect(asked()).toBeLessThanOrEqual(44)
    for (const cid of cids.slice(0, 30)) await starts.get(cid, request)
    await vi.waitFor(() => expect(asked()).toBe(60))
    for (const [index, cid] of cids.entries()) {
      expect((await starts.get(cid, request))[0]).toBe(index + 1)
    }
    expect(starts.heldBytes).toBe(0)
  })

  test('is dropped when nobody asks for it any more', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    onTestFinished(() => void vi.useRealTimers())
    const { blocks, root } = await imageWith({ [MANIFEST]: listOf(...CIDS) }, LEAVES)
    const { starts } = open(blocks)
    starts.begin(root, MANIFEST)
    while (starts.heldBytes < 6000) await new Promise((resolve) => setImmediate(resolve))
    vi.advanceTimersByTime(19_000)
    expect(starts.heldBytes).toBe(6000)
    await starts.get(CIDS[0] as CID, request)
    vi.advanceTimersByTime(19_000)
    expect(starts.heldBytes).toBe(5000)
    vi.advanceTimersByTime(2000)
    expect(starts.heldBytes).toBe(0)
  })
})

describe('from where files come in one piece', () => {
  /** An image of one manifest whose nodes and list `along` gives, once its gate is open. */
  async function imageInPieces(): Promise<{
    blocks: MemoryBlocks
    root: CID
    manifests: CID
    asked: string[]
    gate: PromiseWithResolvers<void>
  }> {
    const before = new MemoryBlocks()
    await before.addDirectory({ latest: Buffer.from('a manifest') })
    const [directory = ''] = before.blocks.keys().filter((key) => key.startsWith('bafy'))
    const manifests = CID.parse(directory)
    const nodes = [{ cid: manifests, bytes: before.blocks.get(directory) ?? new Uint8Array() }]
    const car = await encodeStartNodes(nodes)
    const list = listOf(...CIDS)
    const { blocks, root } = await imageWith({ [ONLY]: list, 'start.car': car }, LEAVES)
    const asked: string[] = []
    const gate = Promise.withResolvers<void>()
    const files = new Map([
      ['start.car', car],
      ['start.blocks', list],
    ])
    Object.assign(blocks, {
      async *along({ names }: FilePath) {
        asked.push(names.join('/'))
        await gate.promise
        const [file = new Uint8Array()] = names.map((name) => files.get(name))
        yield { cid: root, bytes: blocks.blocks.get(root.toString()) ?? new Uint8Array() }
        yield { cid: cidOf(file), bytes: file }
      },
    })
    return { blocks, root, manifests, asked, gate }
  }

  test('nodes and list come in the first round trip, and nothing else is asked for but the leaves', async () => {
    const { blocks, root, asked, gate } = await imageInPieces()
    const { starts } = open(blocks)
    gate.resolve()
    starts.begin(root)
    await vi.waitFor(() => expect(starts.heldBytes).toBeGreaterThan(6000))
    expect(asked).toEqual(['start.car', 'start.blocks'])
    expect(blocks.asked.toSorted()).toEqual(CIDS.map(String).toSorted())
    starts.begin(root)
    expect(asked).toHaveLength(2)
  })

  test('whoever asks for a directory meanwhile waits for it, for the root or a leaf nobody waits', async () => {
    const { blocks, root, manifests, gate } = await imageInPieces()
    const { starts } = open(blocks)
    starts.begin(root)
    const node = starts.get(manifests, request)
    await starts.get(root, request)
    await starts.get(CIDS[0] as CID, request)
    expect(blocks.asked).toEqual([root.toString(), String(CIDS[0])])
    gate.resolve()
    expect((await node).length).toBeGreaterThan(0)
    expect(timesAsked(blocks, manifests)).toBe(0)
  })

  test('whoever waits for a directory goes on after a second, whatever does not come', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    onTestFinished(() => void vi.useRealTimers())
    const { blocks, root, manifests, gate } = await imageInPieces()
    const { starts } = open(blocks)
    starts.begin(root)
    const node = starts.get(manifests, request)
    vi.advanceTimersByTime(999)
    for (let turn = 0; turn < 10; turn++) await new Promise(setImmediate)
    expect(timesAsked(blocks, manifests)).toBe(0)
    vi.advanceTimersByTime(1)
    expect((await node).length).toBeGreaterThan(0)
    expect(timesAsked(blocks, manifests)).toBe(1)
    gate.resolve()
  })

  test('whoever gives up waiting is told so at once', async () => {
    const { blocks, root, manifests, gate } = await imageInPieces()
    const { starts } = open(blocks)
    starts.begin(root)
    const gone = new AbortController()
    const node = starts.get(manifests, { priority: 'foreground', signal: gone.signal })
    gone.abort(new BlockError('CANCELLED', 'gone'))
    await expect(node).rejects.toMatchObject({ name: 'BlockError' })
    gate.resolve()
  })

  test('an image that has no such files is read as any other', async () => {
    const { blocks, root } = await imageWith({ [MANIFEST]: listOf(...CIDS) }, LEAVES)
    Object.assign(blocks, { async *along() {} })
    const { starts } = open(blocks)
    starts.begin(root)
    starts.begin(root, MANIFEST)
    await vi.waitFor(() => expect(starts.heldBytes).toBe(6000))
  })
})

describe('a list of blocks', () => {
  test('that is none is told of in one sentence', async () => {
    const { blocks, root } = await imageWith({ [MANIFEST]: Buffer.from('nonsense\n') })
    const { starts, log } = open(blocks)
    starts.begin(root, MANIFEST)
    await vi.waitFor(() => expect(log.sentences).toHaveLength(1))
    expect(log.sentences[0]).toMatch(
      /its start wants, bafk\w+, is not fetched ahead: .*line 1 .*is no CID/,
    )
  })

  test('or nodes that are not what their CIDs say are told of, and the others are good', async () => {
    const lie = { cid: CIDS[0] as CID, bytes: Buffer.from('another leaf') }
    const { blocks, root } = await imageWith(
      {
        [MANIFEST]: listOf(...CIDS.slice(1)),
        [`start-${MANIFEST}.car`]: await encodeStartNodes([lie]),
      },
      LEAVES,
    )
    const { starts, log } = open(blocks)
    starts.begin(root, MANIFEST)
    await vi.waitFor(() => expect(starts.heldBytes).toBe(5000))
    expect(Buffer.from(await starts.get(CIDS[0] as CID, request))).toEqual(LEAVES[0])
    expect(log.sentences).toHaveLength(1)
    expect(log.sentences[0]).toMatch(/its start wants, bafk\w+, is not fetched ahead: block bafk/)
  })

  test('of a root that is no directory, or that nobody has, is the business of whoever pulls it', async () => {
    const blocks = new MemoryBlocks()
    const { starts, log } = open(blocks)
    for (const root of [await blocks.addFile(Buffer.from('a file')), BLOB]) starts.begin(root)
    await starts[Symbol.asyncDispose]()
    expect(log.sentences).toEqual([])
  })

  test('that is not there is no matter', async () => {
    const blocks = new MemoryBlocks()
    const root = await blocks.addDirectory({ 'manifests/latest': Buffer.from('a manifest') })
    const { starts, log } = open(blocks)
    starts.begin(root, MANIFEST)
    await starts[Symbol.asyncDispose]()
    expect(log.sentences).toEqual([])
  })

  test('whose blocks nobody has is given up after some, and those who ask hear why', async () => {
    const lost = Array.from({ length: 500 }, (_, index) => cidOf(Buffer.from(`lost ${index}`)))
    const { blocks, root } = await imageWith({ [MANIFEST]: listOf(...lost) })
    const { starts } = open(blocks)
    starts.begin(root, MANIFEST)
    const asked = (): number => lost.filter((cid) => timesAsked(blocks, cid) > 0).length
    await vi.waitFor(() => expect(asked()).toBeGreaterThanOrEqual(24))
    await expect(starts.get(lost[0] as CID, request)).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await starts[Symbol.asyncDispose]()
    expect(asked()).toBeLessThan(60)
  })
})
