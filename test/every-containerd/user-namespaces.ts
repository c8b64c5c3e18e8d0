import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { ContainerdVersion } from '../support/containerd-programs.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode, Publisher } from '../support/lazy-node.ts'
import { makeTar, type TarPart } from '../support/make-tar.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

const HOST_ROOT = 100_000

/** Prints who it is, whose files are what, and by which map. */
const TELL_OWNERS = [
  'sh',
  '-c',
  'id -u; stat -c "%n %u %g" / /of-root /of-7; cat /of-root; echo new >/new; stat -c "%n %u" /new; cat /proc/self/uid_map',
]

/** What it prints, line by line. */
const OWNERS = [
  '0',
  '/ 0 0',
  '/of-root 0 0',
  '/of-7 7 8',
  'mine',
  '/new 0',
  `0 ${HOST_ROOT} 65536`,
  '',
]

function wordsOf(text: string): string[] {
  return text.split('\n').map((line) => line.trim().replaceAll(/\s+/g, ' '))
}

/**
 * Containers in user namespaces, whose root is another user of the node: what lies below is mounted once more for each with shifted
 * owners. By ctr, and by CRI where it knows of them: containerd 2 and runc 1.2.
 */
export function testUserNamespaces(versions: readonly Exclude<ContainerdVersion, '1.6'>[]): void {
  describe('user namespaces', () => {
    const opened = new AsyncDisposableStack()
    let publisher: Publisher
    let image = ''

    beforeAll(async () => {
      const scratch = opened.use(Scratch.open('user-namespaces'))
      publisher = opened.use(await Publisher.start(scratch))
      const pack = (...files: readonly TarPart[]): ReturnType<typeof packLayer> =>
        packLayer(Readable.from([makeTar(...files)]), 'gzip', join(scratch.dir, 'layers'))
      const layers = [
        await pack(...busyboxFiles('cat', 'id', 'ls', 'sh', 'stat', 'touch')),
        await pack(
          { name: 'of-root', content: 'mine\n' },
          { name: 'of-7', uid: 7, gid: 8, content: 'of seven\n' },
          { name: 'large', content: randomContent(seeded(21), 9_000_000) },
        ),
      ]
      const layout = writeOciLayout(join(scratch.dir, 'layout'), {
        layers,
        process: { Env: ['PATH=/bin'] },
      })
      image = `ipdr.internal/${await publisher.push(layout)}:latest`
    }, 120_000)
    afterAll(() => opened.disposeAsync(), 60_000)

    describe.each(versions)('containerd %s', (version) => {
      const opened = new AsyncDisposableStack()
      let node: LazyNode

      beforeAll(async () => {
        const options = { publisher, version, hasPodNetwork: true }
        node = opened.use(await LazyNode.start(`user-namespaces-${version}`, options))
        await node.containerd.ctr([
          'images',
          'pull',
          '--snapshotter',
          'ipdr',
          '--hosts-dir',
          node.certsDir,
          image,
        ])
      }, 120_000)
      afterAll(() => opened.disposeAsync(), 60_000)

      test('containerd knows that the snapshotter shifts ids', async () => {
        const said = await node.containerd.ctr(['plugins', 'ls', '-d', 'id==ipdr'])
        expect(said).toMatch(/Capabilities:\s+remap-ids/)
      })

      test('a container whose root is user 100000 of the node sees its own ids, and no byte is fetched to shift them', async () => {
        const ids = [`0:${HOST_ROOT}:65536`]
        const flags = [...ids.flatMap((id) => ['--uidmap', id, '--gidmap', id]), '--remap-labels']
        const said = await node.containerd.run(image, TELL_OWNERS, { flags, isolated: true })
        expect(wordsOf(said)).toEqual(OWNERS)
        // 1.7 downloads and unpacks what ctr pulls.
        const bytesMax = version !== '1.7' ? 6_000_000 : Number.POSITIVE_INFINITY
        expect(await node.fetchedBytes()).toBeLessThan(bytesMax)
      })

      test.runIf(version !== '1.7')('so does a container of a pod that CRI starts', async () => {
        const { cri } = node
        const ids = [{ hostId: HOST_ROOT, containerId: 0, length: 65_536 }]
        const linux = {
          securityContext: {
            namespaceOptions: {
              network: 'POD',
              pid: 'CONTAINER',
              ipc: 'POD',
              usernsOptions: { mode: 'POD', uids: ids, gids: ids },
            },
          },
        } as const
        await cri.pullImage(image)
        const metadata = { name: 'shifted', uid: 'shifted', namespace: 'default', attempt: 0 }
        const pod = await cri.runPod({ metadata, linux })
        const id = await cri.createContainerOf(pod, {
          metadata: { name: 'shifted', attempt: 0 },
          image: { image },
          command: [...TELL_OWNERS],
          linux,
        })
        await cri.startContainer(id)
        const { exitCode } = await cri.whenExited(id, AbortSignal.timeout(30_000))
        const said = wordsOf(await cri.logOf(id))
        expect({ exitCode, said }).toEqual({ exitCode: 0, said: OWNERS })
        await cri.removePodSandbox(pod)
        expect(await node.fetchedBytes()).toBeLessThan(6_000_000)
      })
    })
  })
}
