import { createHash } from 'node:crypto'
import { gzipSync } from 'node:zlib'
import { type TarMember, TarStreamWalk } from '../../snapshotter/toc/walk-tar.ts'
import { makeTar } from './make-tar.ts'

/** An eStargz layer: its blob, its tar (which has the table of contents too), and the annotation of its descriptor. */
export type EstargzLayer = {
  readonly blob: Buffer
  readonly tar: Buffer
  readonly annotations: Readonly<Record<string, string>>
}

/** One line of a table of contents. */
export type EstargzLine = Record<string, unknown>

export type EstargzOptions = {
  readonly chunkBytes?: number
  /** Changes the table before it is written. */
  readonly change?: (lines: EstargzLine[]) => void
  /** Changes the bytes of the JSON. */
  readonly changeJson?: (json: Buffer) => Buffer
}

/**
 * The tar as stargz-snapshotter's estargz.Writer stores it in its lossless mode: a gzip member starts with each chunk of a
 * content, and has what follows up to the next. The tar may be any that is not sparse.
 */
export function writeEstargz(tar: Buffer, options: EstargzOptions = {}): EstargzLayer {
  const { chunkBytes = 4 * 1024 * 1024, change, changeJson } = options
  const members: TarMember[] = []
  const walk = new TarStreamWalk((member) => members.push(member))
  walk.push(tar)
  walk.end()
  const blob: Buffer[] = []
  const lines: EstargzLine[] = []
  let [blobBytes, cut] = [0, 0]
  const flush = (end: number): void => {
    if (end === cut) return
    const member = gzipSync(tar.subarray(cut, end))
    blob.push(member)
    blobBytes += member.length
    cut = end
  }
  for (const member of members) {
    const line = lineOf(member)
    lines.push(line)
    const { start, end } = member.content
    if (end > start) line['digest'] = digestOf(tar.subarray(start, end))
    for (let at = start; at < end; at += chunkBytes) {
      flush(at)
      const chunk = tar.subarray(at, Math.min(at + chunkBytes, end))
      const target: EstargzLine = at === start ? line : { name: line['name'], type: 'chunk' }
      if (at > start) lines.push(target)
      Object.assign(target, {
        offset: blobBytes,
        ...(at > start ? { chunkOffset: at - start } : {}),
        ...(at + chunkBytes <= end ? { chunkSize: chunk.length } : {}),
        chunkDigest: digestOf(chunk),
      })
    }
  }
  // The zeros that end the archive come behind the table of contents.
  const end = tar.length - 1024
  flush(end)
  change?.(lines)
  const written = Buffer.from(JSON.stringify({ version: 1, entries: lines }, undefined, '\t'))
  const json = changeJson?.(written) ?? written
  const table = makeTar({ name: 'stargz.index.json', content: json, mode: 0 })
  const tocOffset = blobBytes
  blob.push(gzipSync(table), footer(tocOffset))
  return {
    blob: Buffer.concat(blob),
    tar: Buffer.concat([tar.subarray(0, end), table]),
    annotations: { 'containerd.io/snapshot/stargz/toc.digest': digestOf(json) },
  }
}

function lineOf({ entry, written }: TarMember): EstargzLine {
  const { kind, xattrs, devMajor, devMinor } = entry
  const mtimeSec = entry.mtimeSec + (entry.mtimeNsec >= 500_000_000 ? 1 : 0)
  return {
    name: utf8(written.name),
    type: kind,
    ...(entry.size > 0 ? { size: entry.size } : {}),
    ...(mtimeSec === 0
      ? {}
      : { modtime: `${new Date(mtimeSec * 1000).toISOString().slice(0, 19)}Z` }),
    ...(kind === 'symlink' || kind === 'hardlink' ? { linkName: utf8(written.linkName) } : {}),
    mode: entry.mode,
    uid: entry.uid,
    gid: entry.gid,
    ...(devMajor === undefined ? {} : { devMajor, devMinor }),
    ...(xattrs && {
      xattrs: Object.fromEntries(
        [...xattrs].map(([name, value]) => [utf8(name), Buffer.from(value).toString('base64')]),
      ),
    }),
  }
}

/** 51 bytes: an empty gzip member whose extra field says where the table of contents is. */
function footer(tocOffset: number): Buffer {
  const extra = `${tocOffset.toString(16).padStart(16, '0')}STARGZ`
  return Buffer.concat([
    Buffer.from([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0]),
    Buffer.from(`SG\x16\x00${extra}`, 'latin1'),
    Buffer.from([1, 0, 0, 0xff, 0xff]),
    Buffer.alloc(8),
  ])
}

function digestOf(bytes: Uint8Array): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`
}

function utf8(latin1: string): string {
  return Buffer.from(latin1, 'latin1').toString()
}
