import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { KeyError } from '../../snapshotter/encryption/key-file.ts'

/** Opens a file that is read once; one that is none, such as a pipe, is refused and not waited for. Rejects as the file system too. */
export async function openShortFile(path: string): Promise<FileHandle> {
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  try {
    if ((await file.stat()).isFile()) return file
    throw new KeyError('INVALID_ARGUMENT', `${path} is not a file`)
  } catch (error) {
    await file.close()
    throw error
  }
}

/** All bytes of an opened file. Rejects with KeyError RESOURCE_EXHAUSTED if there are more than `bytesMax`. */
export async function readShortFile(
  file: FileHandle,
  path: string,
  bytesMax: number,
): Promise<Buffer> {
  const buffer = Buffer.alloc(bytesMax + 1)
  let size = 0
  while (size < buffer.length) {
    const { bytesRead } = await file.read(buffer, size, buffer.length - size)
    if (bytesRead === 0) break
    size += bytesRead
  }
  if (size <= bytesMax) return buffer.subarray(0, size)
  throw new KeyError('RESOURCE_EXHAUSTED', `${path} has more than ${bytesMax} bytes`)
}
