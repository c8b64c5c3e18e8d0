import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode, Publisher } from '../support/lazy-node.ts'
import { makeTar, type TarPart } from '../support/make-tar.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

// Where nothing can be mended the agent says which pods to restart, by their names.

const opened = new AsyncDisposableStack()
let publisher: Publisher
let image = ''

beforeAll(async () => {
  const scratch = opened.use(Scratch.open('lost-pods'))
  publisher = opened.use(await Publisher.start(scratch))
  const pack = (...files: readonly TarPart[]): ReturnType<typeof packLayer> =>
    packLayer(Readable.from([makeTar(...files)]), 'gzip', join(scratch.dir, 'layers'))
  const layers = [
    await pack(...busyboxFiles('sleep')),
    await pack({ name: 'large', content: randomContent(seeded(31), 9_000_000) }),
  ]
  const layout = writeOciLayout(join(scratch.dir, 'layout'), {
    layers,
    process: { Env: ['PATH=/bin'] },
  })
  image = `ipdr.internal/${await publisher.push(layout)}`
}, 120_000)
afterAll(() => opened.disposeAsync(), 60_000)

/** Every process of ours, the one first that would start another again. */
async function killAll({ agent }: LazyNode): Promise<void> {
  const record = readFileSync(join(agent.runDir, 'fuse-keeper.json'), 'utf8')
  const { pid } = JSON.parse(record) as { pid: number }
  const worker = agent.workerPid
  await agent.stop('SIGKILL')
  for (const each of [worker, pid]) process.kill(each, 'SIGKILL')
}

function restarts(node: LazyNode): string[] {
  return node.agent.lines.flatMap(({ msg }) => (msg?.includes('restart pod') ? [msg] : []))
}

test('a pod on mounts from files is named once every process of ours was killed, and no other pod is', async () => {
  await using node = await LazyNode.start('lost-pods', { publisher, mountsFrom: 'files' })
  await node.cri.pullImage(image)
  await using pod = await node.startContainer(image, ['sleep', 'infinity'], 'shop')
  // Its program is all in memory: it does not end by what it can no longer read.
  await node.cri.execSync(pod.id, ['/bin/busybox', 'sha256sum', '/bin/busybox'])
  await killAll(node)
  await node.agent.start()
  await expect.poll(() => restarts(node), { timeout: 60_000 }).toHaveLength(1)
  // The pods' own image is unpacked: their sandboxes go on.
  expect(restarts(node)[0]).toMatch(/restart pod shop\/pod-\d+$/)
}, 180_000)

test('a pod whose layers the agent has lost with its root is named, and one that was started since is not', async () => {
  await using node = await LazyNode.start('lost-pods-root', { publisher })
  await node.cri.pullImage(image)
  await using pod = await node.startContainer(image, ['sleep', 'infinity'], 'shop')
  // Its program is all in memory: it does not end by what it can no longer read.
  await node.cri.execSync(pod.id, ['/bin/busybox', 'sha256sum', '/bin/busybox'])
  await killAll(node)
  for (const name of ['catalog.db', 'snapshots.db', 'layers']) {
    for (const suffix of ['', '-wal', '-shm']) {
      rmSync(join(node.agent.root, `${name}${suffix}`), { recursive: true, force: true })
    }
  }
  await node.agent.start()
  await expect.poll(() => restarts(node), { timeout: 60_000 }).toHaveLength(1)
  expect(restarts(node)[0]).toMatch(/restart pod shop\/pod-\d+$/)
}, 180_000)
