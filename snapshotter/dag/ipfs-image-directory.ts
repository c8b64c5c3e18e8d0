import type { CID } from 'multiformats/cid'
import type { BlockSource } from '../block-source.ts'
import type { ImageDirectory, RegistryBlob } from '../registry-service.ts'
import type { FoundManifest, IpfsImage } from './ipfs-image.ts'
import { openIpfsImage } from './open-ipfs-image.ts'
import type { UnixfsFile } from './unixfs-file.ts'

/** Images and blobs kept open between requests: a pull asks for a blob in parts. 64 lists of 1,200 leaves are 3 MB. */
const OPEN_MAX = 64

/** The images that `blocks` leads to, for the registry. */
export class IpfsImageDirectory implements ImageDirectory {
  readonly #blocks: BlockSource
  readonly #onRoot: (root: CID) => void
  readonly #images = new Map<string, IpfsImage>()
  readonly #blobs = new Map<string, UnixfsFile>()

  /** `onRoot` is told of each image that somebody asks for, before anything is read of it. */
  constructor(blocks: BlockSource, onRoot: (root: CID) => void = () => {}) {
    this.#blocks = blocks
    this.#onRoot = onRoot
  }

  async manifest(root: CID, reference: string, signal: AbortSignal): Promise<FoundManifest> {
    this.#onRoot(root)
    const image = await this.#image(root, signal)
    return image.manifest(reference, { priority: 'foreground', signal })
  }

  async blob(root: CID, digest: string, signal: AbortSignal): Promise<RegistryBlob> {
    const file = await recalled(this.#blobs, `${root.toString()}/${digest}`, async () => {
      const image = await this.#image(root, signal)
      return image.blob(digest, { priority: 'foreground', signal })
    })
    return {
      size: file.size,
      stream: (range, signal) => file.stream(range, { priority: 'foreground', signal }),
    }
  }

  async tags(root: CID, signal: AbortSignal): Promise<readonly string[]> {
    const image = await this.#image(root, signal)
    return image.tags({ priority: 'foreground', signal })
  }

  #image(root: CID, signal: AbortSignal): Promise<IpfsImage> {
    return recalled(this.#images, root.toString(), () =>
      openIpfsImage(root, this.#blocks, { priority: 'foreground', signal }),
    )
  }
}

/** What `open` made for `key` before, or makes now; the least recently used is let go. */
async function recalled<T>(kept: Map<string, T>, key: string, open: () => Promise<T>): Promise<T> {
  const value = kept.get(key) ?? (await open())
  kept.delete(key)
  kept.set(key, value)
  const [oldest] = kept.keys()
  if (kept.size > OPEN_MAX && oldest !== undefined) kept.delete(oldest)
  return value
}
