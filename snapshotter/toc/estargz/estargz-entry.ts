import { LayerError } from '../../errors.ts'
import { checkXattr, cleanPath, printable } from '../entry-limits.ts'
import type { EntryKind, TocEntry } from '../layer-toc.ts'

/** An entry of a table of contents, of which nothing is believed yet. */
export type JsonEntry = Readonly<Record<string, unknown>>

const kinds: ReadonlySet<string> = new Set([
  'reg',
  'dir',
  'symlink',
  'hardlink',
  'char',
  'block',
  'fifo',
] satisfies EntryKind[])

/**
 * What an entry says but for where its content is (stargz-snapshotter, estargz/types.go). Throws LayerError INVALID_ARGUMENT for
 * one that cannot be, UNIMPLEMENTED for a name that was not UTF-8 and is lost in JSON.
 */
export function estargzEntry(line: JsonEntry): TocEntry {
  const name = textOf(line, 'name')
  const place = { path: name, offset: numberOf(line, 'offset') }
  const kind = line['type']
  if (!isKind(kind)) throw wrong(line, 'is of no known type')
  const xattrs = xattrsOf(line)
  for (const [key, value] of xattrs) checkXattr(key, value, place)
  const linkName = textOf(line, 'linkName')
  return {
    path: cleanPath(name, place),
    kind,
    mode: numberOf(line, 'mode') % 0o10000,
    uid: numberOf(line, 'uid'),
    gid: numberOf(line, 'gid'),
    mtimeSec: secondsOf(line),
    mtimeNsec: 0,
    size: kind === 'reg' ? numberOf(line, 'size') : 0,
    ...(kind === 'symlink' ? { linkTarget: linkName } : {}),
    ...(kind === 'hardlink' ? { linkTarget: cleanPath(linkName, place, 'hard link target') } : {}),
    ...(kind === 'char' || kind === 'block'
      ? { devMajor: numberOf(line, 'devMajor'), devMinor: numberOf(line, 'devMinor') }
      : {}),
    ...(xattrs.size > 0 ? { xattrs } : {}),
    ...(kind === 'reg' ? { extents: [] } : {}),
  }
}

/** A field that is a whole number, 0 where it is left out. Throws LayerError INVALID_ARGUMENT. */
export function numberOf(line: JsonEntry, field: string): number {
  const value = line[field] ?? 0
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value
  throw wrong(line, `has a ${field} that is no whole number`)
}

/** A field that is a SHA-256 digest; undefined where it is left out. Throws LayerError INVALID_ARGUMENT. */
export function sha256Of(line: JsonEntry, field: string): Uint8Array | undefined {
  const digest = line[field] ?? ''
  if (digest === '') return undefined
  const match = typeof digest === 'string' ? /^sha256:([0-9a-f]{64})$/.exec(digest) : null
  if (match?.[1] === undefined) throw wrong(line, `has a ${field} that is no SHA-256`)
  return Buffer.from(match[1], 'hex')
}

/** A LayerError INVALID_ARGUMENT about an entry of the table. */
export function wrong(line: JsonEntry, what: string): LayerError {
  const name = typeof line['name'] === 'string' ? line['name'] : ''
  const message = `eStargz table of contents: ${printable(Buffer.from(name).toString('latin1'))} ${what}`
  return new LayerError('INVALID_ARGUMENT', message)
}

function isKind(kind: unknown): kind is EntryKind {
  return typeof kind === 'string' && kinds.has(kind)
}

/** JSON is UTF-8, names of ours are bytes. */
function textOf(line: JsonEntry, field: string): string {
  const text = line[field] ?? ''
  if (typeof text !== 'string') throw wrong(line, `has a ${field} that is no text`)
  if (text.includes('\ufffd')) {
    const message = `eStargz table of contents: a name is not UTF-8: ${printable(text)}`
    throw new LayerError('UNIMPLEMENTED', message)
  }
  return Buffer.from(text).toString('latin1')
}

/** eStargz writes whole seconds, rounded. */
function secondsOf(line: JsonEntry): number {
  const time = line['modtime'] ?? ''
  // As Go has it for the time zero, which is left out.
  if (time === '') return 0
  const isTime = typeof time === 'string' && /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/.test(time)
  const ms = isTime ? Date.parse(time) : Number.NaN
  if (Number.isNaN(ms)) throw wrong(line, 'has a modtime that is no time')
  return ms / 1000
}

function xattrsOf(line: JsonEntry): Map<string, Uint8Array> {
  const xattrs = line['xattrs'] ?? {}
  if (typeof xattrs !== 'object') throw wrong(line, 'has xattrs that are no object')
  return new Map(
    Object.entries(xattrs).map(([name, value]: [string, unknown]) => {
      // Go writes no bytes as null.
      if (value !== null && typeof value !== 'string') throw wrong(line, 'has an xattr of no bytes')
      const bytes = Buffer.from(value ?? '', 'base64')
      return [Buffer.from(name).toString('latin1'), Uint8Array.from(bytes)]
    }),
  )
}
