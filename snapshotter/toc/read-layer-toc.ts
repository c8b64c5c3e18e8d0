import { createHash } from 'node:crypto'
import type { ByteRange } from '../byte-range.ts'
import { LayerError } from '../errors.ts'
import type { LayerIndex } from './layer-index.ts'
import { decodeLayerIndex, INDEX_BYTES_MAX, LAYER_INDEX_ANNOTATION } from './layer-index.ts'
import { SKIPPABLE_HEADER_BYTES } from './zstd-frames.ts'

/** An index as it is stored in the blob, and where the layer's frames end there: what `decodeLayerIndex` takes. */
export type StoredLayerIndex = { readonly stored: Uint8Array; readonly framesEnd: number }

/**
 * Reads the table of contents and the map of a layer that carries an index of ours. Undefined if its annotations name none.
 * Rejects as `fetchLayerIndex`, and as `decodeLayerIndex` throws.
 */
export async function readLayerIndex(
  annotations: Readonly<Record<string, string>>,
  readBlob: (range: ByteRange, signal: AbortSignal) => Promise<Uint8Array>,
  blobSize: number,
  signal: AbortSignal,
): Promise<LayerIndex | undefined> {
  const fetched = await fetchLayerIndex(annotations, readBlob, blobSize, signal)
  return fetched && decodeLayerIndex(fetched.stored, { framesEnd: fetched.framesEnd, blobSize })
}

/**
 * Fetches the index of a layer by one read of its blob and checks its digest. `annotations` are those of the layer's descriptor.
 * Undefined if they name no index; rejects with LayerError if they do and it cannot be used: INVALID_ARGUMENT (a lie),
 * DATA_LOSS (other bytes than the manifest promises), RESOURCE_EXHAUSTED (too long); passes on what `readBlob` rejects with.
 */
export async function fetchLayerIndex(
  annotations: Readonly<Record<string, string>>,
  readBlob: (range: ByteRange, signal: AbortSignal) => Promise<Uint8Array>,
  blobSize: number,
  signal: AbortSignal,
): Promise<StoredLayerIndex | undefined> {
  const annotation = annotations[LAYER_INDEX_ANNOTATION]
  if (annotation === undefined) return undefined
  const match = /^([0-9]{1,15}):([0-9]{1,15}):([0-9a-f]{64})$/.exec(annotation)
  if (match === null) throw unusable(annotation, 'it is not offset:length:sha256')
  const start = Number(match[1])
  const length = Number(match[2])
  if (start < SKIPPABLE_HEADER_BYTES || start + length > blobSize) {
    throw unusable(annotation, `the blob has ${blobSize} bytes`)
  }
  if (length > INDEX_BYTES_MAX) {
    const message = `annotation ${LAYER_INDEX_ANNOTATION}: an index of ${length} bytes, the limit is ${INDEX_BYTES_MAX}`
    throw new LayerError('RESOURCE_EXHAUSTED', message, { length })
  }
  const stored = await readBlob({ start, end: start + length }, signal)
  const digest = createHash('sha256').update(stored).digest('hex')
  if (stored.length !== length || digest !== match[3]) {
    const message = `layer index: ${stored.length} bytes with digest sha256:${digest}, the manifest says ${annotation}`
    throw new LayerError('DATA_LOSS', message)
  }
  return { stored, framesEnd: start - SKIPPABLE_HEADER_BYTES }
}

function unusable(annotation: string, why: string): LayerError {
  const message = `annotation ${LAYER_INDEX_ANNOTATION} "${annotation}" cannot be used: ${why}`
  return new LayerError('INVALID_ARGUMENT', message)
}
