import { printable } from './entry-limits.ts'
import type { LayerToc, TocEntry } from './layer-toc.ts'

/**
 * Compares a table of contents with another of the same layer, such as one that a publisher promised with one read from
 * the tar. Undefined if they are the same in all that shows in a mount; otherwise the first difference, as
 * `entry 12 "usr/bin/env": size is 5 here, 6 there`.
 */
export function sameToc(here: LayerToc, there: LayerToc): string | undefined {
  if (here.layerSize !== there.layerSize) {
    return `the layer has ${here.layerSize} bytes here, ${there.layerSize} there`
  }
  for (const [index, entry] of here.entries.entries()) {
    const other = there.entries[index]
    const name = `entry ${index} ${printable(entry.path)}`
    if (other === undefined) return `${name} is here and not there`
    const difference = entryDifference(entry, other)
    if (difference !== undefined) return `${name}: ${difference}`
  }
  const more = there.entries[here.entries.length]
  if (more === undefined) return undefined
  return `entry ${here.entries.length} ${printable(more.path)} is there and not here`
}

const fields = [
  'path',
  'kind',
  'mode',
  'uid',
  'gid',
  'mtimeSec',
  'mtimeNsec',
  'size',
  'linkTarget',
  'devMajor',
  'devMinor',
] as const satisfies readonly (keyof TocEntry)[]

function entryDifference(here: TocEntry, there: TocEntry): string | undefined {
  for (const field of fields) {
    if (here[field] !== there[field]) {
      return `${field} is ${shown(here[field])} here, ${shown(there[field])} there`
    }
  }
  const xattrs = (entry: TocEntry): string =>
    shown(
      [...(entry.xattrs ?? [])]
        .map(([name, value]) => `${name}=${Buffer.from(value).toString('hex')}`)
        .toSorted(),
    )
  if (xattrs(here) !== xattrs(there)) return 'its extended attributes differ'
  const extents = (entry: TocEntry): string =>
    (entry.extents ?? [])
      .map(({ fileOffset, layerOffset, length }) => `${fileOffset}+${length}@${layerOffset}`)
      .join(' ')
  if (extents(here) !== extents(there)) return 'its content lies elsewhere in the layer'
  return undefined
}

function shown(value: string | number | readonly string[] | undefined): string {
  return typeof value === 'string' ? printable(value) : (JSON.stringify(value) ?? 'nothing')
}
