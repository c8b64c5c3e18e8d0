/** One name in a layer. `path` has no slash at either end; who owns it is root. */
export type LayerEntry =
  | { readonly kind: 'folder'; readonly path: string; readonly mode: number }
  | { readonly kind: 'link'; readonly path: string; readonly target: string }
  | {
      readonly kind: 'file'
      readonly path: string
      readonly mode: number
      /** A file of this machine, or the bytes themselves. */
      readonly from: string | Uint8Array
    }

const FOLDER_MODE = 0o755

/** The entries in the order of their paths, with every folder above them that is not among them. Throws if two have one path. */
export function completeEntries(entries: readonly LayerEntry[]): LayerEntry[] {
  const byPath = new Map<string, LayerEntry>()
  for (const entry of entries) {
    if (byPath.has(entry.path)) throw new Error(`two entries are called ${entry.path}`)
    byPath.set(entry.path, entry)
  }
  for (const { path } of entries) {
    const parts = path.split('/')
    for (let depth = 1; depth < parts.length; depth++) {
      const folder = parts.slice(0, depth).join('/')
      if (byPath.has(folder)) continue
      byPath.set(folder, { kind: 'folder', path: folder, mode: FOLDER_MODE })
    }
  }
  // By code units: the same on every machine, whatever its language, and folders before what is in them.
  return [...byPath.values()].toSorted((a, b) => (a.path < b.path ? -1 : 1))
}
