import type { TreeNode } from '../toc/layer-tree.ts'
import { BLOCK_BYTES } from './format.ts'

const DIRENT_BYTES = 12

/** EROFS_FT_* of fs/erofs/erofs_fs.h, which are FT_* of linux/fs_types.h. */
const fileTypes: Readonly<Record<TreeNode['kind'], number>> = {
  reg: 1,
  dir: 2,
  char: 3,
  whiteout: 3,
  block: 4,
  fifo: 5,
  symlink: 7,
}

/** A name in a directory and the inode it leads to. */
export type Dirent = { readonly nid: number; readonly kind: TreeNode['kind'] }

/** The names of a directory as EROFS searches them: by bytes, with `.` and `..` among them. */
export function directoryNames(children: ReadonlyMap<string, TreeNode>): string[] {
  return ['.', '..', ...children.keys()].toSorted()
}

/** Bytes of a directory with these names: whole blocks, then what the last one uses. */
export function directorySize(names: readonly string[]): number {
  let size = 0
  for (const { end, used } of directoryBlocks(names)) {
    size += end === names.length ? used : BLOCK_BYTES
  }
  return size
}

/** Writes a directory at `offset`: block by block the entries, then their names. Unused bytes must already be zero. */
export function writeDirectory(
  image: Buffer,
  offset: number,
  names: readonly string[],
  direntOf: (name: string) => Dirent,
): void {
  let block = offset
  for (const { start, end } of directoryBlocks(names)) {
    let nameOffset = (end - start) * DIRENT_BYTES
    for (let index = start; index < end; index++) {
      const name = names[index] ?? ''
      const { nid, kind } = direntOf(name)
      const entry = block + (index - start) * DIRENT_BYTES
      image.writeUInt32LE(nid, entry) // Of 64 bits: images stay far below 2^32 inode units.
      image.writeUInt16LE(nameOffset, entry + 8)
      image.writeUInt8(fileTypes[kind], entry + 10)
      image.write(name, block + nameOffset, 'latin1')
      nameOffset += name.length
    }
    block += BLOCK_BYTES
  }
}

/** Which names share a block, [start, end), and how many of its bytes they use. */
function* directoryBlocks(
  names: readonly string[],
): Generator<{ start: number; end: number; used: number }> {
  let start = 0
  let used = 0
  for (let index = 0; index < names.length; index++) {
    const needed = DIRENT_BYTES + (names[index] ?? '').length
    if (used + needed > BLOCK_BYTES) {
      yield { start, end: index, used }
      start = index
      used = 0
    }
    used += needed
  }
  yield { start, end: names.length, used }
}
