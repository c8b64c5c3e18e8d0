import { ESTARGZ_TOC_DIGEST_ANNOTATION } from './estargz/fetch-estargz-toc.ts'
import { LAYER_INDEX_ANNOTATION } from './layer-index.ts'
import {
  CHUNKED_CHECKSUM_ANNOTATION,
  CHUNKED_POSITION_ANNOTATION,
  TAR_SPLIT_POSITION_ANNOTATION,
} from './zstd-chunked.ts'

/** Every annotation of a descriptor that decides where a layer's table of contents is looked for, and which one is believed. */
const TABLE_ANNOTATIONS = [
  LAYER_INDEX_ANNOTATION,
  ESTARGZ_TOC_DIGEST_ANNOTATION,
  CHUNKED_CHECKSUM_ANNOTATION,
  CHUNKED_POSITION_ANNOTATION,
  TAR_SPLIT_POSITION_ANNOTATION,
] as const

/** What a descriptor says of its layer's table of contents: the same text for descriptors that lead to the same table. */
export function tablesNamed(annotations: Readonly<Record<string, string>>): string {
  return JSON.stringify(TABLE_ANNOTATIONS.map((name) => annotations[name] ?? null))
}

/** `tablesNamed` of a descriptor that says nothing of a table of contents. */
export const NO_TABLES: string = tablesNamed({})

/** The kind of table for whose bytes a layer's manifest vouches, so that the table can vouch for the layer's; undefined if for none. */
export function vouchedTable(
  annotations: Readonly<Record<string, string>>,
): 'zstd:chunked' | 'eStargz' | undefined {
  const chunked = [
    CHUNKED_CHECKSUM_ANNOTATION,
    CHUNKED_POSITION_ANNOTATION,
    TAR_SPLIT_POSITION_ANNOTATION,
  ]
  if (chunked.every((name) => name in annotations)) return 'zstd:chunked'
  return ESTARGZ_TOC_DIGEST_ANNOTATION in annotations ? 'eStargz' : undefined
}
