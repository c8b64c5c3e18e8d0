import { join } from 'node:path'
import { Readable } from 'node:stream'
import { CID } from 'multiformats/cid'
import { describe, expect, onTestFinished, test } from 'vitest'
import { repositoryBlocks } from '../../../agent/cli/repository-blocks.ts'
import { BlockRepository } from '../../../agent/ipfs/repository.ts'
import { type Digest, digestOf } from '../../../snapshotter/oci/digest.ts'
import { addPublishedLists, type PrefetchList } from '../../../snapshotter/optimize.ts'
import { packLayer, writeOciLayout } from '../../support/images/oci-layout.ts'
import { makeTar } from '../../support/make-tar.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { FakeAgent } from './support/fake-agent.ts'
import { runIpdr } from './support/run-ipdr.ts'
import { scratchDir } from './support/scratch-dir.ts'

const { signal } = new AbortController()
const CID_TEXT = 'bafybeifb5w6vipdc6nbb6ieauiz3ewlu6fy2xx7vp2ayb2lsokyvjpb73a'

type Pushed = {
  readonly root: string
  readonly digest: Digest
  readonly layers: readonly { layerBytes: number; leaves: number }[]
  readonly prefetchLists: readonly {
    platform: string
    ranges: number
    bytes: number
    dropped: number
  }[]
}

/** Pushes an image of one layer; what it prints as JSON. */
async function push(dir: string, tar: Buffer, ...words: string[]): Promise<Pushed> {
  const name = digestOf(tar).slice(7, 15)
  const layers = [await packLayer(Readable.from([tar]), 'gzip', join(dir, `layers-${name}`))]
  const layout = writeOciLayout(join(dir, `layout-${name}`), { layers, process: {}, tag: 'v1' })
  return pushSource(dir, `oci:${layout.dir}`, ...words)
}

async function pushSource(dir: string, source: string, ...words: string[]): Promise<Pushed> {
  const places = ['--repository', join(dir, 'repository'), '--output', 'json']
  const { stdout, stderr, exitCode } = await runIpdr(['push', source, ...places, ...words])
  expect(stderr).toBe('')
  expect(exitCode).toBe(0)
  return JSON.parse(stdout) as Pushed
}

/** Puts a list beside an image in the repository, and gives back the new root. */
async function addList(dir: string, { root, digest }: Pushed, list: PrefetchList): Promise<string> {
  await using repository = await BlockRepository.open(join(dir, 'repository'))
  const parts = { blocks: repositoryBlocks(repository), sink: repository, signal }
  return (await addPublishedLists(CID.parse(root), new Map([[digest, list]]), parts)).toString()
}

function tarOf(...files: (readonly [name: string, text: string])[]): Buffer {
  return makeTar(...files.map(([name, content]) => ({ name, content })))
}

const BEFORE = tarOf(['app', 'program'], ['conf', 'one'], ['gone', 'away'])
const LIST: PrefetchList = {
  layers: [{ diffId: digestOf(BEFORE), layerSize: BEFORE.length }],
  ranges: ['app', 'conf', 'gone'].map((path, index) => {
    const length = ['program', 'one', 'away'][index]?.length ?? 0
    return {
      layer: 0,
      path,
      fileSize: length,
      fileOffset: 0,
      layerOffset: 512 + index * 1024,
      length,
    }
  }),
}

describe('a list of an image that was published', () => {
  test('is shown by inspect, and so is that there is none, or that it lies', async () => {
    const dir = await scratchDir()
    const pushed = await push(dir, BEFORE)
    const inspect = async (root: string): Promise<string> => {
      const words = ['inspect', root, '--repository', join(dir, 'repository')]
      return (await runIpdr(words)).stdout
    }
    expect(await inspect(pushed.root)).toContain('No prefetch list: ipdr optimize makes one')
    const listed = await addList(dir, pushed, LIST)
    expect(await inspect(listed)).toContain('Prefetch list: 3 ranges of 3 files, 14 B unpacked')
    const [layer] = LIST.layers
    const lie = { ...LIST, layers: [{ ...layer, layerSize: 600 } as typeof layer & object] }
    const lying = await addList(dir, pushed, lie)
    expect(await inspect(lying)).toMatch(/Its prefetch list is not used: .*"conf" has the range/)
  })

  test('is taken over by push --optimize, as far as files are unchanged', async () => {
    const dir = await scratchDir()
    const listed = await addList(dir, await push(dir, BEFORE), LIST)
    const after = tarOf(['added', 'by this build'], ['conf', 'other'], ['app', 'program'])
    const { root, prefetchLists } = await push(dir, after, '--optimize', listed)
    expect(prefetchLists).toMatchObject([{ ranges: 1, bytes: 'program'.length, dropped: 2 }])
    const words = ['inspect', root, '--repository', join(dir, 'repository'), '--output', 'json']
    expect(JSON.parse((await runIpdr(words)).stdout)).toMatchObject({
      manifests: [{ prefetch: { kind: 'list', ranges: 1, files: 1 } }],
    })
    const kept = await runIpdr(['repository', 'ls', '--repository', join(dir, 'repository')])
    expect(kept.stdout).toContain(root)
  })

  test('has what it names published in blocks of their own by push --optimize, in the same layers', async () => {
    const dir = await scratchDir()
    const random = seeded(7)
    const contents = [40_000, 8000, 40_000].map((bytes) => randomContent(random, bytes))
    const tar = makeTar(...contents.map((content, index) => ({ name: `file-${index}`, content })))
    const before = await push(dir, tar)
    const list: PrefetchList = {
      layers: [{ diffId: digestOf(tar), layerSize: tar.length }],
      ranges: [
        {
          layer: 0,
          path: 'file-1',
          fileSize: 8000,
          fileOffset: 0,
          layerOffset: tar.indexOf(contents[1] ?? ''),
          length: 8000,
        },
      ],
    }
    const listed = await addList(dir, before, list)
    const after = await pushSource(dir, `ipfs:${listed}`, '--optimize', listed)
    expect(after.layers[0]?.layerBytes).toBe(before.layers[0]?.layerBytes)
    expect(after.layers[0]?.leaves).toBe(Number(before.layers[0]?.leaves) + 2)
    expect(after.prefetchLists).toMatchObject([{ ranges: 1, bytes: 8000, dropped: 0 }])
  })

  test('that is not there is found out before anything is pushed', async () => {
    const dir = await scratchDir()
    const { root } = await push(dir, BEFORE)
    const words = ['push', join(dir, `layout-${digestOf(BEFORE).slice(7, 15)}`), '--optimize', root]
    const ended = await runIpdr([...words, '--repository', join(dir, 'repository')])
    expect(ended).toMatchObject({ exitCode: 66, stdout: '' })
    expect(ended.stderr).toContain('has no prefetch list to take over')
    expect(ended.stderr).toContain('ipdr optimize makes one')
  })
})

describe('ipdr optimize says what is in its way', () => {
  test('a timeout that is none, and no agent', async () => {
    const dir = await scratchDir()
    const wrong = await runIpdr(['optimize', CID_TEXT, '--timeout', '0'])
    expect(wrong).toMatchObject({ exitCode: 2 })
    const alone = await runIpdr([
      'optimize',
      CID_TEXT,
      '--agent',
      join(dir, 'none.sock'),
      '--',
      'true',
    ])
    expect(alone).toMatchObject({ exitCode: 69 })
    expect(alone.stderr).toContain('the agent cannot be reached')
  })

  test('no containerd', async () => {
    const agent = await FakeAgent.start({})
    onTestFinished(() => agent[Symbol.asyncDispose]())
    const words = ['optimize', CID_TEXT, '--agent', agent.socketPath, '--address', '/nowhere.sock']
    const ended = await runIpdr([...words, '--', 'true'])
    expect(ended).toMatchObject({ exitCode: 69, stdout: '' })
    expect(ended.stderr).toMatch(
      /containerd at \/nowhere\.sock did not pull ipdr\.internal\/bafy\S+:latest/,
    )
    expect(ended.stderr).toContain('--address names its socket')
  })
})
