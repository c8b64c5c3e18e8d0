import { crc32, deflateRawSync } from 'node:zlib'

export type MemberFields = {
  readonly extra?: Uint8Array
  readonly name?: string
  readonly comment?: string
  readonly hasHeaderChecksum?: boolean
  readonly level?: number
  /** The content, deflated by the test itself. */
  readonly deflated?: Uint8Array
}

/** A gzip member with any fields (RFC 1952, section 2.3), which Node's zlib cannot write. */
export function gzipMember(content: Uint8Array, fields: MemberFields = {}): Buffer {
  const { extra, name, comment, hasHeaderChecksum = false, level = 6 } = fields
  const { deflated = deflateRawSync(content, { level }) } = fields
  const flags =
    (hasHeaderChecksum ? 2 : 0) |
    (extra === undefined ? 0 : 4) |
    (name === undefined ? 0 : 8) |
    (comment === undefined ? 0 : 16)
  const parts: Uint8Array[] = [Buffer.from([0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 255])]
  if (extra !== undefined) parts.push(uint16(extra.length), Buffer.from(extra))
  if (name !== undefined) parts.push(Buffer.from(`${name}\0`))
  if (comment !== undefined) parts.push(Buffer.from(`${comment}\0`))
  if (hasHeaderChecksum) parts.push(uint16(crc32(Buffer.concat(parts)) & 0xffff))
  const trailer = Buffer.alloc(8)
  trailer.writeUInt32LE(crc32(content), 0)
  trailer.writeUInt32LE(content.length, 4)
  return Buffer.concat([...parts, deflated, trailer])
}

function uint16(value: number): Buffer {
  return Buffer.from([value & 0xff, value >> 8])
}
