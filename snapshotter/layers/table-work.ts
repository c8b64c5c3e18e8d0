import { createHash } from 'node:crypto'
import type { LayerMap } from '../blobs/layer-map.ts'
import type { ByteRange } from '../byte-range.ts'
import { inheritImplied, mergeTrees } from '../erofs/merge-trees.ts'
import { filesToInline, writeErofsImage } from '../erofs/write-image.ts'
import { LayerError } from '../errors.ts'
import type { ListAnswer, ListRequest } from '../prefetch/list-work.ts'
import { buildTree } from '../toc/build-tree.ts'
import type { StoredChunkedTables } from '../toc/chunked/fetch-chunked-tables.ts'
import { joinChunkedTables } from '../toc/chunked/join-chunked-tables.ts'
import { estargzLayer } from '../toc/estargz/estargz-layer.ts'
import type { StoredEstargzToc } from '../toc/estargz/fetch-estargz-toc.ts'
import { GzipLayerMap } from '../toc/gzip/gzip-layer-map.ts'
import { decodeLayerIndex, decodeToc, encodeToc } from '../toc/layer-index.ts'
import type { LayerToc } from '../toc/layer-toc.ts'
import type { DirNode, FileNode } from '../toc/layer-tree.ts'
import { decodeSideIndex, encodeSideIndex, type IndexedLayer } from '../toc/side-index.ts'
import type { TableBlob } from '../toc/table-blob.ts'

/** A layer whose image is wanted together with what an index says of it. */
type ForImage = {
  /** As `devices` of an ImageRequest names the layer's file. */
  readonly tag: string
}

/** The index of a published layer, to be checked and taken apart. */
export type IndexRequest = ForImage & {
  readonly kind: 'index'
  readonly stored: Uint8Array
  readonly framesEnd: number
  readonly blobSize: number
}
/** The index of a layer that somebody else wrote, to be checked and taken apart. */
export type SideIndexRequest = ForImage & {
  readonly kind: 'sideIndex'
  readonly stored: Uint8Array
  readonly layer: IndexedLayer
}
/** The tables of a layer that another tool wrote as zstd:chunked. */
export type ChunkedRequest = ForImage & {
  readonly kind: 'chunked'
  readonly tables: StoredChunkedTables
  readonly blob: TableBlob
}
/** The table of a layer that another tool wrote as eStargz. */
export type EstargzRequest = ForImage & {
  readonly kind: 'estargz'
  readonly table: StoredEstargzToc
  readonly blob: TableBlob
}
export type IndexAnswer = {
  /** As `encodeToc` writes it, and as `LayerMap.toBytes`. */
  readonly toc: Uint8Array
  readonly map: Uint8Array
  /** The layer's image, as `inherit` derives it, unless content has to be copied into it. */
  readonly image: MadeImage | undefined
}

/** The side index of a gzip layer that is on this node, for others. */
export type ExportRequest = {
  readonly kind: 'export'
  readonly layer: IndexedLayer
  /** As the files of the layer hold them. */
  readonly map: Uint8Array
  readonly toc: Uint8Array
}
export type ExportAnswer = { readonly stored: Uint8Array }

/** The EROFS image of one or several layers' names and modes. */
export type ImageRequest = {
  readonly kind: 'image'
  /** Tables of contents, bottom layer first. */
  readonly tocs: readonly Uint8Array[]
  /** `merge`: all in one tree. `inherit`: the topmost alone, with the attributes of directories that only those below mention. */
  readonly derive: 'merge' | 'inherit'
  /** The layer files that content lies in: of all layers, or of the topmost alone. */
  readonly devices: readonly { readonly tag: string; readonly bytes: number }[]
  /** The bytes of the ranges that an answer to this request asked for, in its order. */
  readonly contents: readonly Uint8Array[]
}
export type ImageAnswer =
  /** Content that no whole blocks of a layer hold must be copied into the image: ask again with the bytes of these ranges. */
  | { readonly kind: 'needs'; readonly ranges: readonly DeviceRange[] }
  | ({ readonly kind: 'made' } & MadeImage)

export type MadeImage = {
  readonly image: Uint8Array
  readonly inodes: number
  readonly droppedXattrs: number
  /** The topmost layer has directories that its tar does not mention. */
  readonly inheritsDirs: boolean
  /** The topmost layer's root hides the layers below. */
  readonly hidesBelow: boolean
}

/** Bytes of the layer file behind one device of an image. */
export type DeviceRange = ByteRange & { readonly device: number }

export type TableRequest =
  | IndexRequest
  | SideIndexRequest
  | ChunkedRequest
  | EstargzRequest
  | ExportRequest
  | ImageRequest
  | ListRequest
export type TableAnswer = IndexAnswer | ExportAnswer | ImageAnswer | ListAnswer

/** Checks an index that a stranger wrote. Throws LayerError as `decodeLayerIndex`, `decodeSideIndex` and `makeImage`. */
export function takeIndexApart(request: IndexRequest | SideIndexRequest): IndexAnswer {
  const { toc, map } =
    request.kind === 'index'
      ? decodeLayerIndex(request.stored, request)
      : decodeSideIndex(request.stored, request.layer)
  return indexAnswer(toc, map, request)
}

/** Puts a side index together. Throws LayerError if the files of the layer are damaged. */
export function makeSideIndex({ layer, map, toc }: ExportRequest): ExportAnswer {
  const index = { map: GzipLayerMap.fromBytes(map), toc: decodeToc(toc) }
  return { stored: encodeSideIndex(layer, index) }
}

/** Checks tables that a stranger wrote. Rejects as `joinChunkedTables` and `makeImage`. */
export async function joinTables({ tables, blob, tag }: ChunkedRequest): Promise<IndexAnswer> {
  const { toc, map } = await joinChunkedTables(tables, blob, new AbortController().signal)
  return indexAnswer(toc, map, { tag })
}

/** Checks a table that a stranger wrote. Throws LayerError as `estargzLayer` and `makeImage`. */
export function arrangeEstargz({ table, blob, tag }: EstargzRequest): IndexAnswer {
  const { toc, map } = estargzLayer(table, blob)
  return indexAnswer(toc, map, { tag })
}

/** With the image, while the entries are here: to read them again from the table of contents takes as long as the first time. */
function indexAnswer(toc: LayerToc, map: LayerMap, { tag }: ForImage): IndexAnswer {
  const devices = [{ tag, bytes: map.layerSize }]
  const image = imageOf([buildTree(toc)], { derive: 'inherit', devices, contents: [] })
  return {
    toc: encodeToc(toc),
    map: map.toBytes(),
    image: image.kind === 'made' ? image : undefined,
  }
}

/** Makes an image. Throws LayerError as `buildTree` and `writeErofsImage`. */
export function makeImage({ tocs, ...request }: ImageRequest): ImageAnswer {
  return imageOf(
    tocs.map((toc) => buildTree(decodeToc(toc))),
    request,
  )
}

function imageOf(
  trees: readonly DirNode[],
  { derive, devices, contents }: Pick<ImageRequest, 'derive' | 'devices' | 'contents'>,
): ImageAnswer {
  const top = trees.at(-1)
  if (top === undefined) throw new LayerError('INTERNAL', 'an image is made of one layer at least')
  const traits = { inheritsDirs: hasImpliedDirs(top), hidesBelow: top.opaque }
  const root =
    derive === 'merge' && trees.length > 1
      ? mergeTrees(trees)
      : inheritImplied(top, mergeTrees(trees.slice(0, -1)))
  const files = filesToInline(root)
  const ranges = files.flatMap(rangesOf)
  if (ranges.length > contents.length) return { kind: 'needs', ranges }
  const inlined = inlinedContents(files, contents)
  const { bytes, inodes, droppedXattrs } = writeErofsImage(root, {
    devices,
    uuid: imageUuid(devices),
    inline: (file) => inlined.get(file) ?? new Uint8Array(file.size),
  })
  return { kind: 'made', image: bytes, inodes, droppedXattrs, ...traits }
}

function rangesOf({ layer, extents }: FileNode): DeviceRange[] {
  return extents.map(({ layerOffset, length }) => ({
    device: layer,
    start: layerOffset,
    end: layerOffset + length,
  }))
}

function inlinedContents(
  files: readonly FileNode[],
  contents: readonly Uint8Array[],
): ReadonlyMap<FileNode, Uint8Array> {
  const pieces = contents.values()
  return new Map(
    files.map((file) => {
      const whole = new Uint8Array(file.size)
      for (const { fileOffset } of file.extents) whole.set(pieces.next().value ?? [], fileOffset)
      return [file, whole]
    }),
  )
}

/** Whether the tree has a directory, below its root, that no entry of the tar is about. */
function hasImpliedDirs(root: DirNode): boolean {
  const pending: DirNode[] = [root]
  for (let dir = pending.pop(); dir !== undefined; dir = pending.pop()) {
    for (const node of dir.children.values()) {
      if (node.kind !== 'dir') continue
      if (node.implied) return true
      pending.push(node)
    }
  }
  return false
}

/** The same layers give the same image, so its UUID is derived from them: a version 8 one (RFC 9562). */
function imageUuid(devices: readonly { readonly tag: string }[]): Uint8Array {
  const uuid = createHash('sha256')
    .update(devices.map(({ tag }) => tag).join('\n'))
    .digest()
    .subarray(0, 16)
  uuid[6] = ((uuid[6] ?? 0) & 0x0f) | 0x80
  uuid[8] = ((uuid[8] ?? 0) & 0x3f) | 0x80
  return uuid
}
