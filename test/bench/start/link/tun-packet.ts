/** Bytes of `struct virtio_net_hdr`, which the kernel puts before each packet (linux/virtio_net.h). */
export const VNET_HEADER_BYTES = 10

/** A packet of IPv4 as a TUN device hands it over: with the kernel's header, and often many segments of TCP in one. */
export type TunPacket = {
  /** What it is on a wire, in bytes: every segment with headers of its own. */
  readonly wireBytes: number
  readonly segments: number
  /** Undefined: it is none of TCP. */
  readonly tcp: TcpPart | undefined
}

type TcpPart = {
  /** The number of the connection's port on the sending side. */
  readonly sourcePort: number
  readonly sequence: number
  /** Opens a connection: SYN without ACK. */
  readonly opens: boolean
  readonly payload: Uint8Array
}

// RFC 791 and RFC 9293.
const IPV4_BYTES_MIN = 20
const TCP_BYTES_MIN = 20
const PROTOCOL_TCP = 6
const FLAG_SYN = 0x02
const FLAG_ACK = 0x10

/** What is in the packet. Throws RangeError for what is no packet of IPv4. */
export function parseTunPacket(bytes: Buffer): TunPacket {
  const ip = bytes.subarray(VNET_HEADER_BYTES)
  if (ip.length < IPV4_BYTES_MIN || ip.readUInt8(0) >> 4 !== 4) {
    throw new RangeError(`not a packet of IPv4: ${bytes.length} bytes`)
  }
  const ipHeaderBytes = (ip.readUInt8(0) & 0x0f) * 4
  const segment = ip.subarray(ipHeaderBytes)
  if (ip.readUInt8(9) !== PROTOCOL_TCP || segment.length < TCP_BYTES_MIN) {
    return { wireBytes: ip.length, segments: 1, tcp: undefined }
  }
  const tcpHeaderBytes = (segment.readUInt8(12) >> 4) * 4
  const flags = segment.readUInt8(13)
  const payload = segment.subarray(tcpHeaderBytes)
  // 0: the packet is one segment, of whatever size.
  const segmentBytes = bytes.readUInt16LE(4)
  const segments = segmentBytes === 0 ? 1 : Math.max(1, Math.ceil(payload.length / segmentBytes))
  return {
    wireBytes: ip.length + (segments - 1) * (ipHeaderBytes + tcpHeaderBytes),
    segments,
    tcp: {
      sourcePort: segment.readUInt16BE(0),
      sequence: segment.readUInt32BE(4),
      opens: (flags & FLAG_SYN) !== 0 && (flags & FLAG_ACK) === 0,
      payload,
    },
  }
}

/** Bytes of a payload in which a request line and its range are looked for. */
const REQUEST_BYTES = 2048

/** The first line of a request of HTTP/1.1, and the range that it asks for: "GET /v2/ bytes=0-9". Undefined if none begins here. */
export function requestIn(payload: Uint8Array): string | undefined {
  const text = Buffer.from(payload.subarray(0, REQUEST_BYTES)).toString('latin1')
  const [, line] = /^((?:GET|HEAD|POST|PUT) \S+) HTTP\/1\.1\r\n/.exec(text) ?? []
  if (line === undefined) return undefined
  const [, range] = /\r\nrange: *([^\r]*)\r\n/i.exec(text) ?? []
  return range === undefined ? line : `${line} ${range}`
}
