/** Longest code of deflate, in bits (RFC 1951, section 3.2.7). */
const CODE_BITS_MAX = 15

/** Marks an entry that is neither literal nor length nor distance; one of the marks below says what it is instead. */
export const SPECIAL_ENTRY: number = 0x8000
/** The code is longer than the first table is wide: bits 0-3 are the width of its second table, 16-31 where that begins. */
export const SECOND_TABLE: number = 0x2000
/** No symbol has this code, or the symbol has no meaning. */
export const INVALID_CODE: number = 0x1000

export type HuffmanCode = {
  /** Bits of each symbol's code, 0 for a symbol without one (RFC 1951, section 3.2.2). */
  readonly lengths: Uint8Array
  /** What a look-up says of each symbol, besides the bits of its code. */
  readonly symbols: Int32Array
  /** Filled with the result. Second tables follow the first one. */
  readonly table: Int32Array
  /** The first table is indexed by this many bits of input. */
  readonly tableBits: number
  /** Whether no symbol at all, or a single one with a code of one bit, is allowed, as zlib does. */
  readonly mayBeIncomplete: boolean
}

/**
 * Fills a table that finds a symbol by the bits of the input, first bit lowest. An entry is the symbol's, with the bits
 * of its code added in bits 8-11, and in bits 0-4, where the symbol may already count extra bits; a negative one (a
 * literal) gets them in bits 0-4 only. Returns what is wrong with the lengths, in words, or undefined.
 */
export function buildHuffmanTable({
  lengths,
  symbols,
  table,
  tableBits,
  mayBeIncomplete,
}: HuffmanCode): string | undefined {
  const counts = new Uint16Array(CODE_BITS_MAX + 1)
  for (const length of lengths) counts[length]!++
  counts[0] = 0
  let longest = CODE_BITS_MAX
  while (longest > 0 && counts[longest] === 0) longest--

  let unused = 1
  for (let length = 1; length <= longest; length++) {
    unused = unused * 2 - counts[length]!
    if (unused < 0) return 'over-subscribed'
  }
  if (unused > 0) {
    if (!mayBeIncomplete || longest > 1) return 'incomplete'
    table.fill(SPECIAL_ENTRY | INVALID_CODE | 0x101, 0, 1 << tableBits)
  }

  const firstMask = (1 << tableBits) - 1
  let tablesEnd = 1 << tableBits
  let prefix = -1
  let second = 0
  let secondBits = 0
  let code = 0 // Written back to front, as it comes from the input.
  for (const symbol of inCodeOrder(lengths, counts)) {
    const length = lengths[symbol]!
    const entry = symbols[symbol]! + (symbols[symbol]! < 0 ? length : length * 0x101)
    if (length <= tableBits) {
      for (let at = code; at <= firstMask; at += 1 << length) table[at] = entry
    } else {
      if ((code & firstMask) !== prefix) {
        prefix = code & firstMask
        second = tablesEnd
        secondBits = secondTableBits(counts, { length, tableBits, longest })
        tablesEnd += 1 << secondBits
        table[prefix] = SPECIAL_ENTRY | SECOND_TABLE | secondBits | (second << 16)
      }
      const step = 1 << (length - tableBits)
      for (let at = code >>> tableBits; at < 1 << secondBits; at += step) table[second + at] = entry
    }
    counts[length]!--
    code = nextCode(code, length)
  }
  return undefined
}

/** The symbols that have a code, in the order of their codes: shorter ones first, then by number. */
function inCodeOrder(lengths: Uint8Array, counts: Uint16Array): Uint16Array {
  const starts = new Uint16Array(CODE_BITS_MAX + 2)
  for (let length = 1; length <= CODE_BITS_MAX; length++) {
    starts[length + 1] = starts[length]! + counts[length]!
  }
  const order = new Uint16Array(starts[CODE_BITS_MAX + 1]!)
  for (let symbol = 0; symbol < lengths.length; symbol++) {
    const length = lengths[symbol]!
    if (length > 0) order[starts[length]!++] = symbol
  }
  return order
}

/** Width of the second table that begins with a code of `length`, given how many codes of each length are still to come. */
function secondTableBits(
  counts: Uint16Array,
  { length, tableBits, longest }: { length: number; tableBits: number; longest: number },
): number {
  let bits = length - tableBits
  let unused = 1 << bits
  while (bits + tableBits < longest) {
    unused -= counts[bits + tableBits]!
    if (unused <= 0) break
    bits++
    unused <<= 1
  }
  return bits
}

/** The code after `code`, both of `length` bits and written back to front; it may grow at its back later on. */
function nextCode(code: number, length: number): number {
  let bit = 1 << (length - 1)
  while ((code & bit) !== 0) bit >>>= 1
  return bit === 0 ? 0 : (code & (bit - 1)) | bit
}
