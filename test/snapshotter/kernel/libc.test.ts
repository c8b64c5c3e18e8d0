import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  fstatSync,
  openSync,
  readFileSync,
  readSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { expect, test } from 'vitest'
import {
  MNT_DETACH,
  MOUNT_OPTIONS_MAX,
  MS_NODEV,
  MS_RDONLY,
  mount,
  pidfdGetfd,
  pidfdOpen,
  punchHole,
  sendDatagram,
  umount,
} from '../../../snapshotter/kernel/libc.ts'
import { mountFileSystem } from '../../../snapshotter/kernel/mount-file-system.ts'
import { isMounted } from '../../../snapshotter/kernel/mountinfo.ts'
import { failureOf } from '../../support/failure-of.ts'
import { Scratch } from '../erofs/mounted-image.ts'

test('mount(2) takes flags and options, umount2(2) takes the mount away', () => {
  using scratch = new Scratch()
  const target = scratch.mounted(scratch.folder())
  mount({ source: 'none', target, type: 'tmpfs', flags: MS_NODEV, options: 'size=1m,mode=0711' })
  expect(statSync(target).mode & 0o777).toBe(0o711)
  umount(target, MNT_DETACH)
  expect(isMounted(target)).toBe(false)
})

test('options that do not fit the page of mount(2) are refused before the kernel cuts them off', async () => {
  const options = 'o'.repeat(MOUNT_OPTIONS_MAX)
  expect(
    await failureOf(() =>
      mount({ source: 'none', target: '/none', type: 'tmpfs', flags: 0, options }),
    ),
  ).toMatchObject({ name: 'KernelError', code: 'INVALID_ARGUMENT' })
})

test('a failed call says what was tried, where, and the name of the error', async () => {
  expect(
    await failureOf(() =>
      mount({ source: 'none', target: '/no/such', type: 'tmpfs', flags: MS_RDONLY }),
    ),
  ).toEqual({
    name: 'KernelError',
    code: 'NOT_FOUND',
    message: 'mount of tmpfs at /no/such failed with ENOENT',
  })
  expect(await failureOf(() => pidfdOpen(2 ** 22 + 1))).toMatchObject({ code: 'NOT_FOUND' })
})

test("a mount through fsconfig(2) fails in the kernel's own words and leaves nothing", async () => {
  using scratch = new Scratch()
  const target = scratch.folder()
  const failure = await failureOf(() =>
    mountFileSystem({
      type: 'overlay',
      target,
      options: [['no_such_option', 'x']],
      readOnly: true,
    }),
  )
  expect(failure.message).toContain(`mount of overlay at ${target}: fsconfig of no_such_option=x`)
  expect(failure.message).toContain("(kernel: overlay: Unknown parameter 'no_such_option')")
  expect(isMounted(target)).toBe(false)
  expect(
    await failureOf(() =>
      mountFileSystem({ type: 'nosuchfs', target, options: [], readOnly: true }),
    ),
  ).toMatchObject({ code: 'UNIMPLEMENTED', message: 'fsopen of nosuchfs failed with ENODEV' })
})

test('a punched hole reads as zeros, frees its blocks, and the file keeps its size', () => {
  using scratch = new Scratch()
  const path = join(scratch.path, 'file')
  writeFileSync(path, Buffer.alloc(1024 * 1024, 1), { flush: true })
  const opened = openSync(path, 'r+')
  try {
    const before = fstatSync(opened).blocks
    punchHole(opened, { start: 65_536, end: 524_288 })
    expect(before - fstatSync(opened).blocks).toBe((524_288 - 65_536) / 512)
  } finally {
    closeSync(opened)
  }
  const content = readFileSync(path)
  expect(content.length).toBe(1024 * 1024)
  expect(content.subarray(65_536, 524_288).equals(Buffer.alloc(524_288 - 65_536))).toBe(true)
  expect([content[65_535], content[524_288]]).toEqual([1, 1])
})

test("another process's file descriptor is copied, and outlives that process", async () => {
  using scratch = new Scratch()
  const path = join(scratch.path, 'held')
  writeFileSync(path, 'from the holder')
  const holder = spawn('sh', ['-c', 'exec 7<"$1"; rm "$1"; echo ready; exec cat', 'sh', path])
  try {
    await once(holder.stdout, 'data')
    const pidfd = pidfdOpen(holder.pid ?? 0)
    const copy = pidfdGetfd(pidfd, 7)
    closeSync(pidfd)
    holder.kill('SIGKILL')
    await once(holder, 'close')
    const buffer = Buffer.alloc(100)
    expect(buffer.toString('utf8', 0, readSync(copy, buffer))).toBe('from the holder')
    closeSync(copy)
  } finally {
    holder.kill('SIGKILL')
  }
})

test.each(['by path', 'in the abstract namespace'])(
  'a datagram reaches a Unix socket %s',
  async (where) => {
    using scratch = new Scratch()
    const path = where === 'by path' ? join(scratch.path, 'socket') : `@ipdr-test-${process.pid}`
    const receiver = spawn('perl', ['-MIO::Socket::UNIX', '-e', receiverScript, path])
    try {
      await once(receiver.stderr, 'data')
      sendDatagram(path, 'READY=1')
      expect(await text(receiver.stdout)).toBe('READY=1\n')
    } finally {
      receiver.kill('SIGKILL')
    }
  },
)

test('a datagram to nobody is a failure', async () => {
  expect(await failureOf(() => sendDatagram('/no/such/socket', 'READY=1'))).toMatchObject({
    code: 'NOT_FOUND',
    message: 'sendmsg to /no/such/socket failed with ENOENT',
  })
  expect(await failureOf(() => sendDatagram(`/${'s'.repeat(107)}`, ''))).toMatchObject({
    code: 'INVALID_ARGUMENT',
  })
})

const receiverScript = `
($path = $ARGV[0]) =~ s/^@/\\0/;
$socket = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Local => $path) or die;
print STDERR "bound\\n";
$socket->recv($received, 100);
print "$received\\n";
`
