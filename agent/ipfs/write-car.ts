import { CarWriter } from '@ipld/car/writer'
import type { CID } from 'multiformats/cid'
import type { DagBlock } from './walk-dag.ts'

/** A CAR of version 1 with one root: the same blocks in the same order are the same bytes. Throws what `blocks` throws. */
export async function* writeCar(
  root: CID,
  blocks: AsyncIterable<DagBlock>,
): AsyncGenerator<Uint8Array, void, void> {
  const { writer, out } = CarWriter.create([root])
  const write = async (): Promise<void> => {
    try {
      for await (const block of blocks) await writer.put(block)
    } finally {
      await writer.close()
    }
  }
  const written = write()
  written.catch(() => undefined) // Told below, once what came before it is out.
  yield* out
  await written
}
