import { lstat, opendir } from 'node:fs/promises'
import { join } from 'node:path'
import { orUndefinedIfGone } from '../or-undefined-if-gone.ts'
import type { Usage } from './metastore.ts'

/** Files looked at together. 32: keeps the four threads of libuv busy, and no more than that waits behind them. */
const BATCH = 32

/**
 * The bytes that `directory` and all below it take on disk, and its inodes; a file with several names counts once.
 * What is deleted meanwhile does not count. Rejects with the signal's reason.
 */
export async function diskUsage(directory: string, signal: AbortSignal): Promise<Usage> {
  let [size, inodes] = [0n, 0n]
  const seen = new Set<string>()
  const directories = [directory]

  const count = async (path: string): Promise<void> => {
    const stat = await orUndefinedIfGone(lstat(path, { bigint: true }))
    if (stat === undefined) return
    if (stat.nlink > 1n && !stat.isDirectory()) {
      const inode = `${stat.dev}:${stat.ino}`
      if (seen.has(inode)) return
      seen.add(inode)
    }
    size += stat.blocks * 512n // st_blocks is in 512-byte units, whatever the file system's are: stat(2).
    inodes += 1n
    if (stat.isDirectory() && path !== directory) directories.push(path)
  }

  await count(directory)
  for (let at = directories.pop(); at !== undefined; at = directories.pop()) {
    const entries = await orUndefinedIfGone(opendir(at, { bufferSize: BATCH }))
    if (entries === undefined) continue
    let batch: string[] = []
    for await (const entry of entries) {
      signal.throwIfAborted()
      batch.push(join(at, entry.name))
      if (batch.length < BATCH) continue
      await Promise.all(batch.map(count))
      batch = []
    }
    await Promise.all(batch.map(count))
  }
  return { size, inodes }
}
