import type { BlockRequest } from '../block-source.ts'

/** Fills units of one layer: fetches, verifies and decodes. The blob store calls it on a miss, never twice at once for a unit. */
export interface UnitSource {
  /**
   * The bytes of unit `unit` of the layer file, exactly as long as the unit. They may lie in `into`, memory of that length which
   * is not touched any more once the promise has settled. Rejects with BlockError or LayerError.
   */
  fetchUnit(unit: number, request: BlockRequest, into?: Uint8Array): Promise<Uint8Array>

  /** Where units come from that are not copied from another layer of this node; the source itself if undefined. */
  readonly origin?: Pick<UnitSource, 'fetchUnit'>
}
