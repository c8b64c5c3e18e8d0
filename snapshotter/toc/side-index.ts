import { createHash } from 'node:crypto'
import { ImageError, LayerError } from '../errors.ts'
import { type Digest, parseDigest } from '../oci/digest.ts'
import { ByteReader } from './byte-reader.ts'
import { ByteWriter } from './byte-writer.ts'
import { GzipLayerMap } from './gzip/gzip-layer-map.ts'
import { decodeToc, encodeToc, INDEX_BYTES_MAX } from './layer-index.ts'
import type { LayerToc } from './layer-toc.ts'

/*
 * A side index: what makes a layer lazily readable that somebody else wrote, as a file of its own beside the image.
 *
 *   "IPDRSIX1"
 *   format of the blob: 1 is tar+gzip
 *   the layer: digest of its blob, bytes of its blob, diff ID
 *   seek index: how many bytes, and as GzipLayerMap.toBytes writes it
 *   table of contents: how many bytes, and as encodeToc writes it
 *   SHA-256 of all that comes before
 *
 * Numbers are LEB128 (ByteWriter). Offsets are those of the blob: where its UnixFS leaves end is read from its DAG.
 */

/** The directory of side indexes under an image's root, beside `manifests/` and `blobs/`: `indexes/<digest of the layer's blob>`. */
export const SIDE_INDEXES_DIRECTORY = 'indexes'

/** A side index, in bytes. 128 MiB: a table of contents of 64 MiB, and as much again: 1.5 % of a blob of 4 GiB. */
export const SIDE_INDEX_BYTES_MAX: number = 2 * INDEX_BYTES_MAX

const magic = Buffer.from('IPDRSIX1', 'latin1')
const subject = 'side index'
const formatCode = { 'tar+gzip': 1 } as const
const CHECKSUM_BYTES = 32

/** The layer that a side index is of, as an image names it. */
export type IndexedLayer = {
  readonly blobDigest: Digest
  readonly blobSize: number
  readonly diffId: Digest
}

/** What a side index says of its layer. */
export type SideIndex = { readonly map: GzipLayerMap; readonly toc: LayerToc }

/** The index as bytes: the same for the same layer, so that two who index it make one file. */
export function encodeSideIndex(layer: IndexedLayer, { map, toc }: SideIndex): Uint8Array {
  const writer = new ByteWriter()
  writer.raw(magic)
  writer.uint(formatCode['tar+gzip'])
  writer.latin1(layer.blobDigest)
  writer.uint(layer.blobSize)
  writer.latin1(layer.diffId)
  writer.bytes(map.toBytes())
  writer.bytes(encodeToc(toc, 'small'))
  writer.raw(createHash('sha256').update(writer.written()).digest())
  return writer.written()
}

/**
 * The way back from `encodeSideIndex`, for `layer` alone. Throws LayerError: DATA_LOSS for bytes that are no such index or were
 * damaged, UNIMPLEMENTED for a later version, INVALID_ARGUMENT for the index of another layer or one that contradicts itself,
 * and as `decodeToc`. That its spans are the layer's shows when they are decoded, each against its own SHA-256.
 */
export function decodeSideIndex(stored: Uint8Array, layer: IndexedLayer): SideIndex {
  if (stored.length > SIDE_INDEX_BYTES_MAX) {
    const message = `${subject} of ${layer.blobDigest}: ${stored.length} bytes, the limit is ${SIDE_INDEX_BYTES_MAX}`
    throw new LayerError('RESOURCE_EXHAUSTED', message)
  }
  const body = checkedBody(stored)
  const reader = new ByteReader(body, subject)
  reader.raw(magic.length)
  const format = reader.uint()
  if (format !== formatCode['tar+gzip']) {
    const message = `${subject} is of a layer of the format ${format}, this agent knows ${formatCode['tar+gzip']}: index the layer again`
    throw new LayerError('UNIMPLEMENTED', message)
  }
  checkLayer(readLayer(reader), layer)
  const map = GzipLayerMap.fromBytes(reader.bytes())
  const toc = decodeToc(reader.bytes())
  reader.end()
  if (map.blobSize !== layer.blobSize) {
    throw contradiction(`its seek index is of ${map.blobSize} bytes`, layer)
  }
  if (map.layerSize !== toc.layerSize) {
    const what = `its seek index makes ${map.layerSize} bytes, its table of contents is of ${toc.layerSize}`
    throw contradiction(what, layer)
  }
  return { map, toc }
}

/** All but the checksum, which is checked: a damaged table of contents may well look like one. */
function checkedBody(stored: Uint8Array): Uint8Array {
  const end = stored.length - CHECKSUM_BYTES
  const start = Buffer.from(stored.subarray(0, magic.length))
  if (end < magic.length || !start.equals(magic)) {
    throw new LayerError('DATA_LOSS', `${subject}: it is of another kind or version`)
  }
  const body = stored.subarray(0, end)
  const digest = createHash('sha256').update(body).digest()
  if (digest.equals(stored.subarray(end))) return body
  throw new LayerError('DATA_LOSS', `${subject}: its checksum is not that of its bytes`)
}

function readLayer(reader: ByteReader): IndexedLayer {
  const blobDigest = readDigest(reader)
  const blobSize = reader.uint()
  return { blobDigest, blobSize, diffId: readDigest(reader) }
}

function readDigest(reader: ByteReader): Digest {
  const text = reader.latin1()
  try {
    const { algorithm, hex } = parseDigest(text)
    return `${algorithm}:${hex}`
  } catch (error) {
    if (error instanceof ImageError) throw reader.broken(error.message)
    throw error
  }
}

function checkLayer(said: IndexedLayer, layer: IndexedLayer): void {
  for (const field of ['blobDigest', 'blobSize', 'diffId'] as const) {
    if (said[field] === layer[field]) continue
    throw contradiction(`it is of another layer: its ${field} is ${said[field]}`, layer)
  }
}

function contradiction(what: string, { blobDigest, blobSize, diffId }: IndexedLayer): LayerError {
  return new LayerError(
    'INVALID_ARGUMENT',
    `${subject}: ${what}; the layer is ${blobDigest} of ${blobSize} bytes with the diff ID ${diffId}`,
    { digest: blobDigest },
  )
}
