import { afterAll, beforeAll, expect, test } from 'vitest'
import { buildDebianImage } from '../support/images/debian-image.ts'
import { PYTHON } from '../support/images/demo-image.ts'
import type { OciLayout } from '../support/images/oci-layout.ts'
import { LazyNode } from '../support/lazy-node.ts'

// A Debian with python3 as another publisher has put it on IPFS, in gzip layers that know nothing of us, and `ipdr index` run on
// it: from there to a running container, through containerd.

const opened = new AsyncDisposableStack()
let node: LazyNode
let layout: OciLayout
/** Root CIDs: as it was published, and with the indexes beside it. */
let [plainRoot, indexedRoot] = ['', '']

beforeAll(async () => {
  layout = await buildDebianImage({
    name: 'python',
    root: { variant: 'minbase' },
    steps: [PYTHON],
  })
  node = opened.use(await LazyNode.start('indexed'))
  plainRoot = await node.publisher.importAsIs(layout)
  indexedRoot = await node.publisher.index(plainRoot)
}, 300_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

test('a pull of gzip layers with an index fetches less than 3 % of them, and python runs after a part of the rest', async () => {
  const blobBytes = layout.layers.reduce((sum, { size }) => sum + size, 0)
  const image = `ipdr.internal/${indexedRoot}`
  const start = await node.fetchedBytes()
  await node.cri.pullImage(image)
  const pulled = (await node.fetchedBytes()) - start
  expect(pulled / blobBytes).toBeLessThan(0.03)

  expect(await output(image, ['python3', '-c', 'print(6 * 7)'])).toBe('42\n')
  const ran = (await node.fetchedBytes()) - start
  expect(ran / blobBytes).toBeLessThan(0.5)

  // Debian knows the MD5 of nearly every file of its packages.
  const check = 'cat /var/lib/dpkg/info/*.md5sums | md5sum --quiet --check && echo intact'
  expect(await output(image, ['sh', '-c', check])).toBe('intact\n')
}, 120_000)

test('the image without the index is handed out only after all of the layers was checked, and runs from them', async () => {
  const image = `ipdr.internal/${plainRoot}`
  await node.cri.pullImage(image)
  const blobBytes = layout.layers.reduce((sum, { size }) => sum + size, 0)
  expect(await node.fetchedBytes()).toBeGreaterThanOrEqual(blobBytes)
  expect(await output(image, ['python3', '-c', 'print("whole")'])).toBe('whole\n')
}, 120_000)

/** What a container of the image prints until it ends, well. */
async function output(image: string, command: readonly string[]): Promise<string> {
  await using container = await node.startContainer(image, command)
  const { exitCode } = await node.cri.whenExited(container.id, AbortSignal.timeout(60_000))
  const log = await node.cri.logOf(container.id)
  // Both, so that a failure shows what the container said.
  expect({ exitCode, log }).toEqual({ exitCode: 0, log })
  return log
}
