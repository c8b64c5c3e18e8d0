import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync, statSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { mountErofs, unmountErofs } from '../../../snapshotter/erofs/mount-image.ts'
import { probeKernel } from '../../../snapshotter/erofs/probe-kernel.ts'
import { isMounted, listMounts } from '../../../snapshotter/kernel/mountinfo.ts'
import { failureOf } from '../../support/failure-of.ts'
import { imageOf, mountTree, Scratch } from './mounted-image.ts'
import { directory, file } from './tree-model.ts'

const layer = new Uint8Array(1024).fill(7)
const root = directory({
  f: file({ size: 1024, extents: [{ fileOffset: 0, layerOffset: 0, length: 1024 }] }),
})

test('a mounted image is read-only, listed as EROFS, and reads ahead as far as asked', async () => {
  using scratch = new Scratch()
  const { target } = await mountTree(scratch, root, [layer])
  expect(readFileSync(join(target, 'f'))).toEqual(Buffer.from(layer))
  expect(() => execFileSync('touch', [join(target, 'new')], { stdio: 'pipe' })).toThrow(
    'Read-only file system',
  )
  expect(listMounts(scratch.path)).toEqual([
    {
      target,
      type: 'erofs',
      source: expect.any(String) as string,
      device: expect.any(String) as string,
      options: expect.stringMatching(/^ro,/) as string,
    },
  ])
  const image = scratch.file(imageOf(root, [layer]).bytes)
  const far = scratch.mounted(scratch.folder())
  await mountErofs({
    imagePath: image,
    devicePaths: [scratch.file(layer)],
    target: far,
    readAheadKb: 3456,
  })
  const readAheads = readdirSync('/sys/class/bdi')
    .filter((name) => name.startsWith('erofs-'))
    .map((name) => readFileSync(`/sys/class/bdi/${name}/read_ahead_kb`, 'utf8').trim())
  expect(readAheads).toContain('3456')
})

test('unmounting takes the name at once, while a reader keeps what it has open', async () => {
  using scratch = new Scratch()
  const { target } = await mountTree(scratch, root, [layer])
  const reader = execFileSync(
    'sh',
    ['-c', 'exec 3<"$1/f"; umount --lazy "$1"; cat <&3 | wc -c', 'sh', target],
    { encoding: 'utf8' },
  )
  expect(reader.trim()).toBe('1024')
  expect(isMounted(target)).toBe(false)

  const again = (await mountTree(scratch, root, [layer])).target
  unmountErofs(again)
  expect(isMounted(again)).toBe(false)
  expect(readdirSync(again)).toEqual([])
})

test('unmounting what is not mounted fails', async () => {
  using scratch = new Scratch()
  expect(await failureOf(() => unmountErofs(scratch.path))).toMatchObject({
    name: 'KernelError',
    code: 'INVALID_ARGUMENT',
  })
})

test('too few or too many devices are refused, for the kernel would mount and then give EIO', async () => {
  using scratch = new Scratch()
  const imagePath = scratch.file(imageOf(root, [layer]).bytes)
  const device = scratch.file(layer)
  for (const devicePaths of [[], [device, device]]) {
    const target = scratch.folder()
    expect(
      await failureOf(() => mountErofs({ imagePath, devicePaths, target, readAheadKb: 128 })),
    ).toMatchObject({
      name: 'KernelError',
      message: expect.stringContaining(
        `takes its content from 1 devices, ${devicePaths.length} were given`,
      ) as string,
    })
    expect(isMounted(target)).toBe(false)
  }
})

test.each([
  ['an image that is not there', 'cannot be read', () => '/no/such/image'],
  [
    'a file that is no image',
    'is not an EROFS image',
    (s: Scratch) => s.file(new Uint8Array(4096)),
  ],
  ['a device that is not there', 'failed with ENOENT', (s: Scratch) => s.file(image())],
  ['an image of an unknown feature', 'EINVAL', (s: Scratch) => s.file(unknownFeature())],
])('%s is refused in a sentence, and nothing is mounted', async (_, sentence, imagePathIn) => {
  using scratch = new Scratch()
  const target = scratch.folder()
  const imagePath = imagePathIn(scratch)
  const failure = await failureOf(() =>
    mountErofs({ imagePath, devicePaths: ['/no/such/device'], target, readAheadKb: 128 }),
  )
  expect(failure.name).toBe('KernelError')
  expect(failure.message).toContain(sentence)
  expect(isMounted(target)).toBe(false)
})

test('a path that fsconfig(2) would cut off is refused', async () => {
  using scratch = new Scratch()
  const devicePaths = [`/${'p'.repeat(255)}`]
  const imagePath = scratch.file(image())
  expect(
    await failureOf(() =>
      mountErofs({ imagePath, devicePaths, target: scratch.folder(), readAheadKb: 128 }),
    ),
  ).toMatchObject({ message: expect.stringContaining('device is 256 bytes long') as string })
})

test('content that its device has lost is an I/O error, never zeros', async () => {
  using scratch = new Scratch()
  const { target, devicePaths } = await mountTree(scratch, root, [layer], { fsckContent: false })
  truncateSync(devicePaths[0] ?? '', 512)
  expect(await failureOf(() => readFileSync(join(target, 'f')))).toMatchObject({ code: 'EIO' })
})

test('this kernel mounts EROFS from files, and over loop devices when asked, and the probe leaves nothing', async () => {
  using scratch = new Scratch()
  expect(await probeKernel(scratch.path)).toEqual({
    rung: 'erofs-file',
    reason: 'a test image was mounted as erofs-file and read back',
  })
  expect(await probeKernel(scratch.path, ['erofs-loop'])).toMatchObject({ rung: 'erofs-loop' })
  expect(readdirSync(scratch.path)).toEqual([])
  expect(listMounts(scratch.path)).toEqual([])
  expect(execFileSync('losetup', ['--list'], { encoding: 'utf8' })).not.toContain(scratch.path)
})

test('a folder that cannot back an EROFS is found out, with the kernel’s answer in the reason', async () => {
  using scratch = new Scratch()
  const target = scratch.mounted(scratch.folder())
  execFileSync('mount', ['-t', 'tmpfs', 'probe', target])
  const report = await probeKernel(target)
  expect(report.rung).not.toBe('erofs-file')
  expect(report.reason).toContain('ENOTBLK')
  expect(statSync(target).isDirectory()).toBe(true)
  expect(readdirSync(target)).toEqual([])
})

function image(): Uint8Array {
  return imageOf(root, [layer]).bytes
}

function unknownFeature(): Uint8Array {
  const bytes = Buffer.from(image())
  bytes.writeUInt32LE(0x8000_0000, 1024 + 0x50)
  return bytes
}
