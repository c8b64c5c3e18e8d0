import { readdirSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { LearnedLists } from '../../../snapshotter/prefetch/learned-lists.ts'
import type { PrefetchList } from '../../../snapshotter/prefetch/prefetch-list.ts'

async function scratch(): Promise<string> {
  const dir = await mkdtemp('/tmp/lists-test-')
  onTestFinished(() => rm(dir, { recursive: true, force: true }))
  return dir
}

/** A list of an image with these layers. */
function listOf(...layers: string[]): PrefetchList {
  const range = {
    layer: 0,
    path: layers.join(),
    fileSize: 9,
    fileOffset: 0,
    layerOffset: 0,
    length: 9,
  }
  return {
    layers: layers.map((name) => ({ diffId: digestOf(Buffer.from(name)), layerSize: 512 })),
    ranges: [range],
  }
}

const diffIds = (...layers: string[]): string[] =>
  listOf(...layers).layers.map(({ diffId }) => diffId)

test('lists outlive the process, what was learned and what was published apart', async () => {
  const dir = await scratch()
  const lists = await LearnedLists.open(dir)
  await lists.keep('sha256:aa', 'learned', listOf('a'))
  await lists.keep('sha256:aa', 'published', listOf('b'))
  const again = await LearnedLists.open(dir)
  expect(await again.get('sha256:aa', 'learned')).toEqual(listOf('a'))
  expect(await again.get('sha256:aa', 'published')).toEqual(listOf('b'))
  expect(await again.get('sha256:bb', 'learned')).toBeUndefined()
})

test('the nearest list is that with most layers in common, and none without any', async () => {
  const lists = await LearnedLists.open(await scratch())
  await lists.keep('sha256:1', 'learned', listOf('base', 'python', 'app'))
  await lists.keep('sha256:2', 'learned', listOf('base', 'nginx'))
  expect(await lists.nearest(diffIds('base', 'python', 'new'))).toEqual(
    listOf('base', 'python', 'app'),
  )
  expect(await lists.nearest(diffIds('nginx', 'other'))).toEqual(listOf('base', 'nginx'))
  expect(await lists.nearest(diffIds('alpine'))).toBeUndefined()
})

test('a damaged list counts as none, and is deleted', async () => {
  const dir = await scratch()
  const lists = await LearnedLists.open(dir)
  await lists.keep('sha256:aa', 'learned', listOf('a'))
  const [name = ''] = readdirSync(dir)
  writeFileSync(join(dir, name), 'torn')
  expect(await lists.get('sha256:aa', 'learned')).toBeUndefined()
  expect(await lists.nearest(diffIds('a'))).toBeUndefined()
  expect(readdirSync(dir)).toEqual([])
})

test('of more than 512 lists, those not used for longest go', async () => {
  const dir = await scratch()
  const lists = await LearnedLists.open(dir)
  for (let image = 0; image < 512; image++) {
    const name = `sha256-${image}.learned`
    writeFileSync(join(dir, name), 'a list')
    await utimes(join(dir, name), image, image)
  }
  await lists.keep('sha256:new', 'learned', listOf('a'))
  expect(readdirSync(dir)).toHaveLength(512)
  expect(readdirSync(dir)).not.toContain('sha256-0.learned')
  expect(await lists.get('sha256:new', 'learned')).toEqual(listOf('a'))
})
