import { open, rename } from 'node:fs/promises'
import { dirname } from 'node:path'
import { syncDirectory } from '../blobs/layer-file.ts'

/** Writes a file so that after a crash or a power cut it is there whole or not at all. */
export async function writeDurably(path: string, bytes: Uint8Array): Promise<void> {
  const temporary = `${path}.new`
  {
    await using file = await open(temporary, 'w', 0o600)
    await file.writeFile(bytes)
    await file.sync()
  }
  await rename(temporary, path)
  await syncDirectory(dirname(path))
}
