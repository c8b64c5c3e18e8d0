import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { CarReader } from '@ipld/car'
import { CarWriter } from '@ipld/car/writer'
import { CID } from 'multiformats/cid'
import { create } from 'multiformats/hashes/digest'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { importCar } from '../../../agent/ipfs/import-car.ts'
import { CAR_HEADER_BYTES_MAX } from '../../../agent/ipfs/read-car.ts'
import { BlockRepository } from '../../../agent/ipfs/repository.ts'
import { CodedError } from '../../../snapshotter/errors.ts'
import { makeTar } from '../../support/make-tar.ts'
import { cidOf, MemoryBlocks } from '../../support/memory-blocks.ts'
import { seeded } from '../../support/seeded.ts'
import { ended, IPDR, runIpdr, startIpdr } from './support/run-ipdr.ts'
import { scratchDir } from './support/scratch-dir.ts'

type Block = { cid: CID; bytes: Uint8Array }

let dir: string
let published: string
let root: CID
let car: Buffer
let blocks: Block[]

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'ipdr-car-'))
  published = join(dir, 'published')
  const random = seeded(5)
  const noise = Buffer.from(Array.from({ length: 5000 }, () => random(256)))
  const tar = join(dir, 'root.tar')
  await writeFile(tar, makeTar({ name: 'tool', content: noise }, { name: 'motd', content: 'hi\n' }))
  const pushed = await runIpdr(['push', tar, '-q', '--repository', published])
  root = CID.parse(pushed.stdout.trim().replace('ipdr.internal/', ''))
  const file = join(dir, 'image.car')
  await runIpdr(['export', root.toString(), '--to', file, '--repository', published])
  car = await readFile(file)
  blocks = await listOf((await CarReader.fromBytes(car)).blocks())
})
afterAll(() => rm(dir, { recursive: true, force: true }))

async function listOf<T>(items: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = []
  for await (const item of items) list.push(item)
  return list
}

async function carOf(roots: CID[], held: Iterable<Block>): Promise<Buffer> {
  const { writer, out } = CarWriter.create(roots)
  const read = listOf(out)
  for (const block of held) await writer.put(block)
  await writer.close()
  return Buffer.concat(await read)
}

/** A varint of a length, and as many bytes. */
function section(bytes: Uint8Array): Buffer {
  if (bytes.length < 128) return Buffer.concat([Buffer.of(bytes.length), bytes])
  return Buffer.concat([Buffer.of((bytes.length & 127) | 128, bytes.length >> 7), bytes])
}

describe('an image', () => {
  test('that is pushed, exported and imported elsewhere has the same root and can be inspected', async () => {
    const repository = join(await scratchDir(), 'new')
    const words = ['import', join(dir, 'image.car'), '--repository', repository]
    const imported = await runIpdr([...words, '-o', 'json', '-q'])
    expect(imported).toMatchObject({ exitCode: 0, stderr: '' })
    expect(JSON.parse(imported.stdout)).toMatchObject({
      root: root.toString(),
      reference: `ipdr.internal/${root.toString()}`,
      tags: ['latest'],
      blocks: blocks.length,
    })
    const look = async (place: string) =>
      runIpdr(['inspect', root.toString(), '--repository', place])
    expect(await look(repository)).toEqual(await look(published))
    const again = await runIpdr([
      'export',
      root.toString(),
      '-q',
      '--repository',
      repository,
      '--to',
      join(dir, 'again.car'),
    ])
    expect(again).toMatchObject({ exitCode: 0 })
    expect(await readFile(join(dir, 'again.car'))).toEqual(car)
    const listed = await runIpdr(['repository', 'ls', '-q', '--repository', repository])
    expect(listed.stdout).toBe(`${root.toString()}\n`)
  })

  test('is the same CAR by file and by pipe: its root first, each block once', async () => {
    const child = startIpdr(['export', root.toString(), '-q', '--repository', published])
    const parts: Buffer[] = []
    child.stdout.on('data', (part: Buffer) => parts.push(part))
    const [code] = await new Promise<[number | null]>((resolve) =>
      child.on('close', (exitCode) => resolve([exitCode])),
    )
    expect(code).toBe(0)
    expect(Buffer.concat(parts).equals(car)).toBe(true)
    const cids = blocks.map(({ cid }) => cid.toString())
    expect(cids[0]).toBe(root.toString())
    expect(new Set(cids).size).toBe(cids.length)
  })

  test('is imported from standard input, and with --quiet its reference is all that is said', async () => {
    const words = ['import', '-', '-q', '--repository', await scratchDir()]
    const { exitCode, stdout, stderr } = await runIpdr(words, { input: car })
    expect({ exitCode, stdout, stderr }).toEqual({
      exitCode: 0,
      stdout: `ipdr.internal/${root.toString()}\n`,
      stderr: '',
    })
  })

  test('is imported from a CAR that lacks blocks which are there already', async () => {
    const words = ['import', '-', '-q', '--repository', published]
    const input = await carOf([root], blocks.slice(0, 1))
    expect(await runIpdr(words, { input })).toMatchObject({ exitCode: 0 })
  })

  test('that is not whole leaves no file under the name, nor beside it', async () => {
    const repository = await scratchDir()
    const partial = await BlockRepository.open(repository)
    const leaf = blocks.findLast(({ cid }) => cid.code === 0x55)
    for (const { cid, bytes } of blocks) if (cid !== leaf?.cid) await partial.put(cid, bytes)
    await partial[Symbol.asyncDispose]()
    const target = await scratchDir()
    const words = [
      'export',
      root.toString(),
      '--to',
      join(target, 'a.car'),
      '--repository',
      repository,
    ]
    expect(await runIpdr(words)).toMatchObject({ exitCode: 66 })
    expect(await readdir(target)).toEqual([])
  })

  test('is exported from a gateway where there is no repository', async () => {
    const listen = ['--listen', '/ip4/127.0.0.1/tcp/0', '--gateway', '127.0.0.1:0', '-o', 'json']
    const server = startIpdr(['serve', ...listen, '--repository', published])
    const end = ended(server)
    const [said] = (await once(server.stdout, 'data')) as [string]
    const { gateway } = JSON.parse(said) as { gateway: string }
    const target = join(await scratchDir(), 'a.car')
    const words = ['export', root.toString(), '--to', target, '--gateway', gateway]
    const env = { XDG_DATA_HOME: '/nowhere' }
    const exported = await runIpdr(words, { env })
    server.kill('SIGINT')
    await end
    expect(exported).toMatchObject({ exitCode: 0 })
    expect((await readFile(target)).equals(car)).toBe(true)
  })

  test('is not written to a terminal', async () => {
    const command = `${IPDR} export ${root.toString()} --repository ${published}`
    const child = spawn('script', ['-qec', command, '/dev/null'], { stdio: 'pipe' })
    const { exitCode, stdout } = await ended(child)
    expect(exitCode).toBe(2)
    expect(stdout).toContain('a CAR is not written to a terminal')
  })

  test('that is an OCI descriptor with URLs is not exported, because the CAR would lack its blobs', async () => {
    const memory = new MemoryBlocks()
    const digest = `sha256:${'a'.repeat(64)}`
    const mediaType = 'application/vnd.oci.image.manifest.v1+json'
    const url = `ipfs://${memory.add(Buffer.from('{}')).toString()}`
    const descriptor = Buffer.from(JSON.stringify({ mediaType, digest, size: 2, urls: [url] }))
    const cid = memory.add(descriptor)
    const repository = await scratchDir()
    const opened = await BlockRepository.open(repository)
    await opened.put(cid, descriptor)
    await opened[Symbol.asyncDispose]()
    const { exitCode, stderr } = await runIpdr([
      'export',
      cid.toString(),
      '--repository',
      repository,
    ])
    expect(exitCode).toBe(1)
    expect(stderr).toContain('names its blobs by URL')
  })
})

describe('a CAR', () => {
  const HEADER_BYTES = 59
  const text = Buffer.from('no image')
  const hostile: [
    name: string,
    exitCode: number,
    says: string,
    make: () => Promise<Buffer> | Buffer,
  ][] = [
    ['of no bytes', 65, 'it is empty', () => Buffer.alloc(0)],
    ['that is cut off in its header', 65, 'cut off', () => car.subarray(0, 30)],
    ['that is cut off in a block', 65, 'cut off', () => car.subarray(0, -1)],
    ['that is text', 65, 'header', () => Buffer.from('\ntext, not a CAR')],
    [
      'whose header claims 4 KiB and more',
      65,
      `${CAR_HEADER_BYTES_MAX} are allowed`,
      () => section(Buffer.alloc(CAR_HEADER_BYTES_MAX + 1)),
    ],
    [
      'whose block claims 200 MiB',
      65,
      'are allowed',
      () => Buffer.concat([car.subarray(0, HEADER_BYTES), Buffer.of(0x80, 0x80, 0x80, 0x64)]),
    ],
    [
      'with a length that never ends',
      65,
      'larger than any part',
      () => Buffer.concat([car.subarray(0, HEADER_BYTES), Buffer.alloc(20, 0xff)]),
    ],
    ['with an empty block', 65, 'has no bytes', () => Buffer.concat([car, Buffer.of(0)])],
    [
      'with a block that has no CID',
      65,
      'no CID',
      () => Buffer.concat([car, section(Buffer.alloc(50, 7))]),
    ],
    ['of version 2', 65, 'version 1', () => Buffer.from('0aa16776657273696f6e02', 'hex')],
    ['without a root', 65, 'names no root', () => carOf([], blocks)],
    ['with two roots', 65, 'has 2 roots', () => carOf([root, cidOf(text)], blocks)],
    ['whose root is dag-cbor', 65, 'no UnixFS', () => carOf([cidOf(text, 0x71)], [])],
    [
      'whose root is in its CID',
      65,
      'no UnixFS',
      () => carOf([CID.createV1(0x55, create(0, text))], []),
    ],
    ['that lacks its root', 65, 'neither in the CAR', () => carOf([root], blocks.slice(1))],
    ['that lacks a leaf', 65, 'neither in the CAR', () => carOf([root], blocks.slice(0, -1))],
    [
      'of something else',
      65,
      'is not an image',
      () => carOf([cidOf(text)], [{ cid: cidOf(text), bytes: text }]),
    ],
    [
      'with a block that is not its CID',
      76,
      'its CID says',
      () => carOf([root], [...blocks, { cid: cidOf(text), bytes: Buffer.from('else') }]),
    ],
    [
      'with a CID that carries other bytes',
      76,
      'its CID says',
      () =>
        carOf(
          [root],
          [...blocks, { cid: CID.createV1(0x55, create(0, text)), bytes: Buffer.from('else') }],
        ),
    ],
  ]
  test.each(hostile)('%s exits %i, and no root is kept', async (_name, exitCode, says, make) => {
    const repository = await scratchDir()
    const child = startIpdr(['import', '-', '-q', '--repository', repository])
    child.stdin.on('error', () => undefined)
    child.stdin.end(await make())
    const result = await ended(child)
    expect({ exitCode: result.exitCode, stdout: result.stdout }).toEqual({ exitCode, stdout: '' })
    expect(result.stderr).toContain(says)
    expect(await readdir(join(repository, 'roots'))).toEqual([])
  })

  test('that stops coming is waited for until SIGINT, which exits 130 and keeps no root', async () => {
    const repository = await scratchDir()
    const words = ['import', '-', '--progress', 'json', '--repository', repository]
    const child = startIpdr(words)
    const end = ended(child)
    child.stdin.on('error', () => undefined)
    child.stdin.write(car.subarray(0, 200))
    await once(child.stderr, 'data')
    child.kill('SIGINT')
    expect(await end).toMatchObject({ exitCode: 130, stdout: '' })
    expect(await readdir(join(repository, 'roots'))).toEqual([])
  })

  test('that is no file exits 66, and no repository is made', async () => {
    const repository = join(await scratchDir(), 'none')
    const words = ['import', '/nowhere.car', '--repository', repository]
    expect(await runIpdr(words)).toMatchObject({ exitCode: 66 })
    expect(await readdir(join(repository, '..'))).toEqual([])
  })

  test('may hold blocks whose CIDs carry them, however long', async () => {
    const inline = CID.createV1(0x55, create(0, Buffer.alloc(90, 1)))
    const source = await carOf([root], [...blocks, { cid: inline, bytes: Buffer.alloc(90, 1) }])
    expect(await importedFrom(source, await scratchDir())).toBe(root.toString())
  })

  // Goal: no bytes crash the import or register what is not whole. Method: change, cut and repeat bytes of a
  // real CAR; whatever is not refused with a code of ours must be this very image.
  test('that is changed anywhere is refused with a code, or is still the image', async () => {
    const random = seeded(23)
    const outcomes = { image: 0, refused: 0 }
    for (let round = 0; round < 300; round++) {
      const repository = await mkdtemp(join(dir, 'round-'))
      const outcome = await importedFrom(mutated(car, random), repository)
      const kept = await readdir(join(repository, 'roots'))
      const isRefused = outcome instanceof CodedError
      outcomes[isRefused ? 'refused' : 'image']++
      const expected = isRefused
        ? { outcome, kept: [] }
        : { outcome: root.toString(), kept: [root.toString()] }
      expect({ outcome, kept }, `round ${round}`).toEqual(expected)
      await rm(repository, { recursive: true })
    }
    expect(outcomes.refused).toBeGreaterThan(100)
  }, 120_000)
})

/** The root that was imported, or the refusal. Other errors are thrown on. */
async function importedFrom(bytes: Uint8Array, directory: string): Promise<string | CodedError> {
  await using repository = await BlockRepository.open(directory)
  const { signal } = new AbortController()
  try {
    const source = Readable.from([bytes.subarray(0, 100), bytes.subarray(100)])
    return (await importCar(source, { repository, name: 'test', signal })).root.toString()
  } catch (error) {
    if (error instanceof CodedError) return error
    throw error
  }
}

function mutated(bytes: Buffer, random: (max: number) => number): Buffer {
  // Half of them in the header and the first CIDs: most of the rest is content.
  const at = random(random(2) === 0 ? 200 : bytes.length)
  const kind = random(4)
  if (kind === 0) return bytes.subarray(0, at)
  if (kind === 1) return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + random(40))])
  if (kind === 2) return Buffer.concat([bytes.subarray(0, at + random(40)), bytes.subarray(at)])
  const changed = Buffer.from(bytes)
  changed[at] = random(256)
  return changed
}
