import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { extract } from 'tar-stream'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { connect } from '../../proto/client.ts'
import { contentContract } from '../../proto/load.ts'
import { MEDIA_TYPES } from '../../snapshotter/oci/descriptor.ts'
import { type Digest, digestOf } from '../../snapshotter/oci/digest.ts'
import { parseManifest } from '../../snapshotter/oci/manifest.ts'
import { Containerd } from '../support/containerd.ts'
import type { ContainerdVersion } from '../support/containerd-programs.ts'
import { ContentClient, NOTHING_PUBLISHED, serveContent } from '../support/content-client.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { type OciLayout, packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode, Publisher } from '../support/lazy-node.ts'
import { makeTar, type TarPart } from '../support/make-tar.ts'
import { type OciRegistry, startOciRegistry } from '../support/oci-registry.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

const K8S = ['-n', 'k8s.io'] as const

/** The agent in the place of containerd's own content store, in the configuration that we ship for it. */
export function testContentStore(versions: readonly ContainerdVersion[]): void {
  describe('content store', () => {
    const opened = new AsyncDisposableStack()
    let publisher: Publisher
    let registry: OciRegistry
    let root = ''
    let plain = ''
    let other = ''

    beforeAll(async () => {
      const scratch = opened.use(Scratch.open('content-proxy'))
      publisher = opened.use(await Publisher.start(scratch))
      registry = opened.use(await startOciRegistry(scratch))
      const layout = await makeLayout(scratch)
      root = await publisher.push(layout)
      plain = await registry.push(layout, 'plain')
      other = await registry.push(await makeLayout(scratch, 'another image\n'), 'other')
    }, 120_000)
    afterAll(async () => await opened.disposeAsync(), 60_000)

    describe.each(versions)('containerd %s with the agent as its content store', (version) => {
      const opened = new AsyncDisposableStack()
      let node: LazyNode
      let image = ''
      let layers: readonly Digest[] = []

      beforeAll(async () => {
        const options = { publisher, version, contentProxy: true }
        node = opened.use(await LazyNode.start(`content-${version}`, options))
        image = `ipdr.internal/${root}:latest`
      }, 120_000)
      afterAll(async () => await opened.disposeAsync(), 60_000)

      /** Digests of blobs whose bytes are in the store's folder. */
      const stored = (): string[] =>
        readdirSync(join(Containerd.contentRootOf(node.scratch), 'blobs/sha256')).map(
          (hex) => `sha256:${hex}`,
        )
      const listed = async (): Promise<string[]> => {
        const words = await node.containerd.ctr([...K8S, 'content', 'ls', '-q'])
        return words.trim().split('\n')
      }

      test('has no other content store', async () => {
        const plugins = await node.containerd.ctr(['plugins', 'ls'])
        expect(plugins).toMatch(/io\.containerd\.content\.v1\s+ipdr-content\s+\S+\s+ok/)
        expect(plugins).not.toMatch(/io\.containerd\.content\.v1\s+content\s/)
      })

      test('runs a pod from a CID without its layers, and is told of them all the same', async () => {
        await node.cri.pullImage(image)
        await using container = await node.startContainer(image, ['sleep', 'infinity'])
        const read = await node.cri.execSync(container.id, ['cat', '/small'])
        expect(read).toMatchObject({ stdout: 'read lazily\n', exitCode: 0 })
        layers = await layersOf(node, image)
        expect(layers).toHaveLength(2)
        await vi.waitFor(async () => {
          expect(await listed()).toEqual(expect.arrayContaining([...layers]))
        }, 60_000)
        for (const digest of layers) expect(stored()).not.toContain(digest)
      })

      test('exports the image whole, each blob by its digest', async () => {
        const path = join(node.scratch.dir, 'export.tar')
        await node.containerd.ctr([...K8S, 'images', 'export', path, image])
        const blobs = await blobsIn(path)
        for (const [digest, bytes] of blobs) expect(digestOf(bytes)).toBe(digest)
        expect([...blobs.keys()]).toEqual(expect.arrayContaining([...layers]))
        for (const digest of layers) expect(stored()).not.toContain(digest)
        expect(await node.metric('ipdr_content_read_bytes_total')).toBeGreaterThan(6_000_000)
      })

      test('pushes the image to a registry, from which others pull the same', async () => {
        const target = `${registry.host}/pushed:${version}`
        await node.containerd.ctr([...K8S, 'images', 'push', '--plain-http', target, image])
        const accept = { accept: MEDIA_TYPES.ociManifest }
        const url = `http://${registry.host}/v2/pushed/manifests/${version}`
        const pushed = Buffer.from(await (await fetch(url, { headers: accept })).arrayBuffer())
        expect(digestOf(pushed)).toBe(await targetOf(node, image))
        for (const digest of layers) {
          expect(digestOf(readFileSync(registry.blobPath(digest)))).toBe(digest)
        }
      })

      test('converts the image', async () => {
        const target = 'example.invalid/converted:1'
        await node.containerd.ctr([...K8S, 'images', 'convert', '--uncompress', image, target])
        const converted = await layersOf(node, target)
        expect(converted).toHaveLength(layers.length)
        expect(stored()).toEqual(expect.arrayContaining([...converted]))
        await node.containerd.ctr([...K8S, 'images', 'rm', '--sync', target])
        await vi.waitFor(() => {
          for (const digest of converted) expect(stored()).not.toContain(digest)
        }, 60_000)
      })

      test('exports an image of an ordinary registry too whose layers are here under another name', async () => {
        await node.cri.pullImage(plain)
        await using container = await node.startContainer(plain, ['sleep', 'infinity'])
        const read = await node.cri.execSync(container.id, ['cat', '/small'])
        expect(read.stdout).toBe('read lazily\n')
        const digests = await layersOf(node, plain)
        await vi.waitFor(async () => {
          expect(await listed()).toEqual(expect.arrayContaining([...digests]))
        }, 60_000)
        const path = join(node.scratch.dir, 'plain.tar')
        await node.containerd.ctr([...K8S, 'images', 'export', path, plain])
        const blobs = await blobsIn(path)
        for (const [digest, bytes] of blobs) expect(digestOf(bytes)).toBe(digest)
        expect([...blobs.keys()]).toEqual(expect.arrayContaining(digests))
      })

      test('downloads and unpacks an image that it has no layer of', async () => {
        await node.cri.pullImage(other)
        for (const digest of await layersOf(node, other)) expect(stored()).toContain(digest)
        await using container = await node.startContainer(other, ['sleep', 'infinity'])
        const read = await node.cri.execSync(container.id, ['cat', '/small'])
        expect(read.stdout).toBe('another image\n')
      })

      test('goes on after the agent was killed, and frees what it knew of an image with the image', async () => {
        await node.agent.killWorker()
        const path = join(node.scratch.dir, 'export-2.tar')
        // Until containerd's client has connected anew.
        await vi.waitFor(
          () => node.containerd.ctr([...K8S, 'images', 'export', path, image]),
          30_000,
        )
        expect([...(await blobsIn(path)).keys()]).toEqual(expect.arrayContaining([...layers]))
        await node.cri.removeImage(image)
        await vi.waitFor(async () => {
          const known = await listed()
          for (const digest of layers) expect(known).not.toContain(digest)
        }, 60_000)
        using agent = connect(contentContract(), node.agent.contentSocket)
        await vi.waitFor(async () => {
          const here = (await new ContentClient(agent.calls).walk()).map(({ digest }) => digest)
          for (const digest of layers) expect(here).not.toContain(digest)
        }, 60_000)
      })
    })

    // The rest of containerd's content suite, by their names there: they are about namespaces, so that they go through its metadata.
    describe.each(versions)('containerd %s content suite across namespaces', (version) => {
      const opened = new AsyncDisposableStack()
      const clients = new Map<string, ContentClient>()
      const bytes = randomContent(seeded(12), 1000)
      const digest = digestOf(bytes)
      const extra = Buffer.from('appended bytes')
      const longer = Buffer.concat([bytes, extra])

      beforeAll(async () => {
        for (const policy of ['shared', 'isolated']) {
          const scratch = opened.use(Scratch.open(`content-${policy}-${version}`))
          const content = opened.use(await serveContent(scratch.dir))
          const containerd = opened.use(
            await Containerd.start({
              scratch,
              snapshotter: 'overlayfs',
              version,
              contentSocket: content.socketPath,
              editConfig: (toml) =>
                `${toml}\n[plugins."io.containerd.metadata.v1.bolt"]\ncontent_sharing_policy = "${policy}"\n`,
            }),
          )
          for (const name of ['one', 'two', 'shareable']) {
            const labels = name === 'shareable' ? ['containerd.io/namespace.shareable=true'] : []
            await containerd.ctr(['namespaces', 'create', name, ...labels])
            const headers = { 'containerd-namespace': name }
            const { calls } = opened.use(connect(contentContract(), containerd.socketPath, headers))
            clients.set(`${policy} ${name}`, new ContentClient(calls))
          }
        }
      }, 120_000)
      afterAll(async () => await opened.disposeAsync(), 60_000)

      const client = (name: string): ContentClient => {
        const found = clients.get(name)
        if (found === undefined) throw new Error(`no client ${name}`)
        return found
      }
      const upload = { ref: 'ref-1000', total: bytes.length, expected: digest }

      test('CrossNamespaceAppend', async () => {
        await client('shared one').writeBlob('ref-1000', bytes, digest)
        const writer = await client('shared two').openWriter(upload)
        expect([writer.offset, writer.digest]).toEqual([1000, digest])
        await writer.write(extra)
        await writer.commit({ size: longer.length, expected: digestOf(longer) })
        expect(await client('shared one').read(digest)).toEqual(bytes)
        expect(await client('shared two').read(digestOf(longer))).toEqual(longer)
      })

      test('CrossNamespaceShare', async () => {
        const writer = await client('shared two').openWriter(upload)
        expect([writer.offset, writer.digest]).toEqual([1000, digest])
        await writer.commit({ size: 1000, expected: digest })
        for (const name of ['shared one', 'shared two']) {
          expect(await client(name).info(digest)).toMatchObject({ digest, size: '1000' })
          expect(await client(name).read(digest)).toEqual(bytes)
        }
      })

      test('CrossNamespaceIsolate', async () => {
        await client('isolated one').writeBlob('ref-1000', bytes, digest)
        const writer = await client('isolated two').openWriter(upload)
        expect([writer.offset, writer.digest]).toEqual([0, digestOf(Buffer.alloc(0))])
        await writer.close()
      })

      // With namespaces that share came 1.7.
      test.skipIf(version === '1.6')('SharedNamespaceIsolate', async () => {
        await client('isolated shareable').writeBlob('ref-1000', bytes, digest)
        const writer = await client('isolated two').openWriter({ ...upload, ref: 'another' })
        expect([writer.offset, writer.digest]).toEqual([1000, digest])
        await writer.commit({ size: 1000, expected: digest })
        for (const name of ['isolated shareable', 'isolated two']) {
          expect(await client(name).read(digest)).toEqual(bytes)
        }
      })
    })

    test.each(versions)(
      'what containerd %s had in its own store stays when the agent takes over, and when it gives back',
      async (version) => {
        await using scratch = Scratch.open('content-takeover')
        const layout = await makeLayout(scratch)
        const contentRoot = Containerd.contentRootOf(scratch)
        const added = digestOf(Buffer.from('new'))
        await using containerd = await Containerd.start({
          scratch,
          snapshotter: 'overlayfs',
          version,
        })
        const archive = join(scratch.dir, 'layout.tar')
        await runCommand('tar', ['-cf', archive, '-C', layout.dir, '.'])
        await containerd.ctr([
          ...K8S,
          'images',
          'import',
          '--base-name',
          'example.invalid/own',
          archive,
        ])
        // Not all that it lists: 2.4 stores the index of the archive too, which is garbage.
        const digests = readdirSync(join(layout.dir, 'blobs/sha256')).map((hex) => `sha256:${hex}`)
        expect(digests.length).toBeGreaterThanOrEqual(4)
        {
          await using content = await serveContent(scratch.dir, NOTHING_PUBLISHED, contentRoot)
          containerd.useContentStore(content.socketPath)
          await containerd.restart()
          for (const digest of digests) {
            expect(digestOf(await content.client.read(digest))).toBe(digest)
            await containerd.ctr([...K8S, 'content', 'get', digest])
          }
          const expected = ['--expected-digest', added]
          await containerd.ctr([...K8S, 'content', 'ingest', ...expected, 'upload'], {
            input: 'new',
          })
          // Else it is garbage, which is collected at every start.
          await containerd.ctr([...K8S, 'content', 'label', added, 'containerd.io/gc.root=test'])
          containerd.useContentStore(undefined)
        }
        await containerd.restart()
        expect(await containerd.ctr([...K8S, 'content', 'get', added])).toBe('new')
      },
    )
  })
}

async function makeLayout(scratch: Scratch, small = 'read lazily\n'): Promise<OciLayout> {
  const pack = (...files: readonly TarPart[]): ReturnType<typeof packLayer> =>
    packLayer(Readable.from([makeTar(...files)]), 'gzip', join(scratch.dir, 'layers'))
  const layers = [
    await pack(...busyboxFiles('cat', 'sleep'), { name: 'bin/name', content: small }),
    await pack(
      { name: 'small', content: small },
      { name: 'large', content: randomContent(seeded(11), 9_000_000) },
    ),
  ]
  return writeOciLayout(join(scratch.dir, `layout-${digestOf(Buffer.from(small)).slice(7, 15)}`), {
    layers,
    process: { Env: ['PATH=/bin'] },
  })
}

async function targetOf(node: LazyNode, image: string): Promise<string> {
  const listed = await node.containerd.ctr([...K8S, 'images', 'ls', `name==${image}`])
  return /sha256:[0-9a-f]{64}/.exec(listed)?.[0] ?? ''
}

async function layersOf(node: LazyNode, image: string): Promise<Digest[]> {
  const read = async (digest: string): Promise<Buffer> =>
    Buffer.from(await node.containerd.ctr([...K8S, 'content', 'get', digest]))
  let manifest = parseManifest(await read(await targetOf(node, image)), image)
  if (manifest.kind === 'index') {
    manifest = parseManifest(await read(manifest.manifests[0]?.digest ?? ''), image)
  }
  return manifest.kind === 'index' ? [] : manifest.layers.map(({ digest }) => digest)
}

/** The blobs of an OCI layout in a tar, by digest. */
async function blobsIn(path: string): Promise<Map<string, Buffer>> {
  const blobs = new Map<string, Buffer>()
  const entries = Readable.from([readFileSync(path)]).pipe(extract())
  for await (const entry of entries) {
    const [, hex] = /^blobs\/sha256\/([0-9a-f]{64})$/.exec(entry.header.name) ?? []
    const pieces: Buffer[] = []
    for await (const piece of entry) pieces.push(piece as Buffer)
    if (hex !== undefined) blobs.set(`sha256:${hex}`, Buffer.concat(pieces))
  }
  return blobs
}
