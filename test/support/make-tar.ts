/** A header and its body, written field by field so that tests can make any tar, hostile ones too. */
export type TarPart = {
  readonly name: string
  readonly typeflag?: string
  readonly content?: string | Uint8Array
  readonly linkName?: string
  readonly mode?: number
  readonly uid?: number
  readonly gid?: number
  readonly mtime?: number
  readonly devMajor?: number
  readonly devMinor?: number
  readonly prefix?: string
  /** 'ustar' unless given; 'gnu' writes GNU's magic, 'v7' none. */
  readonly format?: 'ustar' | 'gnu' | 'v7'
  /** Raw bytes for a field, by its offset in the header; written last, before the checksum. */
  readonly raw?: ReadonlyMap<number, Uint8Array>
  /** The size field, if it is not to be the length of `content`. */
  readonly size?: number
  /** The checksum, if it is not to be right. */
  readonly checksum?: number
}

/** A tar of these parts with two zero blocks at its end. Strings are latin1. */
export function makeTar(...parts: readonly TarPart[]): Buffer {
  return Buffer.concat([...parts.map(tarPart), Buffer.alloc(1024)])
}

/** One header with its body, padded to 512 bytes. */
export function tarPart(part: TarPart): Buffer {
  const content = Buffer.from(
    typeof part.content === 'string' ? Buffer.from(part.content, 'latin1') : (part.content ?? []),
  )
  const header = Buffer.alloc(512)
  header.write(part.name, 0, 100, 'latin1')
  octal(header, 100, 8, part.mode ?? 0o644)
  octal(header, 108, 8, part.uid ?? 0)
  octal(header, 116, 8, part.gid ?? 0)
  octal(header, 124, 12, part.size ?? content.length)
  octal(header, 136, 12, part.mtime ?? 0)
  header.write(part.typeflag ?? '0', 156, 'latin1')
  header.write(part.linkName ?? '', 157, 100, 'latin1')
  const format = part.format ?? 'ustar'
  if (format === 'ustar') header.write('ustar\x0000', 257, 'latin1')
  if (format === 'gnu') header.write('ustar  \0', 257, 'latin1')
  if (format !== 'v7') {
    octal(header, 329, 8, part.devMajor ?? 0)
    octal(header, 337, 8, part.devMinor ?? 0)
    header.write(part.prefix ?? '', 345, 155, 'latin1')
  }
  for (const [offset, bytes] of part.raw ?? []) header.set(bytes, offset)
  header.fill(' ', 148, 156)
  const sum = header.reduce((total, byte) => total + byte, 0)
  header.write(`${(part.checksum ?? sum).toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return Buffer.concat([header, content, Buffer.alloc(-content.length & 511)])
}

/** A PAX extended header for the part after it; `typeflag` 'g' makes it global. */
export function paxPart(
  records: readonly (readonly [key: string, value: string])[],
  typeflag: 'x' | 'g' = 'x',
): TarPart {
  return { name: 'PaxHeaders/0', typeflag, content: records.map(paxRecord).join('') }
}

/** A number in base-256, as GNU tar writes it where octal does not fit. */
export function base256(value: bigint, bytes: number): Buffer {
  const field = Buffer.alloc(bytes)
  let rest = value
  for (let index = bytes - 1; index >= 0; index--) {
    field[index] = Number(rest & 0xffn)
    rest >>= 8n
  }
  field[0] = (field[0] ?? 0) | 0x80
  return field
}

function paxRecord([key, value]: readonly [key: string, value: string]): string {
  const rest = ` ${key}=${value}\n`
  let length = rest.length + 1
  while (String(length).length + rest.length !== length) length++
  return `${length}${rest}`
}

function octal(header: Buffer, start: number, bytes: number, value: number): void {
  header.write(`${value.toString(8).padStart(bytes - 1, '0')}\0`, start, 'latin1')
}
