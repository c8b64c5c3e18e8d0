import { LayerError } from '../../errors.ts'
import { buildHuffmanTable, INVALID_CODE, SECOND_TABLE, SPECIAL_ENTRY } from './huffman-table.ts'

/** A place where decoding can be taken up again: the first bit of a block, with what the block may refer back to. */
export type BlockStart = {
  /** Bits of the blob before the block's header. */
  readonly bitOffset: number
  /** Bytes of output before the block, those of earlier streams included; all of them have been yielded. */
  readonly outputOffset: number
  /** The last 32 KiB of output before the block, or all of it if less. Valid during the call only. */
  readonly window: Uint8Array
}

/** The farthest that a match reaches back, in bytes (RFC 1951, section 2). */
export const WINDOW_BYTES: number = 32 * 1024

/** What one turn of the fast loop can write: a literal, a match of 258 bytes, and 3 more as it copies 4 at a time. */
const TURN_OUTPUT_BYTES = 262

/** Bytes of output yielded at most at once. 128 KiB + the window stay in a second-level cache of 256 KiB. */
const OUTPUT_BYTES = 128 * 1024

/** Bytes of input taken at a time: the buffer that decoding runs on, so that no chunk is ever too small or too big. */
const INPUT_BYTES = 64 * 1024

/** Readable bytes after the input, so that a 32-bit load at its last byte stays inside the buffer. */
const INPUT_SLACK = 8

/** Input one turn of the fast loop can use up: four loads of at most four bytes. */
const TURN_INPUT_BYTES = 16

// Bits looked up at once. 11 and 9 hold nearly every code that encoders write; longer ones take a second lookup.
const LITERAL_BITS = 11
const DISTANCE_BITS = 9
const LITERAL_MASK = (1 << LITERAL_BITS) - 1
const DISTANCE_MASK = (1 << DISTANCE_BITS) - 1

// A code that needs second tables is complete, so each of them serves two symbols or more, and it has at most
// 2^(15 - first bits) entries: 2^11 + 286/2 * 2^4 and 2^9 + 30/2 * 2^6.
const LITERAL_ENTRIES = 4336
const DISTANCE_ENTRIES = 1472

// Entries of the literal table, besides those that huffman-table.ts marks: bits 0-4 are the bits to consume.
// A literal is negative and has its byte in bits 8-15. A length has the bits of its code alone, without the extra ones, in
// bits 8-11 and its base in 16-24; so has a distance.
const LITERAL = 1 << 31
const END_OF_BLOCK = SPECIAL_ENTRY | 0x4000

/** Order in which the lengths of the code length code are written (RFC 1951, section 3.2.7). */
const CODE_LENGTH_ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15]
const CODE_LENGTH_BITS = 7

const CODE_LENGTH_SYMBOLS = Int32Array.from({ length: 19 }, (_, symbol) => symbol << 16)
const LITERAL_SYMBOLS = literalSymbols()
const DISTANCE_SYMBOLS = distanceSymbols()

type Phase = 'block start' | 'block header' | 'stored' | 'symbols' | 'done'

/**
 * A streaming decoder of raw deflate (RFC 1951) that tells where blocks start, to the bit, which zlib in Node does not.
 * It accepts what zlib accepts. Memory is constant: about 260 KiB, whatever is pushed.
 */
export class Inflater {
  readonly #onBlockStart: (start: BlockStart) => void

  // Input: `#input[0]` is byte `#inputStart` of the blob, `#inputEnd` bytes are there, the next bit is `#bit`.
  readonly #input = new Uint8Array(INPUT_BYTES + INPUT_SLACK)
  readonly #inputView = new DataView(this.#input.buffer)
  #inputStart = 0
  #inputEnd = 0
  #bit = 0

  // Output: bytes before `#yielded` have been yielded, those up to `#end` not yet; what can be referred to begins at `#history`.
  readonly #output = new Uint8Array(WINDOW_BYTES + OUTPUT_BYTES + TURN_OUTPUT_BYTES)
  readonly #outputView = new DataView(this.#output.buffer)
  #history = 0
  #yielded = 0
  #end = 0
  #outputOffset = 0

  #phase: Phase = 'block start'
  #isFinalBlock = false
  #storedBytes = 0

  readonly #lengths = new Uint8Array(320)
  readonly #codeLengths = new Int32Array(1 << CODE_LENGTH_BITS)
  readonly #dynamicLiterals = new Int32Array(LITERAL_ENTRIES)
  readonly #dynamicDistances = new Int32Array(DISTANCE_ENTRIES)
  #fixed: { literals: Int32Array; distances: Int32Array } | undefined
  #literals: Int32Array = this.#dynamicLiterals
  #distances: Int32Array = this.#dynamicDistances

  constructor({ onBlockStart }: { onBlockStart: (start: BlockStart) => void }) {
    this.#onBlockStart = onBlockStart
  }

  /** Whether the final block has been read to its end. */
  get isDone(): boolean {
    return this.#phase === 'done'
  }

  /** Bytes of output so far, of all streams, the view yielded last included. */
  get outputOffset(): number {
    return this.#outputOffset
  }

  /**
   * Starts the next stream, whose first byte is byte `blobOffset` of the blob, also after a failure. The first stream starts
   * at byte 0 without a call.
   */
  restart(blobOffset: number): void {
    this.#inputStart = blobOffset
    this.#inputEnd = this.#bit = 0
    this.#history = this.#yielded = this.#end
    this.#phase = 'block start'
  }

  /**
   * Decodes the next `chunk` of the stream and yields its output; each view is valid until the next step.
   * It must be run to its end, which returns how many bytes of the chunk belong to the stream: all, until it is done.
   * Throws LayerError DATA_LOSS, with the bit, where the input is not deflate.
   */
  *push(chunk: Uint8Array): Generator<Uint8Array, number> {
    let taken = 0
    while (this.#phase !== 'done' && taken < chunk.length) {
      taken += this.#take(chunk.subarray(taken))
      yield* this.#decode()
    }
    if (this.#phase !== 'done') return taken
    const unused = this.#inputEnd - ((this.#bit + 7) >>> 3)
    this.#inputEnd -= unused
    return taken - unused
  }

  /** Moves what is left of the input to the front, and as much of `chunk` behind it as fits; returns how much that is. */
  #take(chunk: Uint8Array): number {
    const used = this.#bit >>> 3
    this.#input.copyWithin(0, used, this.#inputEnd)
    this.#inputStart += used
    this.#inputEnd -= used
    this.#bit &= 7
    const count = Math.min(chunk.length, INPUT_BYTES - this.#inputEnd)
    this.#input.set(count === chunk.length ? chunk : chunk.subarray(0, count), this.#inputEnd)
    this.#inputEnd += count
    return count
  }

  /** Decodes until the input runs out. What cannot be read whole (a header, a symbol) is left for the next time. */
  *#decode(): Generator<Uint8Array, void> {
    for (;;) {
      if (this.#output.length - this.#end < TURN_OUTPUT_BYTES) {
        yield* this.#flush()
        this.#slide()
      }
      switch (this.#phase) {
        case 'block start':
          yield* this.#flush()
          this.#onBlockStart({
            bitOffset: this.#bitOffset(this.#bit),
            outputOffset: this.#outputOffset,
            window: this.#output.subarray(
              Math.max(this.#history, this.#end - WINDOW_BYTES),
              this.#end,
            ),
          })
          this.#phase = 'block header'
          break
        case 'block header':
          if (!this.#readBlockHeader()) return
          break
        case 'stored':
          if (!this.#copyStored()) return
          break
        case 'symbols':
          this.#readSymbolsFast()
          if (!this.#readSymbols()) return
          break
        case 'done':
          yield* this.#flush()
          return
      }
    }
  }

  *#flush(): Generator<Uint8Array, void> {
    const bytes = this.#output.subarray(this.#yielded, this.#end)
    this.#outputOffset += bytes.length
    this.#yielded = this.#end
    if (bytes.length > 0) yield bytes
  }

  #slide(): void {
    const moved = this.#end - WINDOW_BYTES
    this.#output.copyWithin(0, moved, this.#end)
    this.#history = Math.max(0, this.#history - moved)
    this.#yielded = this.#end = WINDOW_BYTES
  }

  /** The next `count` bits, at most 16, least significant first, or -1 if the input does not have them yet. */
  #bits(count: number): number {
    if (this.#bit + count > this.#inputEnd * 8) return -1
    const bits = this.#inputView.getInt32(this.#bit >>> 3, true) >>> (this.#bit & 7)
    this.#bit += count
    return bits & ((1 << count) - 1)
  }

  /** Reads a block's header (RFC 1951, section 3.2.3). False, and nothing read, if it is not all there yet. */
  #readBlockHeader(): boolean {
    const start = this.#bit
    const header = this.#bits(3)
    if (header >= 0 && this.#readBlockType(header >>> 1)) {
      this.#isFinalBlock = (header & 1) === 1
      return true
    }
    this.#bit = start
    return false
  }

  #readBlockType(type: number): boolean {
    switch (type) {
      case 0:
        return this.#readStoredHeader()
      case 1:
        this.#fixed ??= fixedTables()
        this.#literals = this.#fixed.literals
        this.#distances = this.#fixed.distances
        this.#phase = 'symbols'
        return true
      case 2:
        return this.#readDynamicHeader()
      default:
        throw this.#malformed('a block has the reserved type 3')
    }
  }

  #readStoredHeader(): boolean {
    this.#bit = (this.#bit + 7) & ~7
    const length = this.#bits(16)
    const complement = this.#bits(16)
    if (complement < 0) return false
    if ((length ^ complement) !== 0xffff) {
      throw this.#malformed(`a stored block's length ${length} differs from its complement`)
    }
    this.#storedBytes = length
    this.#phase = 'stored'
    return true
  }

  /** Reads the codes of a dynamic block (RFC 1951, section 3.2.7). */
  #readDynamicHeader(): boolean {
    const counts = this.#bits(14)
    if (counts < 0) return false
    const literals = (counts & 31) + 257
    const distances = ((counts >>> 5) & 31) + 1
    // RFC 1951 defines 286 and 30; zlib refuses more, although the fields can say 288 and 32.
    if (literals > 286 || distances > 30) {
      throw this.#malformed(`a block declares ${literals} literal and ${distances} distance codes`)
    }
    const lengths = this.#lengths.fill(0)
    for (const symbol of CODE_LENGTH_ORDER.slice(0, (counts >>> 10) + 4)) {
      const length = this.#bits(3)
      if (length < 0) return false
      lengths[symbol] = length
    }
    this.#build('code length', this.#codeLengths, CODE_LENGTH_BITS, CODE_LENGTH_SYMBOLS, 0, 19)
    if (!this.#readCodeLengths(literals + distances)) return false
    if (lengths[256] === 0) throw this.#malformed('a block has no code for its own end')
    this.#build('literal', this.#dynamicLiterals, LITERAL_BITS, LITERAL_SYMBOLS, 0, literals)
    this.#build(
      'distance',
      this.#dynamicDistances,
      DISTANCE_BITS,
      DISTANCE_SYMBOLS,
      literals,
      literals + distances,
    )
    this.#literals = this.#dynamicLiterals
    this.#distances = this.#dynamicDistances
    this.#phase = 'symbols'
    return true
  }

  /** Reads `count` code lengths into `#lengths`: those of the literals, then those of the distances. */
  #readCodeLengths(count: number): boolean {
    const lengths = this.#lengths
    let at = 0
    while (at < count) {
      const entry = this.#codeLengths[this.#peek() & ((1 << CODE_LENGTH_BITS) - 1)]!
      if (!this.#skip(entry & 31)) return false
      const symbol = entry >>> 16
      if (symbol < 16) {
        lengths[at++] = symbol
        continue
      }
      if (symbol === 16 && at === 0) throw this.#malformed('the first code length repeats none')
      const extra = this.#bits(symbol === 16 ? 2 : symbol === 17 ? 3 : 7)
      if (extra < 0) return false
      const repeat = extra + (symbol === 18 ? 11 : 3)
      if (at + repeat > count) throw this.#malformed('code lengths run past their count')
      lengths.fill(symbol === 16 ? lengths[at - 1]! : 0, at, at + repeat)
      at += repeat
    }
    return true
  }

  #build(
    what: string,
    table: Int32Array,
    tableBits: number,
    symbols: Int32Array,
    from: number,
    to: number,
  ): void {
    const lengths = this.#lengths.subarray(from, to)
    const problem = buildHuffmanTable({
      table,
      tableBits,
      lengths,
      symbols,
      mayBeIncomplete: what !== 'code length',
    })
    if (problem !== undefined) throw this.#malformed(`the ${what} code of a block is ${problem}`)
  }

  /** 25 bits or more from the next one on; what lies past the input is not meaningful. */
  #peek(): number {
    return this.#inputView.getInt32(this.#bit >>> 3, true) >>> (this.#bit & 7)
  }

  #skip(count: number): boolean {
    this.#bit += count
    return this.#bit <= this.#inputEnd * 8
  }

  /** Copies what is there of a stored block. False if more input is needed. */
  #copyStored(): boolean {
    const at = this.#bit >>> 3
    const room = this.#output.length - TURN_OUTPUT_BYTES - this.#end + 1
    const count = Math.min(this.#storedBytes, this.#inputEnd - at, room)
    this.#output.set(this.#input.subarray(at, at + count), this.#end)
    this.#end += count
    this.#bit += count * 8
    this.#storedBytes -= count
    if (this.#storedBytes === 0) this.#endBlock()
    return this.#storedBytes === 0 || this.#bit < this.#inputEnd * 8
  }

  #endBlock(): void {
    this.#phase = this.#isFinalBlock ? 'done' : 'block start'
  }

  /**
   * Decodes symbols while a whole turn's worth of input and of room is left. It holds 24 to 31 bits after each load:
   * enough for a length with its extra bits (20), or for two codes of the first table (22).
   */
  #readSymbolsFast(): void {
    const view = this.#inputView
    const output = this.#output
    const outputView = this.#outputView
    const literals = this.#literals
    const distances = this.#distances
    const history = this.#history
    const inputLimit = this.#inputEnd - TURN_INPUT_BYTES
    const outputLimit = output.length - TURN_OUTPUT_BYTES
    let at = this.#bit >>> 3
    let end = this.#end
    if (at >= inputLimit) return
    let held = 8 - (this.#bit & 7)
    let hold = view.getUint8(at) >>> (this.#bit & 7)
    at++

    while (at < inputLimit && end <= outputLimit) {
      hold |= view.getInt32(at, true) << held
      at += (31 - held) >>> 3
      held |= 24
      let entry = literals[hold & LITERAL_MASK]!
      if (entry < 0) {
        hold >>>= entry
        held -= entry & 31
        output[end++] = entry >>> 8
        entry = literals[hold & LITERAL_MASK]!
        if (entry < 0) {
          hold >>>= entry
          held -= entry & 31
          output[end++] = entry >>> 8
          continue
        }
        hold |= view.getInt32(at, true) << held
        at += (31 - held) >>> 3
        held |= 24
      }
      if ((entry & SPECIAL_ENTRY) !== 0) {
        if ((entry & SECOND_TABLE) !== 0) {
          entry = literals[(entry >>> 16) + ((hold >>> LITERAL_BITS) & ((1 << (entry & 15)) - 1))]!
          if (entry < 0) {
            hold >>>= entry
            held -= entry & 31
            output[end++] = entry >>> 8
            continue
          }
        }
        if ((entry & SPECIAL_ENTRY) !== 0) break // The end of the block or a fault: the careful loop reads it again.
      }
      const lengthBits = entry & 31
      const length = (entry >>> 16) + ((hold & ((1 << lengthBits) - 1)) >>> ((entry >>> 8) & 15))
      const holdAtLength = hold
      const heldAtLength = held
      const atAtLength = at
      hold >>>= lengthBits
      held -= lengthBits

      hold |= view.getInt32(at, true) << held
      at += (31 - held) >>> 3
      held |= 24
      entry = distances[hold & DISTANCE_MASK]!
      if ((entry & SECOND_TABLE) !== 0) {
        entry = distances[(entry >>> 16) + ((hold >>> DISTANCE_BITS) & ((1 << (entry & 15)) - 1))]!
      }
      const distanceBits = entry & 31
      let distance = entry >>> 16
      if (distanceBits <= 24) {
        distance += (hold & ((1 << distanceBits) - 1)) >>> ((entry >>> 8) & 15)
        hold >>>= distanceBits
        held -= distanceBits
      } else {
        const codeBits = (entry >>> 8) & 15
        hold >>>= codeBits
        held -= codeBits
        hold |= view.getInt32(at, true) << held
        at += (31 - held) >>> 3
        held |= 24
        const extraBits = distanceBits - codeBits
        distance += hold & ((1 << extraBits) - 1)
        hold >>>= extraBits
        held -= extraBits
      }
      let from = end - distance
      if ((entry & SPECIAL_ENTRY) !== 0 || from < history) {
        hold = holdAtLength
        held = heldAtLength
        at = atAtLength
        break
      }
      const matchEnd = end + length
      if (distance >= 4) {
        do {
          outputView.setInt32(end, outputView.getInt32(from, true), true)
          end += 4
          from += 4
        } while (end < matchEnd)
      } else if (distance === 1) {
        const run = output[from]! * 0x01010101
        do {
          outputView.setInt32(end, run, true)
          end += 4
        } while (end < matchEnd)
      } else {
        while (end < matchEnd) output[end++] = output[from++]!
      }
      end = matchEnd
    }
    this.#bit = at * 8 - held
    this.#end = end
  }

  /** Decodes symbols one by one, to the end of the block, of the input (then false), or of the room for output. */
  #readSymbols(): boolean {
    while (this.#output.length - this.#end >= TURN_OUTPUT_BYTES) {
      const start = this.#bit
      if (!this.#readSymbol()) {
        this.#bit = start
        return false
      }
      if (this.#phase !== 'symbols') return true
      if (this.#bit >>> 3 < this.#inputEnd - TURN_INPUT_BYTES - 1) return true
    }
    return true
  }

  #readSymbol(): boolean {
    const entry = this.#lookUp(this.#literals, LITERAL_BITS)
    if (entry < 0) {
      if (!this.#skip(entry & 31)) return false
      this.#output[this.#end++] = entry >>> 8
      return true
    }
    if ((entry & SPECIAL_ENTRY) !== 0) {
      if (!this.#skip(entry & 31)) return false
      if ((entry & INVALID_CODE) !== 0) throw this.#malformed('a literal or length has no meaning')
      this.#endBlock()
      return true
    }
    const length = this.#readExtra(entry)
    if (length < 0) return false
    const distanceEntry = this.#lookUp(this.#distances, DISTANCE_BITS)
    if ((distanceEntry & INVALID_CODE) !== 0) {
      if (!this.#skip(distanceEntry & 31)) return false
      throw this.#malformed('a distance has no meaning')
    }
    const distance = this.#readExtra(distanceEntry)
    if (distance < 0) return false
    const from = this.#end - distance
    if (from < this.#history) {
      throw this.#malformed(
        `a match reaches back ${distance} bytes, with ${this.#end - this.#history} written`,
      )
    }
    for (let i = 0; i < length; i++) this.#output[this.#end + i] = this.#output[from + i]!
    this.#end += length
    return true
  }

  #lookUp(table: Int32Array, tableBits: number): number {
    const bits = this.#peek()
    const entry = table[bits & ((1 << tableBits) - 1)]!
    if (entry < 0 || (entry & SECOND_TABLE) === 0) return entry
    return table[(entry >>> 16) + ((bits >>> tableBits) & ((1 << (entry & 15)) - 1))]!
  }

  /** The length or distance that `entry` and the extra bits after its code make, or -1 if they are not all there yet. */
  #readExtra(entry: number): number {
    const codeBits = (entry >>> 8) & 15
    if (!this.#skip(codeBits)) return -1
    const extra = this.#bits((entry & 31) - codeBits)
    return extra < 0 ? -1 : (entry >>> 16) + extra
  }

  #bitOffset(bit: number): number {
    return this.#inputStart * 8 + bit
  }

  #malformed(what: string): LayerError {
    const bitOffset = this.#bitOffset(this.#bit)
    return new LayerError(
      'DATA_LOSS',
      `deflate stream is malformed before bit ${bitOffset} of the blob: ${what}`,
      { bitOffset },
    )
  }
}

/** Table entries of literals and lengths (RFC 1951, section 3.2.5): 258 has its own code, 286 and 287 mean nothing. */
function literalSymbols(): Int32Array {
  const symbols = new Int32Array(288).fill(SPECIAL_ENTRY | INVALID_CODE)
  for (let byte = 0; byte < 256; byte++) symbols[byte] = LITERAL | (byte << 8)
  symbols[256] = END_OF_BLOCK
  let base = 3
  for (let code = 0; code < 28; code++) {
    const extraBits = code < 4 ? 0 : (code >>> 2) - 1
    symbols[257 + code] = (base << 16) | extraBits
    base += 1 << extraBits
  }
  symbols[285] = 258 << 16
  return symbols
}

/** Table entries of distances (RFC 1951, section 3.2.5): 30 and 31 mean nothing. */
function distanceSymbols(): Int32Array {
  const symbols = new Int32Array(32).fill(SPECIAL_ENTRY | INVALID_CODE)
  let base = 1
  for (let code = 0; code < 30; code++) {
    const extraBits = code < 2 ? 0 : (code >>> 1) - 1
    symbols[code] = (base << 16) | extraBits
    base += 1 << extraBits
  }
  return symbols
}

/** The codes of fixed blocks (RFC 1951, section 3.2.6). */
function fixedTables(): { literals: Int32Array; distances: Int32Array } {
  const lengths = new Uint8Array(288)
    .fill(8, 0, 144)
    .fill(9, 144, 256)
    .fill(7, 256, 280)
    .fill(8, 280)
  const literals = new Int32Array(1 << LITERAL_BITS)
  const distances = new Int32Array(1 << DISTANCE_BITS)
  buildHuffmanTable({
    table: literals,
    tableBits: LITERAL_BITS,
    lengths,
    symbols: LITERAL_SYMBOLS,
    mayBeIncomplete: false,
  })
  buildHuffmanTable({
    table: distances,
    tableBits: DISTANCE_BITS,
    lengths: new Uint8Array(32).fill(5),
    symbols: DISTANCE_SYMBOLS,
    mayBeIncomplete: false,
  })
  return { literals, distances }
}
