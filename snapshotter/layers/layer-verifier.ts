import { createHash } from 'node:crypto'
import type { LazyLayer } from '../blobs/lazy-layer.ts'
import { parseDigest } from '../oci/digest.ts'
import type { LayerToc } from '../toc/layer-toc.ts'
import { sameToc } from '../toc/same-toc.ts'
import { walkTar } from '../toc/walk-tar.ts'

/** Bytes hashed in one go. 1 MiB: under 2 ms of the event loop. */
const PIECE_BYTES = 1024 ** 2

/** What a complete layer turned out to be; anything but `intact` is a lie of whoever published it. */
export type Verdict =
  | { readonly kind: 'intact' }
  | { readonly kind: 'corrupt'; readonly what: 'layer' | 'toc'; readonly sentence: string }

/**
 * Checks a layer of which all bytes are here: they must have the diff ID that its image promised, and the table of contents
 * that it was mounted by must be the one that its tar has. Rejects if the bytes cannot be read, or when `signal` aborts.
 */
export async function verifyLayer(
  held: LazyLayer,
  promised: { readonly diffId: string; readonly toc: LayerToc },
  signal: AbortSignal,
): Promise<Verdict> {
  const { layerSize } = held.file.map
  const request = { priority: 'background', signal } as const
  const { algorithm } = parseDigest(promised.diffId)
  const hash = createHash(algorithm)
  for (let start = 0; start < layerSize; start += PIECE_BYTES) {
    hash.update(await held.read({ start, end: Math.min(start + PIECE_BYTES, layerSize) }, request))
  }
  const diffId = `${algorithm}:${hash.digest('hex')}`
  if (diffId !== promised.diffId) {
    return {
      kind: 'corrupt',
      what: 'layer',
      sentence: `its bytes have the diff ID ${diffId}, its image promised ${promised.diffId}`,
    }
  }
  const toc = await walkTar(
    (offset, length) => held.read({ start: offset, end: offset + length }, request),
    layerSize,
    signal,
  )
  const difference = sameToc(toc, promised.toc)
  if (difference === undefined) return { kind: 'intact' }
  return {
    kind: 'corrupt',
    what: 'toc',
    sentence: `its table of contents is not that of its tar: ${difference}`,
  }
}
