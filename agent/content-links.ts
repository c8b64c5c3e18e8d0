import { setTimeout } from 'node:timers/promises'
import { status } from '@grpc/grpc-js'
import { connect, type ServiceClient } from '../proto/client.ts'
import { contentContract, eventsContract, namespacesContract } from '../proto/load.ts'
import type {
  ContentDefinition,
  ContentHandlers,
} from '../proto/types/containerd/services/content/v1/Content.ts'
import type { WriteContentRequest } from '../proto/types/containerd/services/content/v1/WriteContentRequest.ts'
import type { ContentStore } from '../snapshotter/content-store.ts'
import type { Log } from '../snapshotter/log.ts'
import type { Descriptor } from '../snapshotter/oci/descriptor.ts'
import type { ContainerdImages, NamedImage } from './containerd-images.ts'

/** Between an attempt to listen to containerd and the next, in ms: as between two looks for images that it forgot. */
const PAUSE_MS = 5_000

/** How often a namespace is looked at where something went wrong. 3: containerd may be restarting. */
const LOOKS_MAX = 3

/** How long one look at a namespace may take, in ms. 60 s: thousands of layers on a busy node. */
const LOOK_MS = 60_000

/** Images that were seen to have all their layers' blobs, some 100 bytes each. */
const LINKED_MAX = 10_000

type Content = ServiceClient<ContentDefinition, ContentHandlers>

type Parts = {
  readonly store: Pick<ContentStore, 'know'>
  readonly images: Pick<ContainerdImages, 'imagesOf'>
  readonly log: Pick<Log, 'info' | 'debug'>
}

/**
 * Has containerd know the blobs of layers that it never downloaded, where its content store is the agent's. To containerd a blob is
 * there for a namespace once that wrote it: for one that the store has, containerd takes note and asks for no bytes. So
 * `ctr images export` and `push` find every blob of an image, and its garbage collection frees them with the image. Looks at every
 * image at first, and at those of a namespace whenever it has a new one. Nothing of it fails.
 */
export class ContentLinks implements AsyncDisposable {
  readonly #socketPath: string
  readonly #parts: Parts
  readonly #closing = new AbortController()
  /** `<namespace> <manifest digest>` */
  readonly #linked = new Set<string>()
  readonly #running: Promise<void>

  constructor(socketPath: string, parts: Parts) {
    this.#socketPath = socketPath
    this.#parts = parts
    this.#running = this.#run()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort()
    await this.#running
  }

  async #run(): Promise<void> {
    const { signal } = this.#closing
    while (!signal.aborted) {
      try {
        await this.#listen(signal)
      } catch (error) {
        // No containerd yet, or one that has just stopped.
        this.#parts.log.debug({ reason: String(error) }, 'containerd cannot be listened to')
      }
      await setTimeout(PAUSE_MS, undefined, { signal, ref: false }).catch(() => undefined)
    }
  }

  /** Until containerd stops. Rejects when it does, and if it is not there. */
  async #listen(signal: AbortSignal): Promise<void> {
    using events = connect(eventsContract(), this.#socketPath)
    const filters = [
      'topic=="/images/create"',
      'topic=="/images/update"',
      'topic=="/images/delete"',
    ]
    // Heard before anything is looked at, so that no image comes between.
    const heard = events.calls.Subscribe({ filters }, { signal })[Symbol.asyncIterator]()
    let next = heard.next()
    next.catch(() => undefined)
    this.#linked.clear()
    using namespaces = connect(namespacesContract(), this.#socketPath)
    const listed = await namespaces.calls.List({}, { signal })
    for (const { name } of listed.namespaces) await this.#look(name)
    for (;;) {
      const { done, value } = await next
      if (done === true) return
      next = heard.next()
      next.catch(() => undefined)
      // What an image leaves behind is collected: the next of the same name is looked at anew.
      if (value.topic === '/images/delete') this.#forget(value.namespace)
      else await this.#look(value.namespace)
    }
  }

  /** Looks at every image of a namespace, and again at what went wrong. */
  async #look(namespace: string): Promise<void> {
    const { signal } = this.#closing
    for (let attempt = 0; attempt < LOOKS_MAX && !signal.aborted; attempt++) {
      if (attempt > 0) await setTimeout(PAUSE_MS, undefined, { signal, ref: false }).catch(() => {})
      if (await this.#linkImages(namespace)) return
    }
  }

  /** Whether containerd knows all layers of all images of a namespace now, as far as anybody knows them. */
  async #linkImages(namespace: string): Promise<boolean> {
    const { images, log } = this.#parts
    const signal = AbortSignal.any([this.#closing.signal, AbortSignal.timeout(LOOK_MS)])
    using content = connect(contentContract(), this.#socketPath, {
      'containerd-namespace': namespace,
    })
    let isDone = true
    try {
      for (const image of await images.imagesOf(namespace, signal)) {
        const key = `${namespace} ${image.manifestDigest}`
        if (this.#linked.has(key)) continue
        const { linked, isWhole } = await this.#linkLayers(content, image, signal)
        if (isWhole) {
          if (this.#linked.size >= LINKED_MAX) this.#linked.clear()
          this.#linked.add(key)
        } else isDone = false
        if (linked === 0) continue
        const { reference } = image
        log.info(
          { image: reference, namespace, layers: linked },
          `containerd never downloaded ${linked} layers of ${reference}, and knows them now: it reads them from where they are published`,
        )
      }
      return isDone
    } catch (error) {
      log.debug(
        { namespace, reason: String(error) },
        'the images of a namespace cannot be looked at',
      )
      return false
    }
  }

  /** How many layers containerd knows since, and whether none is left that it should and does not. */
  async #linkLayers(
    content: Content,
    { reference, layers }: NamedImage,
    signal: AbortSignal,
  ): Promise<{ readonly linked: number; readonly isWhole: boolean }> {
    let linked = 0
    let isWhole = true
    for (const { blob } of layers) {
      if (await isKnown(content, blob, signal)) continue
      // Its layer may be one of ours under another name, so that containerd has not downloaded it.
      if (!(await this.#parts.store.know(blob, reference))) continue
      // Garbage collection may have come between: it deletes what no namespace has yet.
      if (await link(content, blob, signal)) linked += 1
      else isWhole = isWhole && (await isKnown(content, blob, signal))
    }
    return { linked, isWhole }
  }

  #forget(namespace: string): void {
    for (const key of this.#linked) if (key.startsWith(`${namespace} `)) this.#linked.delete(key)
  }
}

async function isKnown(
  content: Content,
  { digest }: Descriptor,
  signal: AbortSignal,
): Promise<boolean> {
  try {
    await content.calls.Info({ digest }, { signal })
    return true
  } catch (error) {
    if (hasStatus(error, status.NOT_FOUND)) return false
    throw error
  }
}

/** Has containerd know a blob that its store has. False if somebody else was faster, and if its store does not have it. */
async function link(content: Content, blob: Descriptor, signal: AbortSignal): Promise<boolean> {
  const { digest } = blob
  const ref = `ipdr-link-${digest}`
  const total = String(blob.size)
  const isThere = Promise.withResolvers<boolean>()
  async function* requests(): AsyncGenerator<WriteContentRequest> {
    yield { action: 'STAT', ref, total, expected: digest }
    if (await isThere.promise) {
      yield { action: 'COMMIT', ref, total, expected: digest, offset: total }
    }
  }
  try {
    for await (const { action, offset } of content.calls.Write(requests(), { signal })) {
      // Where the store has the blob, nothing is missing of it from the start.
      if (action === 'STAT') isThere.resolve(offset === total)
      else return true
    }
  } catch (error) {
    if (!hasStatus(error, status.ALREADY_EXISTS)) throw error
  } finally {
    isThere.resolve(false)
  }
  await content.calls.Abort({ ref }, { signal }).catch(() => undefined)
  return false
}

function hasStatus(error: unknown, code: status): boolean {
  return error instanceof Error && 'code' in error && error.code === code
}
