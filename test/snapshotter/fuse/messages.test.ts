import { describe, expect, test } from 'vitest'
import {
  isResent,
  Opcode,
  parseInit,
  parseName,
  parseRead,
  parseRequest,
  REPLY_HEADER_BYTES,
  type Request,
  writeDirectory,
  writeError,
  writeInit,
} from '../../../snapshotter/fuse/messages.ts'

/** The bytes of a request, as the kernel lays them out. */
function requestBytes({ opcode = 0, unique = 7n, inode = 0n, pid = 0, body = Buffer.alloc(0) }) {
  const bytes = Buffer.alloc(40 + body.length)
  bytes.writeUInt32LE(bytes.length, 0)
  bytes.writeUInt32LE(opcode, 4)
  bytes.writeBigUInt64LE(unique, 8)
  bytes.writeBigUInt64LE(inode, 16)
  bytes.writeUInt32LE(pid, 32)
  body.copy(bytes, 40)
  return bytes
}

const request = (fields: Parameters<typeof requestBytes>[0]): Request => {
  const bytes = requestBytes(fields)
  return parseRequest(bytes, bytes.length)
}

test('a request gives its opcode, inode, process and body', () => {
  const body = Buffer.from('name\0')
  expect(request({ opcode: 1, inode: 2n ** 40n + 5n, pid: 4_242, body })).toMatchObject({
    opcode: Opcode.LOOKUP,
    inode: 2 ** 40 + 5,
    pid: 4_242,
    body,
  })
})

test('a request that is sent again says so, and its reply names it with all 64 bits', () => {
  const again = request({ unique: 2n ** 63n + 10n })
  expect([isResent(again), isResent(request({ unique: 10n }))]).toEqual([true, false])
  const reply = Buffer.alloc(16)
  expect(writeError(reply, again, 5)).toBe(16)
  expect([reply.readUInt32LE(0), reply.readInt32LE(4), reply.readBigUInt64LE(8)]).toEqual([
    16,
    -5,
    2n ** 63n + 10n,
  ])
})

describe('refused, because its length is not what it has to be:', () => {
  const short = requestBytes({})
  const lying = requestBytes({ body: Buffer.alloc(8) })
  lying.writeUInt32LE(40, 0)
  test.each([
    ['a request without a whole header', () => parseRequest(short, 39)],
    ['a request of another length than it says', () => parseRequest(lying, 48)],
    ['a READ', () => parseRead(Buffer.alloc(39))],
    ['an INIT', () => parseInit(Buffer.alloc(15))],
    ['a name without an end', () => parseName(Buffer.from('name'))],
  ])('%s', (_, parse) => {
    expect(parse).toThrowError(expect.objectContaining({ name: 'KernelError', code: 'DATA_LOSS' }))
  })
})

test('INIT takes of what the kernel offers only what it offers', () => {
  const reply = Buffer.alloc(REPLY_HEADER_BYTES + 64)
  const body = Buffer.alloc(64)
  body.writeUInt32LE(7, 0)
  body.writeUInt32LE(31, 4)
  body.writeUInt32LE(65_536, 8)
  body.writeUInt32LE(1 << 22, 12)
  const init = request({ opcode: Opcode.INIT, body })
  expect(writeInit(reply, init, parseInit(init.body))).toBe(80)
  const answer = reply.subarray(REPLY_HEADER_BYTES)
  expect([0, 4, 8, 12, 32].map((at) => answer.readUInt32LE(at))).toEqual([
    7,
    31,
    65_536,
    1 << 22,
    0,
  ])
})

test('a directory is listed in parts of any size, each name once, though files come and go', () => {
  const files = new Map(
    [...Array(50).keys()].map((index) => [100 + index, `layer-${'x'.repeat(index)}`]),
  )
  const listed: string[] = []
  const reply = Buffer.alloc(4096)
  for (let after = 0, round = 0; ; round++) {
    const entries = [...files].map(([inode, name]) => ({ inode, name, size: 0 }))
    const used = writeDirectory(reply, request({}), entries, { offset: after, size: 300 }) - 16
    if (used === 0) break
    expect(used).toBeLessThanOrEqual(300)
    for (let at = 16; at < 16 + used; ) {
      const nameBytes = reply.readUInt32LE(at + 16)
      listed.push(reply.toString('utf8', at + 24, at + 24 + nameBytes))
      after = Number(reply.readBigUInt64LE(at + 8))
      at += Math.ceil((24 + nameBytes) / 8) * 8
    }
    files.delete(100 + round) // Already listed.
  }
  expect(listed).toEqual([...Array(50).keys()].map((index) => `layer-${'x'.repeat(index)}`))
})
