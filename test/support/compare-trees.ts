import { join } from 'node:path'
import { runCommand } from './run-command.ts'

/** A file, folder or link as lstat(2), its extended attributes and its bytes describe it. */
export type TreeEntry = Readonly<Record<string, unknown>>

export type TreeOptions = {
  /** Whether to read and compare what is in the files; by default yes. */
  readonly contents?: boolean
  /** Paths, like `usr/bin` or `` for the root, whose time of change is not compared. */
  readonly anyTimeOf?: readonly string[]
}

/** Any tree of an image, even one with every name of 255 bytes, stays far below it on a machine that runs tests. */
const LIST_DEADLINE_MS = 300_000

/**
 * How `actual` differs from `expected`, one line for each difference, none if the two mounted trees are the same: in
 * their names, and for each in type, mode, owner, size, device, target, time of change in ns, extended attributes, which
 * names are hard links of one file, and bytes. A path's bytes are shown as latin-1.
 */
export async function compareTrees(
  actual: string,
  expected: string,
  options: TreeOptions = {},
): Promise<string[]> {
  const [found, wanted] = await Promise.all([
    listTree(actual, options),
    listTree(expected, options),
  ])
  const missing = [...wanted.keys()].filter((path) => !found.has(path))
  const extra = [...found.keys()].filter((path) => !wanted.has(path))
  return [
    ...missing.map((path) => `/${path}: is missing`),
    ...extra.map((path) => `/${path}: should not be there`),
    ...[...found].flatMap(([path, entry]) => differences(path, entry, wanted.get(path))),
  ]
}

/** Everything below `root`, by path; the root itself is the empty path. */
export async function listTree(
  root: string,
  options: TreeOptions = {},
): Promise<Map<string, TreeEntry>> {
  const { contents = true, anyTimeOf = [] } = options
  const script = join(import.meta.dirname, 'list-tree.py')
  const text = await runCommand(
    '/usr/bin/python3',
    [script, root, contents ? 'contents' : 'no contents'],
    { signal: AbortSignal.timeout(LIST_DEADLINE_MS) },
  )
  const tree = new Map<string, TreeEntry>()
  const firstNames = new Map<string, string>()
  for (const line of text.split('\n').slice(0, -1)) {
    const { path, inode, mtimeNs, ...entry } = JSON.parse(line) as {
      path: string
      inode: string | null
      mtimeNs: string
    }
    const linked = inode !== null && !('type' in entry && entry.type === 'folder')
    // Numbers of inodes differ between file systems; which names share one must not.
    if (linked && !firstNames.has(inode)) firstNames.set(inode, path)
    tree.set(path, {
      ...entry,
      ...(linked ? { sameFileAs: firstNames.get(inode) } : {}),
      ...(anyTimeOf.includes(path) ? {} : { mtimeNs }),
    })
  }
  return tree
}

function differences(path: string, found: TreeEntry, wanted: TreeEntry | undefined): string[] {
  if (wanted === undefined) return []
  const keys = new Set([...Object.keys(found), ...Object.keys(wanted)])
  return [...keys].flatMap((key) => {
    const [is, shouldBe] = [JSON.stringify(found[key]), JSON.stringify(wanted[key])]
    return is === shouldBe ? [] : [`/${path}: ${key} is ${is}, should be ${shouldBe}`]
  })
}
