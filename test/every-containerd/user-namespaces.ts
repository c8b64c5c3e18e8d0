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

/**
 * Containers in user namespaces, whose root is another user of the node: what lies below is mounted once more for each with shifted
 * owners. By ctr: CRI wants a runc that Debian bookworm does not have.
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
        node = opened.use(
          await LazyNode.start(`user-namespaces-${version}`, { publisher, version }),
        )
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
        const script =
          'id -u; stat -c "%n %u %g" / /of-root /of-7; cat /of-root; echo new >/new; stat -c "%n %u" /new; cat /proc/self/uid_map'
        const said = await node.containerd.run(image, ['sh', '-c', script], {
          flags,
          isolated: true,
        })
        expect(said.split('\n').map((line) => line.trim().replaceAll(/\s+/g, ' '))).toEqual([
          '0',
          '/ 0 0',
          '/of-root 0 0',
          '/of-7 7 8',
          'mine',
          '/new 0',
          `0 ${HOST_ROOT} 65536`,
          '',
        ])
        // 1.7 downloads and unpacks what ctr pulls.
        const bytesMax = version !== '1.7' ? 6_000_000 : Number.POSITIVE_INFINITY
        expect(await node.fetchedBytes()).toBeLessThan(bytesMax)
      })
    })
  })
}
