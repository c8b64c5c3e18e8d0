import { hash } from 'node:crypto'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { parseManifest } from '../../snapshotter/oci/manifest.ts'
import { PAUSE_IMAGE, RUNTIME_CLASS } from '../support/containerd.ts'
import type { ContainerdVersion } from '../support/containerd-programs.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { type OciLayout, packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode, onceServed, Publisher } from '../support/lazy-node.ts'
import { makeTar, type TarPart } from '../support/make-tar.ts'
import { type OciRegistry, startOciRegistry } from '../support/oci-registry.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

/** What containerd of these versions does with us, on the configuration that we ship for it. */
export function testPods(versions: readonly ContainerdVersion[]): void {
  describe('pods', () => {
    const opened = new AsyncDisposableStack()
    let publisher: Publisher
    let registry: OciRegistry
    let layout: OciLayout
    /** Of `layout`, as `ipdr push` made it. */
    let root = ''
    /** The same in an ordinary registry, as it was built. */
    let plain = ''

    const large = randomContent(seeded(5), 12_000_000)

    beforeAll(async () => {
      const scratch = opened.use(Scratch.open('every-containerd'))
      publisher = opened.use(await Publisher.start(scratch))
      registry = opened.use(await startOciRegistry(scratch))
      const pack = (...files: readonly TarPart[]): ReturnType<typeof packLayer> =>
        packLayer(Readable.from([makeTar(...files)]), 'gzip', join(scratch.dir, 'layers'))
      const layers = [
        await pack(...busyboxFiles('cat', 'echo', 'sleep', 'sha256sum', 'sh'), {
          name: 'hidden',
          content: 'below\n',
        }),
        await pack(
          { name: 'small', content: 'read lazily\n' },
          { name: '.wh.hidden', content: '' },
          { name: 'large', content: large },
        ),
      ]
      layout = writeOciLayout(join(scratch.dir, 'layout'), {
        layers,
        process: { Env: ['PATH=/bin'] },
      })
      root = await publisher.push(layout)
      plain = await registry.push(layout, 'plain')
    })
    afterAll(async () => await opened.disposeAsync(), 60_000)

    describe.each(versions)('containerd %s', (version) => {
      const opened = new AsyncDisposableStack()
      let node: LazyNode

      beforeAll(async () => {
        node = opened.use(await LazyNode.start(`containerd-${version}`, { publisher, version }))
      }, 120_000)
      afterAll(async () => await opened.disposeAsync(), 60_000)

      test('is the one that is meant, with our snapshotter as plugin', async () => {
        const said = await node.containerd.ctr(['version'])
        expect(said).toMatch(new RegExp(`Version:\\s+v?${version.replace('.', '\\.')}\\.`))
        const plugins = await node.containerd.ctr(['plugins', 'ls'])
        expect(plugins).toMatch(/io\.containerd\.snapshotter\.v1\s+ipdr\s+\S+\s+ok/)
      })

      test('runs a pod from a CID, and downloads not one byte of a layer', async () => {
        const image = `ipdr.internal/${root}`
        await node.cri.pullImage(image)
        const { layers } = await layersOf(node, `${image}:latest`)
        const blobs = await node.downloadedBlobs()
        for (const digest of layers) expect(blobs).not.toContain(digest)
        await using container = await node.startContainer(image, ['sleep', 'infinity'])
        const read = await node.cri.execSync(container.id, ['cat', '/small'])
        expect(read).toMatchObject({ stdout: 'read lazily\n', exitCode: 0 })
        const hidden = await node.cri.execSync(container.id, ['cat', '/hidden'])
        expect(hidden.exitCode).not.toBe(0)
        expect(await node.fetchedBytes()).toBeLessThan(large.length / 2)
        expect(node.layerMounts.length).toBeGreaterThan(0)
      })

      test('pulls by digest, and removes the image and all that was mounted of it', async () => {
        const digest = (await layersOf(node, `ipdr.internal/${root}:latest`)).manifest
        const image = `ipdr.internal/${root}@${digest}`
        await node.cri.pullImage(image)
        await node.cri.removeImage(image)
        await node.cri.removeImage(`ipdr.internal/${root}`)
        expect(await node.cri.imageStatus(image)).toBeUndefined()
        await vi.waitFor(() => expect(node.layerMounts).toEqual([]), 30_000)
        const listed = ['-n', 'k8s.io', 'snapshots', '--snapshotter', 'ipdr', 'ls']
        const left = (await node.containerd.ctr(listed)).trim().split('\n').slice(1)
        // That of the pods' own image.
        expect(left).toHaveLength(1)
      })

      test('unpacks an image of an ordinary registry into our snapshotter, and runs it', async () => {
        await node.cri.pullImage(plain)
        const blobs = await node.downloadedBlobs()
        for (const { digest } of layout.layers) expect(blobs).toContain(digest)
        await using container = await node.startContainer(plain, ['sleep', 'infinity'])
        const read = await node.cri.execSync(container.id, ['sha256sum', '/large'])
        expect(read.stdout).toContain(hash('sha256', large))
      })

      test('mounts an image of an ordinary registry at once whose tables its manifest vouches for', async () => {
        const image = `${registry.host}/lazy:${version}`
        const ours = `${new URL(node.agent.registryUrl).host}/${root}`
        const plainHttp = ['--src-tls-verify=false', '--dest-tls-verify=false']
        const copy = ['copy', '--insecure-policy', '--preserve-digests', ...plainHttp]
        await runCommand('skopeo', [...copy, `docker://${ours}`, `docker://${image}`])
        await node.cri.pullImage(image)
        const blobs = await node.downloadedBlobs()
        for (const digest of (await layersOf(node, image)).layers)
          expect(blobs).not.toContain(digest)
        await using container = await node.startContainer(image, ['sleep', 'infinity'])
        const read = await node.cri.execSync(container.id, ['cat', '/small'])
        expect(read.stdout).toBe('read lazily\n')
      })

      test('tells the kubelet on which disk images are', async () => {
        const [disk] = await node.cri.imageFsInfo()
        const folder = version === '1.6' ? node.containerd.root : node.agent.root
        expect(disk?.fsId?.mountpoint).toContain(folder)
      })

      test('pulls and runs as ctr does', async () => {
        await node.containerd.pull(`ipdr.internal/${root}:latest`)
        const said = await node.containerd.run(`ipdr.internal/${root}:latest`, ['cat', '/small'])
        expect(said).toBe('read lazily\n')
      })

      test('a container reads on while containerd is killed and started again, and our worker too', async () => {
        const image = `ipdr.internal/${root}`
        await onceServed(() => node.cri.pullImage(image))
        await using container = await node.startContainer(image, ['sleep', 'infinity'])
        await node.containerd.restart('SIGKILL')
        await node.agent.killWorker()
        const read = await node.cri.execSync(container.id, ['sha256sum', '/large'])
        expect(read.stdout).toContain(hash('sha256', large))
        expect((await node.cri.imageStatus(image))?.repoTags).toContain(`${image}:latest`)
      })

      test('takes its images up again that it forgot because it was started while the agent was down', async () => {
        const image = `ipdr.internal/${root}`
        await onceServed(() => node.cri.pullImage(image))
        await node.agent.stop()
        await node.containerd.restart()
        expect(await node.cri.imageStatus(image)).toBeUndefined()
        await node.agent.start()
        // The image of the pods themselves too, which containerd would otherwise ask its registry for.
        for (const forgotten of [image, PAUSE_IMAGE]) {
          await vi.waitFor(
            async () => expect(await node.cri.imageStatus(forgotten)).toBeDefined(),
            60_000,
          )
        }
        await using container = await onceServed(() =>
          node.startContainer(image, ['sleep', 'infinity']),
        )
        const read = await node.cri.execSync(container.id, ['cat', '/small'])
        expect(read.stdout).toBe('read lazily\n')
      }, 120_000)

      test('starts pods of its images after everything that the agent had was lost, without a pull', async () => {
        const image = `ipdr.internal/${root}`
        await onceServed(() => node.cri.pullImage(image))
        await onceServed(() => node.cri.pullImage(plain))
        await node.agent.stop()
        rmSync(node.agent.root, { recursive: true })
        await node.agent.start()
        for (const each of [image, plain]) {
          await using container = await onceServed(() =>
            node.startContainer(each, ['sleep', 'infinity']),
          )
          const read = await node.cri.execSync(container.id, ['sha256sum', '/large'])
          expect(read.stdout).toContain(hash('sha256', large))
          const gone = await node.cri.execSync(container.id, ['cat', '/hidden'])
          expect(gone.exitCode).not.toBe(0)
        }
        // And it can be pulled again, which containerd refuses for ever where a snapshot is lost.
        await node.cri.pullImage(image)
      }, 120_000)
    })

    test.each(versions.filter((version) => version !== '1.6'))(
      'containerd %s runs pods of our runtime class lazily, and leaves all others to overlayfs',
      async (version) => {
        await using node = await LazyNode.start('runtime-class', {
          publisher,
          version,
          isPerRuntime: true,
        })
        const image = `ipdr.internal/${root}`
        await node.cri.pullImageForHandler(RUNTIME_CLASS, image)
        const { layers } = await layersOf(node, `${image}:latest`)
        const blobs = await node.downloadedBlobs()
        for (const digest of layers) expect(blobs).not.toContain(digest)
        const pod = await node.cri.runPodSandbox('default', RUNTIME_CLASS)
        const container = await node.cri.createContainer(pod, image, ['sleep', 'infinity'])
        await node.cri.startContainer(container)
        const read = await node.cri.execSync(container, ['cat', '/small'])
        expect(read.stdout).toBe('read lazily\n')
        expect(node.layerMounts.length).toBeGreaterThan(0)

        const mounts = node.layerMounts.length
        await node.cri.pullImage(plain)
        await using other = await node.startContainer(plain, ['sleep', 'infinity'])
        expect((await node.cri.execSync(other.id, ['cat', '/small'])).stdout).toBe('read lazily\n')
        expect(node.layerMounts).toHaveLength(mounts)
        const snapshotsOf = (snapshotter: string): Promise<string> =>
          node.containerd.ctr(['-n', 'k8s.io', 'snapshots', '--snapshotter', snapshotter, 'ls'])
        const [ours, theirs] = [await snapshotsOf('ipdr'), await snapshotsOf('overlayfs')]
        expect([ours.includes(container), ours.includes(other.id)]).toEqual([true, false])
        expect([theirs.includes(container), theirs.includes(other.id)]).toEqual([false, true])
        await node.cri.removePodSandbox(pod)
      },
      120_000,
    )
  })
}

/** Digests of an image's manifest and layers, by what containerd keeps of it. */
async function layersOf(
  node: LazyNode,
  image: string,
): Promise<{ readonly manifest: string; readonly layers: readonly string[] }> {
  const listed = await node.containerd.ctr(['-n', 'k8s.io', 'images', 'ls', `name==${image}`])
  const digest = /sha256:[0-9a-f]{64}/.exec(listed)?.[0] ?? ''
  const bytes = await node.containerd.ctr(['-n', 'k8s.io', 'content', 'get', digest])
  const manifest = parseManifest(Buffer.from(bytes), image)
  if (manifest.kind !== 'manifest') throw new Error(`${image} is an index`)
  return { manifest: digest, layers: manifest.layers.map((layer) => layer.digest) }
}
