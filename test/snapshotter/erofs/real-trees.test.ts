import { execFileSync } from 'node:child_process'
import { readFileSync, statSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { buildTree } from '../../../snapshotter/toc/build-tree.ts'
import type { LayerToc } from '../../../snapshotter/toc/layer-toc.ts'
import { walkTar } from '../../../snapshotter/toc/walk-tar.ts'
import { readTree, treeDifferences } from '../../support/read-tree.ts'
import { mountTree, Scratch } from './mounted-image.ts'

// What GNU tar unpacks on ext4 is the truth; the mount of the same tar must look the same, file by file.
test.each(['/etc', '/usr/share/perl5', '/usr/sbin'])(
  'the mount of a tar of %s equals what tar unpacks from it',
  async (source) => {
    using scratch = new Scratch()
    const tarPath = join(scratch.path, 'layer.tar')
    const tarFlags = ['--xattrs', '--numeric-owner', '--sort=name']
    execFileSync('tar', [...tarFlags, '--create', '--file', tarPath, '-C', source, '.'])
    const unpacked = scratch.folder()
    execFileSync('tar', [
      ...tarFlags,
      '--extract',
      '--same-owner',
      '--file',
      tarPath,
      '-C',
      unpacked,
    ])

    const layer = { path: tarPath, bytes: statSync(tarPath).size }
    const { target } = await mountTree(scratch, buildTree(await tocOf(tarPath)), [layer])
    expect(treeDifferences(readTree(target), readTree(unpacked))).toEqual([])
  },
  60_000,
)

test('a tar of every odd entry mounts as tar unpacks it', async () => {
  using scratch = new Scratch()
  const source = scratch.folder()
  execFileSync('sh', ['-e', '-c', oddEntries], { cwd: source })
  const tarPath = join(scratch.path, 'layer.tar')
  const tarFlags = [
    '--warning=no-timestamp',
    '--xattrs',
    '--xattrs-include=*',
    '--numeric-owner',
    '--format=pax',
  ]
  execFileSync('tar', [...tarFlags, '--create', '--file', tarPath, '-C', source, '.'])
  const unpacked = scratch.folder()
  execFileSync('tar', [
    ...tarFlags,
    '--extract',
    '--same-owner',
    '--same-permissions',
    '--file',
    tarPath,
    '-C',
    unpacked,
  ])
  const layer = { path: tarPath, bytes: statSync(tarPath).size }
  const { target } = await mountTree(scratch, buildTree(await tocOf(tarPath)), [layer])
  const seen = readTree(target)
  expect(treeDifferences(seen, readTree(unpacked))).toEqual([])
  expect(seen.get('capable')?.xattrs).toHaveProperty(['security.capability'])
  expect(seen.get('hard-3')?.linkedWith).toEqual(['hard-1', 'hard-2', 'hard-3'])
  expect(readFileSync(join(target, 'script'), 'utf8')).toBe('#!/bin/sh\necho ran\n')
  expect(execFileSync(join(target, 'script'), { encoding: 'utf8' })).toBe('ran\n')
})

const oddEntries = `
echo one > hard-1; ln hard-1 hard-2; ln hard-1 hard-3
mkdir -m 2755 setgid-dir; mkdir -m 1777 sticky-dir; mkdir -m 0 closed-dir
echo x > setuid; chmod 4755 setuid; chown 123456:4000000000 setuid; chmod 4755 setuid
mkfifo pipe; mknod null c 1 3; mknod disk b 259 70000
ln -s hard-1 link; ln -s /absolute/$(head -c 3000 /dev/zero | tr '\\0' l) long-link; ln -s dangling dangling
: > empty; touch -d '1970-01-01 00:00:00.000000001 UTC' empty
touch -d '2245-06-07 08:09:10.123456789 UTC' later
cp /bin/true capable; setcap cap_net_raw+ep capable 2>/dev/null ||
  setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 capable
echo acl > with-xattrs; setfattr -n user.one -v value with-xattrs; setfattr -n user.two -v 0x00ff with-xattrs; setfattr -n user.none with-xattrs
printf 'latin1' > "$(printf 'caf\\351')"; echo nl > "$(printf 'new\\nline')"
touch "$(head -c 255 /dev/zero | tr '\\0' n)"
deep=$(for i in $(seq 100); do printf 'directory-%s/' $i; done); mkdir -p "$deep"; echo deep > "$deep/file"
printf '#!/bin/sh\\necho ran\\n' > script; chmod 755 script
`

async function tocOf(tarPath: string): Promise<LayerToc> {
  const tar = await open(tarPath)
  try {
    const read = async (start: number, length: number) => {
      const { buffer, bytesRead } = await tar.read(Buffer.alloc(length), 0, length, start)
      return buffer.subarray(0, bytesRead)
    }
    const { size } = await tar.stat()
    return await walkTar(read, size, AbortSignal.timeout(30_000))
  } finally {
    await tar.close()
  }
}
