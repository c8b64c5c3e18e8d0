import { bytesReader, readHeader } from '@ipld/car/decoder'
import { varint } from 'multiformats'
import { CID } from 'multiformats/cid'
import { CodedError, type ErrorCode } from '../../snapshotter/errors.ts'
import { verifyBlock } from '../../snapshotter/oci/verify-block.ts'
import { BLOCK_BYTES_MAX } from './block-provider.ts'
import { DAG_BLOCKS_MAX, type DagBlock } from './walk-dag.ts'

/** Header of a CAR, in bytes. With one root it has about 60; 4 KiB hold a hundred, which are then counted in the refusal. */
export const CAR_HEADER_BYTES_MAX = 4096
/** CID of a section, in bytes: four varints of at most 9 and a digest of 64 are 100. */
const CID_BYTES_MAX = 128
/** Bytes of a varint. 4: 2^28 is more than any section may have. */
const VARINT_BYTES_MAX = 4

/** A CAR that is read from its beginning: the header first, then block after block. */
export type OpenedCar = {
  /** The only root. */
  readonly root: CID
  /** Every block, verified against its CID. */
  readonly blocks: AsyncGenerator<DagBlock, void, void>
}

/**
 * Reads a CAR of version 1 (ipld.io, "CARv1 Specification") with one root; never holds more than one section and one chunk of
 * `source`. Throws CodedError, here or from `blocks`: INVALID_ARGUMENT where it is cut off or malformed, OUT_OF_RANGE past a limit,
 * and as `verifyBlock`. Each says at which byte.
 */
export async function readCar(source: AsyncIterable<Uint8Array>): Promise<OpenedCar> {
  const sections = readSections(source)
  const first = await sections.next()
  if (first.done === true) throw refused('INVALID_ARGUMENT', 'it is empty', 0)
  return { root: await rootOf(first.value), blocks: readBlocks(sections) }
}

type Section = { readonly start: number; readonly bytes: Uint8Array }

async function* readBlocks(
  sections: AsyncGenerator<Section, void, void>,
): AsyncGenerator<DagBlock, void, void> {
  let blocks = 0
  for await (const { start, bytes } of sections) {
    if (++blocks > DAG_BLOCKS_MAX) {
      throw refused('OUT_OF_RANGE', `it has more than ${DAG_BLOCKS_MAX} blocks`, start)
    }
    const [cid, block] = splitSection(bytes, start)
    if (block.length > BLOCK_BYTES_MAX) {
      const sentence = `block ${cid.toString()} has ${block.length} bytes, a block may have ${BLOCK_BYTES_MAX}`
      throw refused('OUT_OF_RANGE', sentence, start)
    }
    verifyBlock(cid, block)
    yield { cid, bytes: block }
  }
}

function splitSection(bytes: Uint8Array, start: number): [cid: CID, block: Uint8Array] {
  try {
    return CID.decodeFirst(bytes)
  } catch (cause) {
    throw refused('INVALID_ARGUMENT', 'a block has no CID that can be read', start, cause)
  }
}

async function rootOf({ bytes }: Section): Promise<CID> {
  let header: Awaited<ReturnType<typeof readHeader>>
  try {
    const length = varint.encodeTo(
      bytes.length,
      new Uint8Array(varint.encodingLength(bytes.length)),
    )
    header = await readHeader(bytesReader(Buffer.concat([length, bytes])), 1)
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause)
    throw refused('INVALID_ARGUMENT', `its header is not that of version 1: ${reason}`, 0, cause)
  }
  const [root, ...others] = header.roots
  if (root === undefined) {
    throw refused('INVALID_ARGUMENT', 'it names no root, so which image it holds is not known', 0)
  }
  if (others.length > 0) {
    const sentence = `it has ${header.roots.length} roots; write one CAR for each image`
    throw refused('INVALID_ARGUMENT', sentence, 0)
  }
  return root
}

/** The parts of a CAR: each is a varint that says how long it is, and so many bytes. */
async function* readSections(
  source: AsyncIterable<Uint8Array>,
): AsyncGenerator<Section, void, void> {
  const input = new Input(source)
  for (let count = 0; await input.hasMore(); count++) {
    const start = input.position
    const length = await readLength(input)
    const lengthMax = count === 0 ? CAR_HEADER_BYTES_MAX : CID_BYTES_MAX + BLOCK_BYTES_MAX
    const what = count === 0 ? 'its header' : 'a block with its CID'
    if (length === 0) throw refused('INVALID_ARGUMENT', `${what} has no bytes`, start)
    if (length > lengthMax) {
      throw refused('OUT_OF_RANGE', `${what} has ${length} bytes, ${lengthMax} are allowed`, start)
    }
    yield { start, bytes: await input.take(length) }
  }
}

/** Unsigned LEB128 (multiformats, "unsigned-varint"). */
async function readLength(input: Input): Promise<number> {
  const start = input.position
  let value = 0
  for (let index = 0; index < VARINT_BYTES_MAX; index++) {
    const [byte = 0] = await input.take(1)
    value += (byte & 0x7f) * 2 ** (7 * index)
    if (byte < 0x80) return value
  }
  throw refused('OUT_OF_RANGE', 'a length is larger than any part may be', start)
}

/** The chunks of a stream, taken by the byte. */
class Input {
  /** Bytes taken so far. */
  position = 0
  readonly #chunks: AsyncIterator<Uint8Array>
  #chunk: Uint8Array = new Uint8Array()

  constructor(source: AsyncIterable<Uint8Array>) {
    this.#chunks = source[Symbol.asyncIterator]()
  }

  async hasMore(): Promise<boolean> {
    while (this.#chunk.length === 0) {
      const next = await this.#chunks.next()
      if (next.done === true) return false
      this.#chunk = next.value
    }
    return true
  }

  async take(length: number): Promise<Uint8Array> {
    const taken = new Uint8Array(length)
    for (let filled = 0; filled < length; ) {
      if (!(await this.hasMore())) {
        const sentence = `it is cut off: ${length} bytes were to come, ${filled} did`
        throw refused('INVALID_ARGUMENT', sentence, this.position)
      }
      const part = this.#chunk.subarray(0, length - filled)
      taken.set(part, filled)
      filled += part.length
      this.position += part.length
      this.#chunk = this.#chunk.subarray(part.length)
    }
    return taken
  }
}

function refused(code: ErrorCode, sentence: string, byte: number, cause?: unknown): CodedError {
  return new CodedError(code, `CAR, at byte ${byte}: ${sentence}`, { byte }, cause)
}
