import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { MNT_DETACH, umount } from '../../../snapshotter/kernel/libc.ts'
import { mountFileSystem } from '../../../snapshotter/kernel/mount-file-system.ts'
import { isMounted, listMounts, parseMountinfo } from '../../../snapshotter/kernel/mountinfo.ts'
import { Scratch } from '../erofs/mounted-image.ts'

test('targets, sources and options are read with their escapes and any number of optional fields', () => {
  const text = [
    '36 35 98:0 /mnt1 /with\\040space/tab\\011/back\\134slash rw,noatime master:1 - ext3 /dev/root rw,errors=continue',
    '37 35 0:44 / /two rw shared:5 master:1 propagate_from:2 - fuse.layers a\\040source rw',
    '38 35 0:45 / /none ro - erofs /images/layer ro',
    '',
  ].join('\n')
  expect(parseMountinfo(text)).toEqual([
    {
      target: '/with space/tab\t/back\\slash',
      type: 'ext3',
      source: '/dev/root',
      device: '98:0',
      options: 'rw,errors=continue',
    },
    { target: '/two', type: 'fuse.layers', source: 'a source', device: '0:44', options: 'rw' },
    { target: '/none', type: 'erofs', source: '/images/layer', device: '0:45', options: 'ro' },
  ])
})

test('only mounts at a directory and below it are listed, in the order they were made', async () => {
  using scratch = new Scratch()
  const [inside, beside] = [join(scratch.path, 'in side'), join(scratch.path, 'in side too')]
  for (const directory of [inside, beside]) {
    mkdirSync(directory)
    await mountTmpfs(scratch.mounted(directory))
  }
  mkdirSync(join(inside, 'below'))
  await mountTmpfs(scratch.mounted(join(inside, 'below')))
  expect(listMounts(inside).map(({ target }) => target)).toEqual([inside, join(inside, 'below')])
  expect(isMounted(inside)).toBe(true)
  umount(join(inside, 'below'), MNT_DETACH)
  expect(isMounted(join(inside, 'below'))).toBe(false)
})

async function mountTmpfs(target: string): Promise<void> {
  await mountFileSystem({ type: 'tmpfs', target, options: [['source', 'none']], readOnly: false })
}
