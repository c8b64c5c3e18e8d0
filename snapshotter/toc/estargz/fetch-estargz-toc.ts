import type { ByteRange } from '../../byte-range.ts'
import { LayerError } from '../../errors.ts'

/** The digest of the table of contents' JSON, uncompressed. stargz-snapshotter, docs/estargz.md. */
export const ESTARGZ_TOC_DIGEST_ANNOTATION = 'containerd.io/snapshot/stargz/toc.digest'

/** The table of contents of an eStargz layer as it is stored: gzip members from `start` to the end of the blob. */
export type StoredEstargzToc = {
  readonly stored: Uint8Array
  readonly start: number
  /** As the annotation has it; undefined without one. */
  readonly digest: string | undefined
}

/** The footer: an empty gzip member whose extra field is "SG", its length 22, and 16 hex digits and "STARGZ". */
const FOOTER_BYTES = 51
const FOOTER_EXTRA_AT = 16
const FOOTER_EXTRA_BYTES = 22

/** A table as stored, in bytes. 64 MiB: 150 MiB of JSON at least, which gzip takes to a fifth. */
const STORED_BYTES_MAX = 64 * 1024 * 1024

/**
 * Fetches the table of contents of an eStargz layer, by two reads of its blob; `annotations` are those of its descriptor.
 * Undefined if the blob does not end in the footer. Rejects with LayerError if it does and names no usable place:
 * INVALID_ARGUMENT, or RESOURCE_EXHAUSTED if it is too long; passes on what `readBlob` rejects with.
 */
export async function fetchEstargzToc(
  annotations: Readonly<Record<string, string>>,
  readBlob: (range: ByteRange, signal: AbortSignal) => Promise<Uint8Array>,
  blobSize: number,
  signal: AbortSignal,
): Promise<StoredEstargzToc | undefined> {
  if (blobSize <= FOOTER_BYTES) return undefined
  const footer = await readBlob({ start: blobSize - FOOTER_BYTES, end: blobSize }, signal)
  const extra = Buffer.from(footer)
    .subarray(FOOTER_EXTRA_AT, FOOTER_EXTRA_AT + FOOTER_EXTRA_BYTES)
    .toString('latin1')
  const match = /^([0-9a-f]{16})STARGZ$/.exec(extra)
  if (match === null) return undefined
  const start = Number.parseInt(match[1] ?? '', 16)
  if (start >= blobSize - FOOTER_BYTES) {
    const message = `eStargz: its footer says that its table of contents is at byte ${start} of ${blobSize}`
    throw new LayerError('INVALID_ARGUMENT', message)
  }
  if (blobSize - start > STORED_BYTES_MAX) {
    const message = `eStargz: its table of contents has ${blobSize - start} bytes, the limit is ${STORED_BYTES_MAX}`
    throw new LayerError('RESOURCE_EXHAUSTED', message)
  }
  const stored = await readBlob({ start, end: blobSize }, signal)
  return { stored, start, digest: annotations[ESTARGZ_TOC_DIGEST_ANNOTATION] }
}
