import { CarReader } from '@ipld/car/reader'
import { CarWriter } from '@ipld/car/writer'
import type { VerifiedBlock } from '../block-source.ts'
import { CodedError, LayerError } from '../errors.ts'
import { verifyBlock } from '../oci/verify-block.ts'

/*
 * The small blocks that lead to what a start reads, manifest, config, roots and inner nodes of layers, as one CAR (ipld.io, "CARv1
 * Specification"): a hundred requests less, each of which would take a round trip.
 */

/** Of one image, in bytes, with what a CAR puts around them. 256 KiB: one leaf as Kubo cuts them, so that it comes by one request. */
export const START_NODES_BYTES_MAX: number = 256 * 1024

/** Around the blocks of a CAR, in bytes: its header, and per block a length and a CID of 36 bytes. */
const HEADER_BYTES = 128
const SECTION_BYTES = 48

export type StartNode = VerifiedBlock

/** How many of `nodes`, from the first on, one CAR holds. */
export function fittingNodes(nodes: readonly StartNode[]): number {
  let left = START_NODES_BYTES_MAX - HEADER_BYTES
  const over = nodes.findIndex(({ bytes }) => (left -= bytes.length + SECTION_BYTES) < 0)
  return over < 0 ? nodes.length : over
}

/** The blocks as a CAR, whose root is the first. */
export async function encodeStartNodes(nodes: readonly StartNode[]): Promise<Uint8Array> {
  const { writer, out } = CarWriter.create(nodes.slice(0, 1).map(({ cid }) => cid))
  const pieces: Uint8Array[] = []
  const collected = (async () => {
    for await (const piece of out) pieces.push(piece)
  })()
  for (const node of nodes) await writer.put(node)
  await writer.close()
  await collected
  return Buffer.concat(pieces)
}

/**
 * The way back; every block is checked against its CID. Rejects with LayerError: RESOURCE_EXHAUSTED if it is too long,
 * INVALID_ARGUMENT if it is no CAR; and as `verifyBlock`.
 */
export async function decodeStartNodes(bytes: Uint8Array): Promise<StartNode[]> {
  if (bytes.length > START_NODES_BYTES_MAX) {
    const message = `nodes of a start: they have ${bytes.length} bytes, the limit is ${START_NODES_BYTES_MAX}`
    throw new LayerError('RESOURCE_EXHAUSTED', message)
  }
  try {
    const nodes: StartNode[] = []
    for await (const node of (await CarReader.fromBytes(bytes)).blocks()) {
      verifyBlock(node.cid, node.bytes)
      nodes.push(node)
    }
    return nodes
  } catch (error) {
    if (error instanceof CodedError) throw error
    const reason = error instanceof Error ? error.message : String(error)
    throw new LayerError('INVALID_ARGUMENT', `nodes of a start: they are no CAR: ${reason}`)
  }
}
