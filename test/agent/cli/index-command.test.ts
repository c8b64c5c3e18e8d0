import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { CID } from 'multiformats/cid'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { BlockRepository } from '../../../agent/ipfs/repository.ts'
import { CodedError } from '../../../snapshotter/errors.ts'
import {
  type Compression,
  type OciLayout,
  packLayer,
  writeOciLayout,
} from '../../support/images/oci-layout.ts'
import { importAsIs } from '../../support/import-as-is.ts'
import { makeTar } from '../../support/make-tar.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { Scratch } from '../../support/scratch.ts'
import { seeded } from '../../support/seeded.ts'
import { sideIndexOf } from '../../support/side-index-of.ts'
import { FakeAgent } from './support/fake-agent.ts'
import { runIpdr, startIpdr } from './support/run-ipdr.ts'
import { scratchDir } from './support/scratch-dir.ts'

const GZIPPED = makeTar(
  { name: 'bin/', typeflag: '5', mode: 0o755 },
  { name: 'bin/tool', mode: 0o755, content: randomContent(seeded(1), 3_000_000) },
)
const PLAIN = makeTar({ name: 'etc/motd', content: 'hello\n' })
const SMALL = makeTar({ name: 'etc/hostname', content: 'ipdr\n' })
const ZSTD = makeTar({ name: 'etc/issue', content: 'Debian\n' })

const MISSING = 'bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi'

let scratch: Scratch
let layout: OciLayout

beforeAll(async () => {
  scratch = Scratch.open('cli-index')
  const pack = (tar: Uint8Array, compression: Compression) =>
    packLayer(Readable.from([tar]), compression, join(scratch.dir, 'layers'))
  const layers = [
    await pack(GZIPPED, 'gzip'),
    await pack(PLAIN, 'none'),
    await pack(ZSTD, 'zstd'),
    await pack(SMALL, 'gzip'),
  ]
  layout = writeOciLayout(join(scratch.dir, 'layout'), { layers, tag: 'v1' })
})
afterAll(() => scratch[Symbol.asyncDispose]())

type IndexAnswer = {
  root: string
  reference: string
  isNew: boolean
  layers: {
    digest: string
    outcome: string
    blobBytes: number
    indexBytes: number | null
    indexShare: number | null
    by: string | null
    because: string | null
  }[]
}

/** A repository that holds the image as another publisher wrote it. */
async function published(): Promise<{ repository: string; root: string }> {
  const repository = await scratchDir()
  return { repository, root: await importAsIs(layout, repository) }
}

async function indexJson(words: readonly string[]): Promise<IndexAnswer> {
  const { exitCode, stdout, stderr } = await runIpdr(['index', ...words, '-o', 'json', '-q'])
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
  return JSON.parse(stdout) as IndexAnswer
}

/** What a UnixFS directory leads to, by name. */
async function entries(repository: string, root: string): Promise<Map<string, string>> {
  await using blocks = await BlockRepository.open(repository)
  const { decode } = await import('@ipld/dag-pb')
  const block = await blocks.get(CID.parse(root))
  const { Links } = decode(block ?? new Uint8Array())
  return new Map(Links.map(({ Name = '', Hash }) => [Name, Hash.toString()]))
}

describe('ipdr index', () => {
  test('gives the image a new root, with the same manifests and blobs and an index of each gzip layer', async () => {
    const { repository, root } = await published()
    const answer = await indexJson([`${root}:v1`, '--repository', repository])
    const [gzip, plain, zstd, small] = layout.layers
    expect(answer).toMatchObject({ isNew: true, reference: `ipdr.internal/${answer.root}:v1` })
    expect(answer.layers).toMatchObject([
      { digest: gzip?.digest, outcome: 'indexed', by: 'reading', blobBytes: gzip?.size },
      { digest: plain?.digest, outcome: 'needs-none', because: expect.stringContaining('tar') },
      { digest: zstd?.digest, outcome: 'impossible', because: expect.stringContaining('frame') },
      { digest: small?.digest, outcome: 'needs-none', because: expect.stringContaining('block') },
    ])
    const [before, after] = [
      await entries(repository, root),
      await entries(repository, answer.root),
    ]
    const indexes = after.get('indexes') ?? ''
    expect(after).toEqual(new Map([...before, ['indexes', indexes]]))
    expect([...(await entries(repository, indexes)).keys()]).toEqual([gzip?.digest])
  })

  test('and inspect then says that those layers can be read lazily', async () => {
    const { repository, root } = await published()
    const lazy = async (reference: string): Promise<unknown> => {
      const words = ['inspect', reference, '-o', 'json', '--repository', repository]
      const { stdout } = await runIpdr(words)
      const { manifests } = JSON.parse(stdout) as {
        manifests: { layers: { lazy: { kind: string } }[] }[]
      }
      return manifests[0]?.layers.map(({ lazy }) => lazy)
    }
    expect(await lazy(root)).toMatchObject([
      { kind: 'none' },
      { kind: 'headers' },
      { kind: 'none' },
      { kind: 'none' },
    ])
    const answer = await indexJson([root, '--repository', repository])
    expect(await lazy(answer.root)).toMatchObject([
      { kind: 'index', entries: 2, layerBytes: GZIPPED.length },
      { kind: 'headers' },
      { kind: 'none' },
      { kind: 'none' },
    ])
  })

  test('tells a person sizes, shares, times, what was not indexed and why, and what to do next', async () => {
    const { repository, root } = await published()
    const { stdout, stderr, exitCode } = await runIpdr([
      'index',
      root,
      '--repository',
      repository,
      '--progress',
      'json',
    ])
    expect(exitCode).toBe(0)
    expect(stdout).toMatch(/^LAYER +SIZE +INDEX +SHARE +NOTE$/m)
    expect(stdout).toMatch(/MiB +[\d.]+ (?:Ki)?B +\d\.\d\d % +indexed in .* MB\/s\)$/m)
    expect(stdout).toMatch(/needs none: a plain tar is read where it lies$/m)
    expect(stdout).toMatch(/cannot be indexed: zstd can only be decoded from the start of a frame/)
    expect(stdout).toMatch(/^1 layer of 4 indexed in /m)
    expect(stdout).toContain('Offer it to others: ipdr serve')
    const steps = stderr
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as object)
    const size = layout.layers[0]?.size
    expect(steps.at(-1)).toMatchObject({ doneBytes: size, totalBytes: size, step: 'done' })
  })

  test('a second time adds nothing, and the CID is the same whoever does it', async () => {
    const [one, two] = [await published(), await published()]
    const first = await indexJson([one.root, '--repository', one.repository])
    expect((await indexJson([two.root, '--repository', two.repository])).root).toBe(first.root)
    const again = await indexJson([first.root, '--repository', one.repository])
    expect(again).toMatchObject({ root: first.root, isNew: false })
    expect(again.layers[0]).toMatchObject({ outcome: 'had-index' })
  })

  test('works on an image that only a gateway has, and keeps nothing of it but the index', async () => {
    const { repository, root } = await published()
    const words = ['--listen', '/ip4/127.0.0.1/tcp/0', '--gateway', '127.0.0.1:0', '-o', 'json']
    const server = startIpdr(['serve', '--repository', repository, ...words])
    try {
      const [line] = (await server.stdout.take(1).toArray()) as Buffer[]
      const { gateway } = JSON.parse(String(line)) as { gateway: string }
      const own = await scratchDir()
      const answer = await indexJson([root, '--gateway', gateway, '--repository', join(own, 'new')])
      expect(answer.layers[0]).toMatchObject({ outcome: 'indexed' })
      await using blocks = await BlockRepository.open(join(own, 'new'))
      expect(await blocks.has(CID.parse(answer.root))).toBe(true)
      expect(await blocks.has(CID.parse(root))).toBe(false)
      expect((await blocks.roots()).map(({ name }) => name)).toEqual([`index of ${root}`])
    } finally {
      server.kill()
    }
  }, 60_000)

  test('takes what the agent has learnt, and reads the layer itself where the agent has not', async () => {
    const [gzip] = layout.layers
    const learnt = await sideIndexOf(readFileSync(gzip?.path ?? ''), GZIPPED)
    const asked: string[] = []
    for (const hasIt of [true, false]) {
      const { repository, root } = await published()
      await using agent = await FakeAgent.start({
        async *LayerIndex({ blobCid }) {
          asked.push(blobCid)
          if (!hasIt) throw new CodedError('NOT_FOUND', 'there is no such index')
          yield { bytes: Buffer.from(learnt.subarray(0, 100)) }
          yield { bytes: Buffer.from(learnt.subarray(100)) }
        },
      })
      const words = [root, '--from-agent', '--agent', agent.socketPath, '--repository', repository]
      const answer = await indexJson(words)
      expect(answer.layers[0]).toMatchObject({ by: hasIt ? 'known' : 'reading' })
    }
    expect(asked).toHaveLength(2)
    expect(CID.parse(asked[0] ?? '').version).toBe(1)
  })

  test('exits 76 for a layer that is not what its digest says, and keeps no root', async () => {
    const repository = await scratchDir()
    const [gzip] = layout.layers
    const damaged = readFileSync(gzip?.path ?? '')
    damaged[damaged.length - 6] = (damaged.at(-6) ?? 0) ^ 1
    const root = await importAsIs(layout, repository, new Map([[gzip?.digest ?? '', damaged]]))
    const result = await runIpdr(['index', root, '--repository', repository])
    expect(result.exitCode).toBe(76)
    await using blocks = await BlockRepository.open(repository)
    expect(await blocks.roots()).toEqual([])
  })

  test.each([
    { words: ['index', 'not-a-cid'], exitCode: 2 },
    { words: ['index', MISSING], exitCode: 66 },
  ])('$words exits $exitCode', async ({ words, exitCode }) => {
    const { repository } = await published()
    const result = await runIpdr([...words, '--repository', repository])
    expect({ exitCode: result.exitCode, stdout: result.stdout }).toEqual({ exitCode, stdout: '' })
  })
})
