import { createHash, hash } from 'node:crypto'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { expect, test } from 'vitest'
import { fetchedBytes, totalBytes } from '../demo/fetched-bytes.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode } from '../support/lazy-node.ts'
import { makeTar } from '../support/make-tar.ts'

// What `ipdr push --compact` writes, on a node as we ship it.

const FILES = 400

/** Does not compress, so that the image is of some size; the same for the same number. */
function content(number: number): Buffer {
  return createHash('shake256', { outputLength: 100_000 }).update(`${number}`).digest()
}

test('a compact image runs before it is here: a file is read with what shares its frame, and all of it is what was pushed', async () => {
  await using node = await LazyNode.start('compact')
  const tar = makeTar(
    ...busyboxFiles('cat', 'sleep', 'sha256sum', 'sh'),
    { name: 'first', content: 'here\n' },
    ...Array.from({ length: FILES }, (_, index) => ({
      name: `data/${index}`,
      content: content(index),
    })),
  )
  const layer = await packLayer(Readable.from([tar]), 'gzip', join(node.scratch.dir, 'layers'))
  const image = { layers: [layer], process: { Env: ['PATH=/bin'] } }
  const layout = writeOciLayout(join(node.scratch.dir, 'layout'), image)
  const root = await node.publisher.push(layout, 'compact', ['--compact'])
  const reference = `ipdr.internal/${root}:compact`
  await node.cri.pullImage(reference)
  await using container = await node.startContainer(reference, ['sleep', 'infinity'])
  const first = await node.cri.execSync(container.id, ['cat', '/first', '/data/250'])
  expect(hash('sha256', first.stdout)).toBe(
    hash('sha256', Buffer.concat([Buffer.from('here\n'), content(250)]).toString()),
  )
  expect(totalBytes(await fetchedBytes(node.agent))).toBeLessThan(tar.length / 3)
  const all = await node.cri.execSync(container.id, ['sh', '-c', 'cat /data/* | sha256sum'])
  const names = Array.from({ length: FILES }, (_, index) => `${index}`).toSorted()
  const whole = Buffer.concat(names.map((name) => content(Number(name))))
  expect(all.stdout.split(' ')[0]).toBe(hash('sha256', whole))
}, 120_000)
