import { join } from 'node:path'
import { Readable } from 'node:stream'
import { CID } from 'multiformats/cid'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { BlockRepository } from '../../../agent/ipfs/repository.ts'
import { addIpcr, addOciLayout } from '../../support/image-layouts.ts'
import { type OciLayout, packLayer, writeOciLayout } from '../../support/images/oci-layout.ts'
import { importAsIs } from '../../support/import-as-is.ts'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { Scratch } from '../../support/scratch.ts'
import { seeded } from '../../support/seeded.ts'
import { runIpdr, startIpdr } from './support/run-ipdr.ts'
import { scratchDir } from './support/scratch-dir.ts'

// `ipdr push ipfs:`: an image that is on IPFS already, in whatever layout, is written anew as lazily readable blocks.

const MISSING = 'bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi'

const LOOPBACK = ['--listen', '/ip4/127.0.0.1/tcp/0', '--gateway', '127.0.0.1:0', '-o', 'json']

let scratch: Scratch
let layout: OciLayout
/** What pushing the layout itself gives. */
let expected: Pushed

type Pushed = {
  readonly root: string
  readonly digest: string
  readonly layers: readonly { readonly leaves: number | null }[]
}

beforeAll(async () => {
  scratch = Scratch.open('push-ipfs')
  const tar = makeTar({ name: 'etc/motd', content: randomContent(seeded(1), 900_000) })
  const layer = await packLayer(Readable.from([tar]), 'gzip', join(scratch.dir, 'layers'))
  layout = writeOciLayout(join(scratch.dir, 'layout'), { layers: [layer] })
  expected = await pushed([`oci:${layout.dir}`, '--repository', join(scratch.dir, 'expected')])
})
afterAll(() => scratch[Symbol.asyncDispose]())

async function pushed(words: readonly string[]): Promise<Pushed> {
  const { exitCode, stdout, stderr } = await runIpdr(['push', ...words, '-o', 'json', '-q'])
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
  return JSON.parse(stdout) as Pushed
}

/** A repository that has the image as `add` lays it out. */
async function repositoryWith(
  add: (blocks: MemoryBlocks, image: OciLayout) => Promise<CID>,
): Promise<{ repository: string; root: string }> {
  const [memory, repository] = [new MemoryBlocks(), await scratchDir()]
  const root = (await add(memory, layout)).toString()
  await using opened = await BlockRepository.open(repository)
  for (const [cid, block] of memory.blocks) await opened.put(CID.parse(cid), block)
  return { repository, root }
}

describe('push of an image on IPFS', () => {
  test('of one that another tool wrote as gzip gives what its source would have given', async () => {
    const repository = await scratchDir()
    const root = await importAsIs(layout, repository)
    const again = await pushed([`ipfs:${root}`, '--repository', repository])
    expect(again.root).toBe(expected.root)
    expect(again.layers.every(({ leaves }) => leaves !== null)).toBe(true)
  })

  test.each([
    ['a descriptor with ipfs:// addresses, as nerdctl writes', addIpcr],
    ['an OCI layout in a directory', addOciLayout],
  ])('of %s gives the same, and no address of the old blobs is left', async (_, add) => {
    const { repository, root } = await repositoryWith(add)
    const again = await pushed([`ipfs://${root}`, '--repository', repository])
    expect(again.digest).toBe(expected.digest)
  })

  test('takes it from a gateway, and keeps nothing but what it wrote', async () => {
    const offered = await scratchDir()
    const root = await importAsIs(layout, offered)
    const server = startIpdr(['serve', '--repository', offered, ...LOOPBACK])
    try {
      const [line] = (await server.stdout.take(1).toArray()) as Buffer[]
      const { gateway } = JSON.parse(String(line)) as { gateway: string }
      const repository = await scratchDir()
      const again = await pushed([`ipfs:${root}`, '--from', gateway, '--repository', repository])
      expect(again.root).toBe(expected.root)
      await using opened = await BlockRepository.open(repository)
      expect(await opened.has(CID.parse(root))).toBe(false)
    } finally {
      server.kill()
    }
  })

  test.each([
    [2, ['ipfs:nonsense']],
    [2, ['ipfs:']],
    [66, [`ipfs:${MISSING}`]],
    [2, ['-', '--from', 'http://127.0.0.1:1']],
    [2, [`ipfs:${MISSING}`, '--from', 'ftp://127.0.0.1:1']],
  ])('exits %i for %o', async (exitCode, words) => {
    const ended = await runIpdr(['push', ...words, '--repository', await scratchDir()])
    expect(ended).toMatchObject({ exitCode, stdout: '' })
  })
})
