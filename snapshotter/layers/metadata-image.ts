import { LayerError } from '../errors.ts'
import type { TableThread } from './table-thread.ts'
import type { DeviceRange, ImageRequest, MadeImage } from './table-work.ts'

/**
 * The EROFS image of layers' names and modes; content that has to be copied into it is read first. Rejects with LayerError if
 * the layers cannot be mounted, and as `read` rejects.
 */
export async function metadataImage(
  request: Omit<ImageRequest, 'kind' | 'contents'>,
  parts: {
    readonly tables: TableThread
    readonly read: (range: DeviceRange) => Promise<Uint8Array>
  },
): Promise<MadeImage> {
  const { tables, read } = parts
  let answer = await tables.image({ kind: 'image', ...request, contents: [] })
  if (answer.kind === 'needs') {
    const contents: Uint8Array[] = []
    for (const range of answer.ranges) contents.push(await read(range))
    answer = await tables.image({ kind: 'image', ...request, contents })
  }
  if (answer.kind === 'needs') {
    throw new LayerError('INTERNAL', 'an image asked for content that it had been given')
  }
  return answer
}
