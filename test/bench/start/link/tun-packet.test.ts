import { expect, test } from 'vitest'
import { parseTunPacket, requestIn, VNET_HEADER_BYTES } from './tun-packet.ts'

type PacketOptions = {
  readonly payload?: string | Buffer
  readonly flags?: number
  /** Bytes of a segment, where the kernel left the cutting to the device. */
  readonly segmentBytes?: number
  readonly protocol?: number
}

/** A packet from port 4660 with sequence number 7, with twelve bytes of options of TCP. */
function packet({
  payload = '',
  flags = 0x10,
  segmentBytes = 0,
  protocol = 6,
}: PacketOptions): Buffer {
  const vnet = Buffer.alloc(VNET_HEADER_BYTES)
  vnet.writeUInt16LE(segmentBytes, 4)
  const ip = Buffer.alloc(20)
  ip.writeUInt8(0x45, 0)
  ip.writeUInt8(protocol, 9)
  const tcp = Buffer.alloc(32)
  tcp.writeUInt16BE(4660, 0)
  tcp.writeUInt32BE(7, 4)
  tcp.writeUInt8(8 << 4, 12)
  tcp.writeUInt8(flags, 13)
  return Buffer.concat([vnet, ip, tcp, Buffer.from(payload)])
}

test('a packet that is many segments counts with a header for each', () => {
  const whole = packet({ payload: Buffer.alloc(4000), segmentBytes: 1448 })
  expect(parseTunPacket(whole)).toMatchObject({ segments: 3, wireBytes: 4000 + 3 * 52 })
  const one = packet({ payload: Buffer.alloc(1000) })
  expect(parseTunPacket(one)).toMatchObject({ segments: 1, wireBytes: 1052 })
})

test('a packet that opens a connection is told from one that answers it', () => {
  expect(parseTunPacket(packet({ flags: 0x02 })).tcp?.opens).toBe(true)
  expect(parseTunPacket(packet({ flags: 0x12 })).tcp?.opens).toBe(false)
  expect(parseTunPacket(packet({})).tcp).toMatchObject({
    sourcePort: 4660,
    sequence: 7,
    opens: false,
  })
})

test('what is not TCP has its bytes alone', () => {
  expect(parseTunPacket(packet({ protocol: 17 }))).toEqual({
    wireBytes: 52,
    segments: 1,
    tcp: undefined,
  })
})

test('what is no packet of IPv4 is refused', () => {
  const six = packet({})
  six.writeUInt8(0x60, VNET_HEADER_BYTES)
  expect(() => parseTunPacket(six)).toThrow(RangeError)
  expect(() => parseTunPacket(Buffer.alloc(VNET_HEADER_BYTES + 8))).toThrow(RangeError)
})

test('a request is known by its first line, and by its range', () => {
  const lines = ['GET /v2/app/blobs/sha256:ab HTTP/1.1', 'Host: far', 'Range: bytes=0-9', '', '']
  expect(requestIn(Buffer.from(lines.join('\r\n')))).toBe('GET /v2/app/blobs/sha256:ab bytes=0-9')
  expect(requestIn(Buffer.from('HEAD /v2/ HTTP/1.1\r\nHost: far\r\n\r\n'))).toBe('HEAD /v2/')
  expect(requestIn(Buffer.from('HTTP/1.1 200 OK\r\n\r\n'))).toBeUndefined()
  expect(requestIn(Buffer.from([0x16, 3, 1, 2]))).toBeUndefined()
})
