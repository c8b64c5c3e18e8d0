import type { ByteRange } from '../byte-range.ts'
import type { EntryPlace } from './entry-limits.ts'
import { EXTENTS_MAX, entryError, TAR_BLOCK_BYTES } from './entry-limits.ts'
import type { Extent } from './layer-toc.ts'
import type { PaxRecords } from './pax-records.ts'
import { paxNumber } from './pax-records.ts'
import { tarNumber } from './tar-header.ts'

/** A region of a sparse file that has data; what no region covers is a hole of zeros. */
export type SparseRegion = { readonly offset: number; readonly length: number }

/** Regions of an old GNU sparse block: 4 in the header at byte 386, 21 in each extension block at byte 0. GNU tar.h. */
export function gnuSparseRegions(
  block: Buffer,
  start: number,
  slots: number,
  place: EntryPlace,
): SparseRegion[] {
  const regions: SparseRegion[] = []
  for (let slot = start; slot < start + slots * 24; slot += 24) {
    if (block[slot] === 0) break
    const offset = tarNumber(block, slot, slot + 12)
    const length = tarNumber(block, slot + 12, slot + 24)
    if (offset === undefined || length === undefined) throw malformed(place)
    regions.push({ offset, length })
  }
  return regions
}

/** Regions of PAX sparse formats 0.0 (repeated records) and 0.1 (`GNU.sparse.map`); undefined if there are none. */
export function paxSparseRegions(
  records: PaxRecords,
  place: EntryPlace,
): SparseRegion[] | undefined {
  const map = records.findLast(([key]) => key === 'GNU.sparse.map')?.[1]
  const numbers =
    map === undefined
      ? records
          .filter(([key]) => key === 'GNU.sparse.offset' || key === 'GNU.sparse.numbytes')
          .map(([, value]) => value)
      : map.split(',').filter((value) => value !== '')
  if (numbers.length > 0) return pairs(numbers, place)
  return records.some(([key]) => key === 'GNU.sparse.numblocks') || map === '' ? [] : undefined
}

/**
 * Reads the map of PAX sparse format 1.0, which lies before the data: decimal numbers, one a line, a count and then
 * that many offsets and lengths, padded to 512 bytes. Yields the parts of the body it needs, in order; returns the regions
 * and how many bytes the map takes.
 */
export function* readSparseMap(
  body: ByteRange,
  place: EntryPlace,
): Generator<ByteRange, { regions: SparseRegion[]; mapBytes: number }, Buffer> {
  const numbers: string[] = []
  let rest = ''
  let wanted = 1
  let end = body.start
  while (numbers.length < wanted) {
    if (end + TAR_BLOCK_BYTES > body.end) throw malformed(place)
    const block = yield { start: end, end: end + TAR_BLOCK_BYTES }
    end += TAR_BLOCK_BYTES
    const lines = (rest + block.toString('latin1')).split('\n')
    rest = lines.pop() ?? ''
    // A number of ±2^53 has 16 digits: a longer line is no number.
    if (rest.length > 20 && numbers.length + lines.length < wanted) throw malformed(place)
    for (const line of lines) if (numbers.length < wanted) numbers.push(line)
    if (wanted === 1 && numbers.length === 1) {
      const count = paxNumber(numbers[0] ?? '')
      if (count === undefined || count < 0) throw malformed(place)
      if (count > EXTENTS_MAX) throw tooMany(place, count)
      wanted = 1 + 2 * count
      for (const line of lines.slice(1)) if (numbers.length < wanted) numbers.push(line)
    }
  }
  return { regions: pairs(numbers.slice(1), place), mapBytes: end - body.start }
}

/**
 * Where the regions of a sparse file lie in the layer. `stored` holds their bytes one after the other.
 * Throws LayerError INVALID_ARGUMENT for regions that overlap, go backwards, leave the file or do not fill `stored`,
 * and UNIMPLEMENTED for regions off the 512-byte grid, which the kernel cannot map.
 */
export function sparseExtents(
  regions: readonly SparseRegion[],
  stored: ByteRange,
  size: number,
  place: EntryPlace,
): Extent[] {
  if (regions.length > EXTENTS_MAX) throw tooMany(place, regions.length)
  const extents: Extent[] = []
  let fileEnd = 0
  let layerOffset = stored.start
  for (const { offset, length } of regions) {
    if (offset < fileEnd || length < 0 || offset + length > size) {
      throw entryError(
        'INVALID_ARGUMENT',
        place,
        `has a sparse region [${offset}, ${offset + length}) that overlaps another or leaves its ${size} bytes`,
      )
    }
    if (length > 0) {
      if (offset % TAR_BLOCK_BYTES !== 0 || layerOffset % TAR_BLOCK_BYTES !== 0) {
        const what = `has a sparse region at byte ${offset}, which is not on a multiple of ${TAR_BLOCK_BYTES}`
        throw entryError('UNIMPLEMENTED', place, what)
      }
      extents.push({ fileOffset: offset, layerOffset, length })
    }
    fileEnd = offset + length
    layerOffset += length
  }
  if (layerOffset !== stored.end) {
    throw entryError(
      'INVALID_ARGUMENT',
      place,
      `has sparse regions of ${layerOffset - stored.start} bytes and stores ${stored.end - stored.start}`,
    )
  }
  return extents
}

function pairs(numbers: readonly string[], place: EntryPlace): SparseRegion[] {
  if (numbers.length % 2 !== 0) throw malformed(place)
  if (numbers.length / 2 > EXTENTS_MAX) throw tooMany(place, numbers.length / 2)
  const regions: SparseRegion[] = []
  for (let index = 0; index < numbers.length; index += 2) {
    const offset = paxNumber(numbers[index] ?? '')
    const length = paxNumber(numbers[index + 1] ?? '')
    if (offset === undefined || length === undefined) throw malformed(place)
    regions.push({ offset, length })
  }
  return regions
}

function malformed(place: EntryPlace): Error {
  return entryError('INVALID_ARGUMENT', place, 'has a malformed sparse map')
}

function tooMany(place: EntryPlace, count: number): Error {
  const what = `has a sparse map of ${count} regions, the limit is ${EXTENTS_MAX}`
  return entryError('RESOURCE_EXHAUSTED', place, what)
}
