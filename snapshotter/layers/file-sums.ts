import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { z } from 'zod'
import { writeDurably } from './durable-file.ts'

const sha256 = z.string().regex(/^[0-9a-f]{64}$/)
const sumsRecord: z.ZodType<FileSums> = z.strictObject({
  toc: sha256,
  metadata: sha256,
  map: sha256.optional(),
})

/** SHA-256 of the files of a layer that are made here, so that no CID vouches for them, as hex. */
export type FileSums = {
  readonly toc: string
  readonly metadata: string
  /** Undefined of a layer that was built before it was kept. */
  readonly map?: string | undefined
}

/** Bytes hashed in one go. 1 MiB: under 2 ms of the event loop. */
const PIECE_BYTES = 1024 ** 2

export function sumOf(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

/** Undefined if it cannot be read. Read in pieces: images of large layers have tens of megabytes. */
export async function sumOfFile(path: string): Promise<string | undefined> {
  const hash = createHash('sha256')
  try {
    for await (const bytes of createReadStream(path, { highWaterMark: PIECE_BYTES })) {
      hash.update(bytes)
    }
    return hash.digest('hex')
  } catch {
    return undefined
  }
}

/** Writes the sums that files are checked by from now on. */
export async function writeSums(path: string, sums: FileSums): Promise<void> {
  await writeDurably(path, Buffer.from(JSON.stringify(sums)))
}

/** Undefined of a layer that was built before there were sums. A damaged file reads as sums that nothing has. */
export async function readSums(path: string): Promise<FileSums | undefined> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    return DAMAGED
  }
  try {
    return sumsRecord.parse(JSON.parse(text))
  } catch {
    return DAMAGED
  }
}

const DAMAGED: FileSums = { toc: '', metadata: '' }
