import type { CID } from 'multiformats/cid'
import type { BlockSource } from './block-source.ts'
import { DescriptorImage } from './dag/descriptor-image.ts'
import { openIpfsImage } from './dag/open-ipfs-image.ts'

/** What can be said of an image without reading a manifest. */
export type ImageOutline = {
  /** Sorted. */
  readonly tags: string[]
  /** Whether the DAG under its root has all of it; an OCI descriptor only names its blobs by ipfs:// URLs. */
  readonly isLinked: boolean
}

/** Looks at the image under `root`. Rejects as `openIpfsImage`. */
export async function imageOutline(
  root: CID,
  { blocks, signal }: { readonly blocks: BlockSource; readonly signal: AbortSignal },
): Promise<ImageOutline> {
  const request = { priority: 'foreground', signal } as const
  const image = await openIpfsImage(root, blocks, request)
  return { tags: await image.tags(request), isLinked: !(image instanceof DescriptorImage) }
}
