import { execFileSync } from 'node:child_process'
import { linkSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { diskUsage } from '../../../snapshotter/snapshots/disk-usage.ts'
import { seeded } from '../../support/seeded.ts'

const never = new AbortController().signal
let dir = ''
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'usage-'))
})
afterEach(() => {
  rmSync(dir, { recursive: true })
})

/** What du(1) says, in bytes on disk and inodes. */
function du(path: string): { size: bigint; inodes: bigint } {
  const sum = (...flags: string[]): bigint =>
    BigInt(execFileSync('du', ['-s', ...flags, path], { encoding: 'utf8' }).split('\t')[0] ?? '')
  return { size: sum('--block-size=1'), inodes: sum('--inodes') }
}

test('a tree of files, holes, links and hard links measures as du does', async () => {
  const random = seeded(3)
  const dirs = [dir]
  const files: string[] = []
  for (let entry = 0; entry < 400; entry++) {
    const path = join(dirs[random(dirs.length)] ?? dir, `entry-${entry}`)
    const known = files[random(files.length)]
    const kind = random(5)
    if (kind === 0) {
      mkdirSync(path)
      dirs.push(path)
    } else if (kind === 1) symlinkSync('/nowhere', path)
    else if (kind === 2 && known !== undefined) linkSync(known, path)
    else {
      writeFileSync(path, Buffer.alloc(random(20_000), 1))
      files.push(path)
    }
  }
  const sparse = join(dir, 'sparse')
  writeFileSync(sparse, '')
  execFileSync('truncate', ['-s', '1G', sparse])
  expect(await diskUsage(dir, never)).toEqual(du(dir))
})

test('a directory that is gone has no size', async () => {
  expect(await diskUsage(join(dir, 'gone'), never)).toEqual({ size: 0n, inodes: 0n })
})

test('it stops when it is told to', async () => {
  writeFileSync(join(dir, 'file'), '')
  const reason = new Error('enough')
  await expect(diskUsage(dir, AbortSignal.abort(reason))).rejects.toBe(reason)
})
