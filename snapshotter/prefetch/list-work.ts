import { decodeToc } from '../toc/layer-index.ts'
import type { LayerRange } from './first-uses.ts'
import { nameRanges } from './name-ranges.ts'
import { type PlacedList, placeRanges } from './place-ranges.ts'
import type { ListedLayer, PrefetchList } from './prefetch-list.ts'

/** Work on lists that needs tables of contents, as `encodeToc` writes them; for the thread that may hold these. */
export type ListRequest =
  | {
      readonly kind: 'name'
      readonly layers: readonly (ListedLayer & { readonly toc: Uint8Array })[]
      readonly ranges: readonly LayerRange[]
    }
  | {
      readonly kind: 'place'
      readonly list: PrefetchList
      readonly layers: readonly (ListedLayer & { readonly toc: Uint8Array })[]
    }
export type NameAnswer = { readonly kind: 'named'; readonly list: PrefetchList }
export type PlaceAnswer = { readonly kind: 'placed'; readonly placed: PlacedList }
export type ListAnswer = NameAnswer | PlaceAnswer

/** Names or places ranges. Throws LayerError if a table of contents is damaged. */
export function workOnList(request: ListRequest): ListAnswer {
  const layers = request.layers.map(({ toc, ...layer }) => ({ ...layer, toc: decodeToc(toc) }))
  return request.kind === 'name'
    ? { kind: 'named', list: nameRanges(layers, request.ranges) }
    : { kind: 'placed', placed: placeRanges(request.list, layers) }
}
