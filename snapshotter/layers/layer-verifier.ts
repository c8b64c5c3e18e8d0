import { createHash } from 'node:crypto'
import type { LazyLayer } from '../blobs/lazy-layer.ts'
import { LayerError } from '../errors.ts'
import { parseDigest } from '../oci/digest.ts'
import { ChunkLayerMap } from '../toc/chunked/chunk-layer-map.ts'
import { sameEstargzToc } from '../toc/estargz/same-estargz-toc.ts'
import type { LayerToc } from '../toc/layer-toc.ts'
import { sameToc } from '../toc/same-toc.ts'
import { TarStreamWalk } from '../toc/walk-tar.ts'

/** Bytes hashed and walked in one go. 512 KiB: 0.3 ms, and where they are nothing but headers of empty files under 10. */
const PIECE_BYTES = 512 * 1024

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
  const { map } = held.file
  if (map instanceof ChunkLayerMap && map.isRearranged) {
    return verifyRearranged(held, map, promised, signal)
  }
  const { layerSize } = map
  const { algorithm } = parseDigest(promised.diffId)
  const [hash, walk] = [createHash(algorithm), new TarStreamWalk()]
  let walkFailure: LayerError | undefined
  // One piece after the other into the same memory: a gibibyte of buffers would have to be collected.
  const piece = Buffer.allocUnsafeSlow(Math.min(PIECE_BYTES, layerSize))
  for (let start = 0; start < layerSize; start += PIECE_BYTES) {
    const end = Math.min(start + PIECE_BYTES, layerSize)
    const bytes = piece.subarray(0, end - start)
    await held.readInto({ start, end }, () => bytes, { priority: 'background', signal })
    hash.update(bytes)
    // Its bytes may be no tar at all: then they have another diff ID.
    walkFailure ??= failureOf(() => walk.push(bytes))
  }
  const diffId = `${algorithm}:${hash.digest('hex')}`
  if (diffId !== promised.diffId) return otherLayer(diffId, promised.diffId)
  if (walkFailure !== undefined) throw walkFailure
  return tocVerdict(sameToc(walk.end(), promised.toc))
}

/** The same of a layer whose file is not its tar: the tar is put together from it, unit by unit. */
async function verifyRearranged(
  held: LazyLayer,
  map: ChunkLayerMap,
  promised: { readonly diffId: string; readonly toc: LayerToc },
  signal: AbortSignal,
): Promise<Verdict> {
  const { algorithm } = parseDigest(promised.diffId)
  const [hash, walk] = [createHash(algorithm), new TarStreamWalk()]
  const [layerStarts, tarStarts]: [number[], number[]] = [[], []]
  let [tarAt, walkFailure]: [number, LayerError | undefined] = [0, undefined]
  for (let unit = 0; unit + 1 < map.starts.length; unit++) {
    const range = { start: map.starts[unit] ?? 0, end: map.starts[unit + 1] ?? 0 }
    const layer = await held.read(range, { priority: 'background', signal })
    for (const { layerStart, bytes } of map.tarParts(unit, layer)) {
      hash.update(bytes)
      layerStarts.push(layerStart)
      tarStarts.push(tarAt)
      tarAt += bytes.length
      // Its bytes may be no tar at all: then they have another diff ID.
      walkFailure ??= failureOf(() => walk.push(bytes))
    }
  }
  const diffId = `${algorithm}:${hash.digest('hex')}`
  if (diffId !== promised.diffId) return otherLayer(diffId, promised.diffId)
  let difference: string | undefined
  walkFailure ??= failureOf(() => {
    difference = sameEstargzToc(walk.end(), promised.toc, { layerStarts, tarStarts })
  })
  return tocVerdict(walkFailure?.message ?? difference)
}

function failureOf(work: () => void): LayerError | undefined {
  try {
    work()
    return undefined
  } catch (error) {
    if (error instanceof LayerError) return error
    throw error
  }
}

function otherLayer(diffId: string, promised: string): Verdict {
  const sentence = `its bytes have the diff ID ${diffId}, its image promised ${promised}`
  return { kind: 'corrupt', what: 'layer', sentence }
}

function tocVerdict(difference: string | undefined): Verdict {
  if (difference === undefined) return { kind: 'intact' }
  const sentence = `its table of contents is not that of its tar: ${difference}`
  return { kind: 'corrupt', what: 'toc', sentence }
}
