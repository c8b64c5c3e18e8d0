import { lstatSync, readdirSync, readlinkSync } from 'node:fs'
import { join } from 'node:path'
import type { LayerEntry } from './layer-entry.ts'

type TreeOptions = {
  /** Where the tree goes; by default the root. */
  readonly under?: string
  /** Whether a file or link, by its path in the tree, is taken. */
  readonly isWanted?: (path: string) => boolean
}

/**
 * The files and links of a tree, without its empty folders. Of their modes only counts whether they are executable: the rest
 * is the umask of whoever made the tree. Throws if it holds anything else, as a device.
 */
export function treeEntries(
  tree: string,
  { under = '', isWanted = () => true }: TreeOptions = {},
): LayerEntry[] {
  const entries: LayerEntry[] = []
  const walk = (folder: string): void => {
    for (const name of readdirSync(join(tree, folder))) {
      const within = join(folder, name)
      const from = join(tree, within)
      const path = join(under, within)
      const stat = lstatSync(from)
      if (stat.isDirectory()) walk(within)
      else if (!isWanted(within)) continue
      else if (stat.isSymbolicLink())
        entries.push({ kind: 'link', path, target: readlinkSync(from) })
      else if (stat.isFile()) {
        entries.push({ kind: 'file', path, from, mode: (stat.mode & 0o100) === 0 ? 0o644 : 0o755 })
      } else throw new Error(`${from} is neither a file nor a link`)
    }
  }
  walk('')
  return entries
}
