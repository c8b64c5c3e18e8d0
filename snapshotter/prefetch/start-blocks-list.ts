import { CID } from 'multiformats/cid'
import { LayerError } from '../errors.ts'

/*
 * The blocks of a start, as text: one CID a line, in the order in which they are wanted. Behind it, after a space, the CID of a
 * layer's blob, if the block is needed only to open that layer.
 */

/** The most blocks of a list. 8,192 of 128 KiB are 1 GiB, what a replay fetches at most. */
export const START_BLOCKS_MAX = 8192

/** A list as stored, in bytes. 1 MiB: as many lines of two CIDs. */
export const START_BLOCKS_BYTES_MAX: number = 1024 ** 2

/** A block that a start wants. */
export type StartBlock = {
  readonly cid: CID
  /** The blob of the layer that cannot be opened without it; where that is open already, nobody wants the block. */
  readonly opens?: CID
}

/** The list as bytes; of one that is too long, the first blocks. */
export function encodeStartBlocks(blocks: readonly StartBlock[]): Uint8Array {
  const lines = blocks.slice(0, START_BLOCKS_MAX).map((block) => `${words(block).join(' ')}\n`)
  return Buffer.from(lines.join(''))
}

function words({ cid, opens }: StartBlock): string[] {
  return opens === undefined ? [cid.toString()] : [cid.toString(), opens.toString()]
}

/** The way back. Throws LayerError: RESOURCE_EXHAUSTED over a limit, INVALID_ARGUMENT, naming the line, for what is no CID. */
export function decodeStartBlocks(bytes: Uint8Array): StartBlock[] {
  if (bytes.length > START_BLOCKS_BYTES_MAX) {
    throw tooLong(`${bytes.length} bytes, the limit is ${START_BLOCKS_BYTES_MAX}`)
  }
  const lines = Buffer.from(bytes).toString('latin1').split('\n')
  if (lines.at(-1) === '') lines.pop()
  if (lines.length > START_BLOCKS_MAX) {
    throw tooLong(`${lines.length} blocks, the limit is ${START_BLOCKS_MAX}`)
  }
  return lines.map((line, index) => {
    const [block = '', opens, ...more] = line.split(' ')
    if (more.length > 0) throw noCid(line, index)
    const cid = parseCid(block, index)
    return opens === undefined ? { cid } : { cid, opens: parseCid(opens, index) }
  })
}

function parseCid(text: string, index: number): CID {
  try {
    return CID.parse(text)
  } catch {
    throw noCid(text, index)
  }
}

function noCid(text: string, index: number): LayerError {
  const shown = JSON.stringify(text.slice(0, 80))
  const message = `list of start blocks: line ${index + 1} holds ${shown}, which is no CID`
  return new LayerError('INVALID_ARGUMENT', message, { line: index + 1 })
}

function tooLong(what: string): LayerError {
  return new LayerError('RESOURCE_EXHAUSTED', `list of start blocks: it has ${what}`)
}
