import { expect, test } from 'vitest'
import { readOnlyMount, writableMount } from '../../../snapshotter/snapshots/mounts.ts'

const own = { upperDir: '/r/snapshots/9/fs', workDir: '/r/snapshots/9/work' }

/** Directories of so many layers, on a node that has seen many. */
function layers(count: number, directory: string): string[] {
  return Array.from({ length: count }, (_, layer) => `${directory}/${100_000 - layer}/fs`)
}

test('an active snapshot without a parent is a writable bind mount: overlayfs needs something below', () => {
  expect(writableMount(own, [])).toEqual({
    type: 'bind',
    source: '/r/snapshots/9/fs',
    options: ['rw', 'rbind'],
  })
})

test('an active snapshot of parents is an overlay, the topmost parent first', () => {
  expect(writableMount(own, ['/r/m/2', '/r/snapshots/1/fs'])).toEqual({
    type: 'overlay',
    source: 'overlay',
    options: [
      'workdir=/r/snapshots/9/work',
      'upperdir=/r/snapshots/9/fs',
      'lowerdir=/r/m/2:/r/snapshots/1/fs',
      'index=off',
    ],
  })
})

test('a view of one directory is a read-only bind mount, of several an overlay without an upper one', () => {
  expect(readOnlyMount(['/r/m/1'])).toEqual({
    type: 'bind',
    source: '/r/m/1',
    options: ['ro', 'rbind'],
  })
  expect(readOnlyMount(['/r/m/2', '/r/m/1'])).toEqual({
    type: 'overlay',
    source: 'overlay',
    options: ['lowerdir=/r/m/2:/r/m/1', 'index=off'],
  })
})

test('128 layers fit below a root of ordinary length, as containerd shortens them', () => {
  const { options } = writableMount(own, layers(128, '/var/lib/ipdr-agent/snapshots'))
  expect(options.join(',').length).toBeGreaterThan(4_096)
})

test('more layers than the kernel takes are refused with the numbers', () => {
  expect(() => writableMount(own, layers(501, '/r'))).toThrow(/501 layers/)
  expect(() => writableMount(own, layers(490, '/r/snapshots'))).toThrow(
    expect.objectContaining({ code: 'FAILED_PRECONDITION' }),
  )
})
