import { closeSync, openSync, readSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { attachLoop, changeLoopFile, listLoops } from '../../../snapshotter/kernel/loop-device.ts'
import { Scratch } from '../../support/scratch.ts'

/** Two files of four sectors, one of ones and one of twos. */
function files(): { ones: string; twos: string; short: string; tag: string } {
  const scratch = Scratch.open('loop')
  onTestFinished(() => scratch[Symbol.asyncDispose]())
  const [ones, twos, short] = ['ones', 'twos', 'short'].map((name) => join(scratch.dir, name))
  writeFileSync(ones ?? '', Buffer.alloc(2048, 1))
  writeFileSync(twos ?? '', Buffer.alloc(2048, 2))
  writeFileSync(short ?? '', Buffer.alloc(1024, 3))
  return {
    ones: ones ?? '',
    twos: twos ?? '',
    short: short ?? '',
    tag: `ipdr-test ${scratch.dir}`.slice(0, 63),
  }
}

/** Each sector's first byte, read anew. */
function sectorsOf(path: string): number[] {
  const fd = openSync(path, 'r')
  const bytes = Buffer.alloc(4096)
  const size = readSync(fd, bytes, 0, bytes.length, 0)
  closeSync(fd)
  return Array.from({ length: size / 512 }, (_, sector) => bytes[sector * 512] ?? 0)
}

test.each([true, false])(
  'a file is read through a device, which is found by its tag (direct: %s)',
  async (direct) => {
    const { ones, tag } = files()
    using device = await attachLoop(ones, { tag, direct })
    expect(device.path).toMatch(/^\/dev\/loop\d+$/)
    expect(sectorsOf(device.path)).toEqual([1, 1, 1, 1])
    expect(listLoops(tag)).toEqual([{ path: device.path, tag, backingPath: ones }])
    expect(listLoops(`${tag}x`)).toEqual([])
  },
)

test('a device reads another file from then on that it is given one, for those too who have it open', async () => {
  const { ones, twos, tag } = files()
  using device = await attachLoop(ones, { tag, direct: true })
  await changeLoopFile(device.path, twos)
  expect(sectorsOf(device.path)).toEqual([2, 2, 2, 2])
  expect(listLoops(tag)).toEqual([{ path: device.path, tag, backingPath: twos }])
})

test('a file of another size is refused, and the device reads what it did', async () => {
  const { ones, short, tag } = files()
  using device = await attachLoop(ones, { tag, direct: true })
  await expect(changeLoopFile(device.path, short)).rejects.toThrow('LOOP_CHANGE_FD')
  expect(sectorsOf(device.path)).toEqual([1, 1, 1, 1])
})

test('a device is free again once nobody has it open', async () => {
  const { ones, tag } = files()
  const device = await attachLoop(ones, { tag, direct: true })
  const fd = openSync(device.path, 'r')
  device[Symbol.dispose]()
  expect(listLoops(tag)).toHaveLength(1)
  closeSync(fd)
  expect(listLoops(tag)).toEqual([])
})

test('nothing can be written to it', async () => {
  const { ones, tag } = files()
  using device = await attachLoop(ones, { tag, direct: true })
  expect(() => writeFileSync(device.path, 'x')).toThrow(/EPERM|EACCES|EROFS/)
})

test('a file that is not there, and a tag that the kernel would cut off, are refused', async () => {
  const { ones, tag } = files()
  await expect(attachLoop(`${ones}-none`, { tag, direct: true })).rejects.toThrow('ENOENT')
  await expect(attachLoop(ones, { tag: 'x'.repeat(64), direct: true })).rejects.toThrow('64 bytes')
  expect(listLoops(tag)).toEqual([])
})
