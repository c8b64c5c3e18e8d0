import { afterAll, beforeAll, expect, onTestFinished, test, vi } from 'vitest'
import type { NamedImage } from '../../agent/containerd-images.ts'
import { ContentLinks } from '../../agent/content-links.ts'
import { connect } from '../../proto/client.ts'
import { contentContract } from '../../proto/load.ts'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import type { PublishedBlobs } from '../../snapshotter/published-blobs.ts'
import { Containerd } from '../support/containerd.ts'
import {
  ContentClient,
  NOTHING_PUBLISHED,
  type ServedContent,
  serveContent,
} from '../support/content-client.ts'
import { listeningLog } from '../support/fuse-mount.ts'
import { Scratch } from '../support/scratch.ts'

// What a whole node does: content-proxy.test.ts. Here something goes wrong when containerd's images are first looked at, as where it
// has just started, or collects garbage; a containerd and a content store of ours are all of it that is real.

/** Three looks, 5 s apart, on a loaded machine. */
const LINKED_WITHIN_MS = 40_000

/** Of a layer in a registry that was never downloaded. */
const SIZE = 1_000

const opened = new AsyncDisposableStack()
let containerd: Containerd
let content: ServedContent

beforeAll(async () => {
  const scratch = opened.use(Scratch.open('content-links'))
  const published: PublishedBlobs = {
    ...NOTHING_PUBLISHED,
    inRegistry: ({ digest }) => Buffer.from(digest),
  }
  content = opened.use(await serveContent(scratch.dir, published))
  const contentSocket = content.socketPath
  containerd = opened.use(
    await Containerd.start({ scratch, snapshotter: 'overlayfs', contentSocket }),
  )
}, 60_000)
afterAll(async () => await opened.disposeAsync(), 60_000)

type Links = ConstructorParameters<typeof ContentLinks>[1]

/** A namespace of containerd with an image whose only layer's blob containerd does not know, and everything that looks at it. */
async function namespaceWith(name: string): Promise<{
  readonly digest: string
  readonly parts: Links & { readonly log: ReturnType<typeof listeningLog> }
  readonly client: ContentClient
}> {
  await containerd.ctr(['namespaces', 'create', name])
  const headers = { 'containerd-namespace': name }
  const connection = connect(contentContract(), containerd.socketPath, headers)
  onTestFinished(() => connection[Symbol.dispose]())
  const digest = digestOf(Buffer.from(name))
  const image: NamedImage = {
    reference: `example.invalid/${name}:1`,
    manifestDigest: digestOf(Buffer.from(`manifest of ${name}`)),
    layers: [
      {
        digest,
        diffId: digest,
        layerChainId: digest,
        blob: { mediaType: 'application/vnd.oci.image.layer.v1.tar', digest, size: SIZE },
      },
    ],
  }
  const parts = {
    store: content.store,
    images: { imagesOf: async (namespace: string) => (namespace === name ? [image] : []) },
    log: listeningLog(),
  }
  return { digest, parts, client: new ContentClient(connection.calls) }
}

function link(parts: Links): void {
  const links = new ContentLinks(containerd.socketPath, parts)
  onTestFinished(() => links[Symbol.asyncDispose]())
}

test(
  'images that cannot be looked at are looked at again, and containerd knows their layers then',
  async () => {
    const { digest, parts, client } = await namespaceWith('unseen')
    const { imagesOf } = parts.images
    let looks = 0
    link({
      ...parts,
      images: {
        imagesOf: async (namespace, signal) => {
          if (namespace === 'unseen' && ++looks === 1) throw new Error('not now')
          return imagesOf(namespace, signal)
        },
      },
    })
    await vi.waitFor(
      async () => expect(await client.info(digest)).toMatchObject({ size: String(SIZE) }),
      LINKED_WITHIN_MS,
    )
    expect(looks).toBe(2)
    expect(parts.log.sentences.join()).toContain(
      'never downloaded 1 layers of example.invalid/unseen:1',
    )
  },
  LINKED_WITHIN_MS + 10_000,
)

test(
  'a layer that the store lost before containerd knew it is made known again',
  async () => {
    const { digest, parts, client } = await namespaceWith('collected')
    let asked = 0
    link({
      ...parts,
      store: {
        // As where garbage is collected between the note and the link: it was taken, and is gone.
        know: async (blob, image) => ++asked === 1 || content.store.know(blob, image),
      },
    })
    await vi.waitFor(
      async () => expect(await client.info(digest)).toMatchObject({ size: String(SIZE) }),
      LINKED_WITHIN_MS,
    )
    expect(asked).toBe(2)
  },
  LINKED_WITHIN_MS + 10_000,
)
