/**
 * The FUSE messages of a flat, read-only file system: protocol 7.45, as laid down in Linux's
 * include/uapi/linux/fuse.h. Integers are in the machine's byte order, which is little-endian on every
 * machine Node supports except s390x. Offsets in this file are those of the structs named beside them.
 */
import { KernelError } from '../errors.ts'

/** Requests of the kernel that have a name here (enum fuse_opcode); all others are answered with ENOSYS. */
export const Opcode = {
  LOOKUP: 1,
  FORGET: 2,
  GETATTR: 3,
  OPEN: 14,
  READ: 15,
  STATFS: 17,
  RELEASE: 18,
  FLUSH: 25,
  INIT: 26,
  OPENDIR: 27,
  READDIR: 28,
  RELEASEDIR: 29,
  ACCESS: 34,
  INTERRUPT: 36,
  DESTROY: 38,
  BATCH_FORGET: 42,
} as const

/** Opcodes are below this; counters are indexed by opcode. 64: the highest in 7.45 is 53 (COPY_FILE_RANGE_64). */
export const OPCODE_COUNT = 64

/** What a reply can say went wrong (asm-generic/errno.h). */
export const Errno = {
  ENOENT: 2,
  EIO: 5,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  EROFS: 30,
  ENOSYS: 38,
  EPROTO: 71,
  ESTALE: 116,
} as const

/** FUSE_ROOT_ID: the inode of the root directory. */
export const ROOT_INODE = 1

const PROTOCOL_MAJOR = 7
const PROTOCOL_MINOR = 45

const REQUEST_HEADER_BYTES = 40 // struct fuse_in_header
/** Bytes in front of every reply's body (struct fuse_out_header). */
export const REPLY_HEADER_BYTES = 16

/**
 * The longest READ, in bytes. 256 KiB: a read-ahead window of 1 MiB then makes four, which two threads serve side by side;
 * with READs of 1 MiB, the kernel's limit, one thread copied while the other waited (1.0 against 1.5 GB/s, cold).
 */
export const READ_BYTES_MAX: number = 256 * 1024
const READ_PAGES_MAX = READ_BYTES_MAX / 4096

/** What INIT allows a WRITE to carry. We take none; 4096 is the least that the kernel accepts. */
const WRITE_BYTES_MAX = 4096

/**
 * Bytes a read(2) of /dev/fuse must offer. The kernel wants 8,192 (FUSE_MIN_READ_BUFFER) and room for a WRITE,
 * 4,096 + 80; the rest lets one BATCH_FORGET carry 1,000 inodes of 16 bytes.
 */
export const REQUEST_BYTES_MAX: number = 16 * 1024

/**
 * How many background requests (readahead) may be in flight. With the kernel's default of 12, a dozen slow misses
 * hold up every hit: 300 misses of a second each kept a read of present bytes waiting for 68 s; at 1024 it took 0.3 ms.
 */
const BACKGROUND_REQUESTS_MAX = 1024

/** How long the kernel may keep names and attributes, in seconds. 2^31: a layer never changes under its name. */
const VALID_SECONDS = 2n ** 31n

// INIT flags. Those above bit 31 travel in flags2, shifted down by 32.
const ASYNC_READ = 1 << 0
const ASYNC_DIO = 1 << 15 // Without it, one thread's readahead waits for each request in turn.
const PARALLEL_DIROPS = 1 << 18
const MAX_PAGES = 1 << 22
const INIT_EXT = 1 << 30
const HAS_RESEND = 1 << (39 - 32)
const WANTED_FLAGS = ASYNC_READ | ASYNC_DIO | PARALLEL_DIROPS | MAX_PAGES | INIT_EXT

/**
 * What an OPEN reply tells the kernel. FOPEN_DIRECT_IO: reads go past its page cache; FOPEN_KEEP_CACHE: through it, and
 * it outlives the open file. FOPEN_NOFLUSH: no FLUSH at close. That one is no luxury: at an exec(2) the kernel closes
 * files half-way, and would wait for our answer while the process that is to answer is the one being started, with
 * every ps(1) on the machine waiting behind it.
 */
export const OpenFlags = { DIRECT_IO: 1, KEEP_CACHE: 2, NOFLUSH: 32 } as const

const DIRECTORY_MODE = 0o040500
const FILE_MODE = 0o100400
const DIRENT_TYPE_FILE = 8 // DT_REG

/** A request as it came from the kernel. `body` is a view, valid until the next read into the same buffer. */
export type Request = {
  readonly opcode: number
  /** Names the request in its reply, all 64 bits of it: see `isResent`. */
  readonly unique: bigint
  /** The inode it is about; 0 for none. */
  readonly inode: number
  /** The thread that asked, in the pid namespace of the mount. */
  readonly pid: number
  readonly body: Buffer
}

/** A name, number and size in the one directory of the file system. */
export type FlatEntry = {
  readonly inode: number
  readonly name: string
  /** Bytes. */
  readonly size: number
}

/** Reads the first `length` bytes of `bytes` as one request. Throws KernelError DATA_LOSS if they are not one. */
export function parseRequest(bytes: Buffer, length: number): Request {
  if (length < REQUEST_HEADER_BYTES) {
    throw malformed('a request', length, REQUEST_HEADER_BYTES)
  }
  const declared = bytes.readUInt32LE(0)
  if (declared !== length) throw malformed('a request', length, declared)
  return {
    opcode: bytes.readUInt32LE(4),
    unique: bytes.readBigUInt64LE(8),
    inode: uint64(bytes, 16),
    pid: bytes.readUInt32LE(32),
    body: bytes.subarray(REQUEST_HEADER_BYTES, length),
  }
}

/** Whether a server before us took this request and did not answer (FUSE_UNIQUE_RESEND). */
export function isResent({ unique }: Request): boolean {
  return unique >= 2n ** 63n
}

/** Which bytes a READ wants, or from which cookie a READDIR goes on and how many bytes it takes (struct fuse_read_in). */
export function parseRead(body: Buffer): { offset: number; size: number } {
  if (body.length < 40) throw malformed('READ', body.length, 40)
  return { offset: uint64(body, 8), size: body.readUInt32LE(16) }
}

/** The name a LOOKUP asks for: bytes up to a NUL. */
export function parseName(body: Buffer): string {
  const end = body.indexOf(0)
  if (end < 0) throw new KernelError('DATA_LOSS', 'the kernel sent a LOOKUP whose name has no end')
  return body.toString('utf8', 0, end)
}

/** What the kernel can do, by its INIT (struct fuse_init_in). */
export type KernelOffer = {
  readonly major: number
  readonly minor: number
  /** Bytes. */
  readonly readaheadMax: number
  readonly flags: number
  readonly flags2: number
}

/** Reads an INIT. Kernels before 7.36 send no second word of flags. */
export function parseInit(body: Buffer): KernelOffer {
  if (body.length < 16) throw malformed('INIT', body.length, 16)
  return {
    major: body.readUInt32LE(0),
    minor: body.readUInt32LE(4),
    readaheadMax: body.readUInt32LE(8),
    flags: body.readUInt32LE(12),
    flags2: body.length >= 20 ? body.readUInt32LE(16) : 0,
  }
}

/**
 * Completes a reply whose body of `bodyBytes` already lies behind the header in `reply`.
 * Returns the length of the whole message.
 */
export function finishReply(reply: Buffer, request: Request, bodyBytes: number): number {
  return writeReplyHeader(reply, request.unique, 0, bodyBytes)
}

/** Writes a reply that says only which error (a positive errno) it was; 0 is plain success. Returns its length. */
export function writeError(reply: Buffer, request: Request, errno: number): number {
  return writeReplyHeader(reply, request.unique, errno, 0)
}

/** Writes struct fuse_out_header for a body of `bodyBytes` that follows. Returns the length of the whole message. */
export function writeReplyHeader(
  reply: Buffer,
  unique: bigint,
  errno: number,
  bodyBytes: number,
): number {
  const length = REPLY_HEADER_BYTES + bodyBytes
  reply.writeUInt32LE(length, 0)
  reply.writeInt32LE(-errno, 4)
  reply.writeBigUInt64LE(unique, 8)
  return length
}

/**
 * Answers INIT (struct fuse_init_out): what of the kernel's offer we take. A kernel with a higher major version
 * reads only the version from it and asks again.
 */
export function writeInit(reply: Buffer, request: Request, offer: KernelOffer): number {
  const body = clearedBody(reply, 64)
  body.writeUInt32LE(PROTOCOL_MAJOR, 0)
  body.writeUInt32LE(Math.min(PROTOCOL_MINOR, offer.minor), 4)
  body.writeUInt32LE(offer.readaheadMax, 8)
  body.writeUInt32LE((offer.flags & WANTED_FLAGS) >>> 0, 12)
  body.writeUInt16LE(BACKGROUND_REQUESTS_MAX, 16)
  // At the congestion threshold the kernel skips readahead: at the limit itself, so that it never does.
  body.writeUInt16LE(BACKGROUND_REQUESTS_MAX, 18)
  body.writeUInt32LE(WRITE_BYTES_MAX, 20)
  body.writeUInt32LE(1, 24) // Granularity of times, in nanoseconds.
  body.writeUInt16LE(READ_PAGES_MAX, 28)
  body.writeUInt32LE((offer.flags2 & HAS_RESEND) >>> 0, 32)
  return finishReply(reply, request, body.length)
}

/** Whether we can speak with a kernel that sends this INIT. Its major version is 7 since Linux 2.6.14. */
export function speaksOurProtocol(offer: KernelOffer): boolean {
  return offer.major >= PROTOCOL_MAJOR
}

/** Answers LOOKUP (struct fuse_entry_out). */
export function writeEntry(reply: Buffer, request: Request, entry: FlatEntry): number {
  const body = clearedBody(reply, 128)
  body.writeBigUInt64LE(BigInt(entry.inode), 0)
  body.writeBigUInt64LE(VALID_SECONDS, 16)
  body.writeBigUInt64LE(VALID_SECONDS, 24)
  writeFileAttributes(body.subarray(40), entry)
  return finishReply(reply, request, body.length)
}

/** Answers GETATTR of a file (struct fuse_attr_out). */
export function writeFileAttributesReply(
  reply: Buffer,
  request: Request,
  entry: FlatEntry,
): number {
  const body = clearedBody(reply, 104)
  body.writeBigUInt64LE(VALID_SECONDS, 0)
  writeFileAttributes(body.subarray(16), entry)
  return finishReply(reply, request, body.length)
}

/** Answers GETATTR of the root directory. */
export function writeRootAttributesReply(reply: Buffer, request: Request): number {
  const body = clearedBody(reply, 104)
  body.writeBigUInt64LE(VALID_SECONDS, 0)
  const attributes = body.subarray(16)
  attributes.writeBigUInt64LE(BigInt(ROOT_INODE), 0)
  attributes.writeUInt32LE(DIRECTORY_MODE, 60)
  attributes.writeUInt32LE(2, 64)
  attributes.writeUInt32LE(4096, 80)
  return finishReply(reply, request, body.length)
}

/** Answers OPEN and OPENDIR (struct fuse_open_out). The file handle is the inode: nothing to remember, nothing to lose. */
export function writeOpened(reply: Buffer, request: Request, openFlags: number): number {
  const body = clearedBody(reply, 16)
  body.writeBigUInt64LE(BigInt(request.inode), 0)
  body.writeUInt32LE(openFlags, 8)
  return finishReply(reply, request, body.length)
}

/** Answers STATFS (struct fuse_statfs_out): a full file system of `files` files. */
export function writeStatfs(reply: Buffer, request: Request, files: number): number {
  const body = clearedBody(reply, 80)
  body.writeBigUInt64LE(BigInt(files), 24)
  body.writeUInt32LE(4096, 40)
  body.writeUInt32LE(255, 44)
  body.writeUInt32LE(4096, 48)
  return finishReply(reply, request, body.length)
}

/**
 * Answers READDIR with as many struct fuse_dirent as fit into `size` bytes, from cookie `after` on. An entry's cookie
 * is its inode and entries come in that order, so a listing goes on rightly though files come and go meanwhile.
 */
export function writeDirectory(
  reply: Buffer,
  request: Request,
  entries: Iterable<FlatEntry>,
  { offset: after, size }: { offset: number; size: number },
): number {
  const room = Math.min(size, reply.length - REPLY_HEADER_BYTES)
  const listed = [...entries].filter((entry) => entry.inode > after)
  const body = clearedBody(reply, room)
  let used = 0
  for (const { inode, name } of listed.toSorted((a, b) => a.inode - b.inode)) {
    const nameBytes = Buffer.byteLength(name)
    const recordBytes = Math.ceil((24 + nameBytes) / 8) * 8
    if (used + recordBytes > room) break
    body.writeBigUInt64LE(BigInt(inode), used)
    body.writeBigUInt64LE(BigInt(inode), used + 8)
    body.writeUInt32LE(nameBytes, used + 16)
    body.writeUInt32LE(DIRENT_TYPE_FILE, used + 20)
    body.write(name, used + 24)
    used += recordBytes
  }
  return finishReply(reply, request, used)
}

/**
 * The message that makes the kernel send again what a server before us took and did not answer (FUSE_NOTIFY_RESEND,
 * Linux 6.9 and later; older ones refuse it with EINVAL).
 */
export function resendNotice(): Buffer {
  return notice(7, Buffer.alloc(0))
}

/** The message that makes the kernel forget a name in the root directory (FUSE_NOTIFY_INVAL_ENTRY). */
export function forgetNameNotice(name: string): Buffer {
  const body = Buffer.alloc(16 + Buffer.byteLength(name) + 1)
  body.writeBigUInt64LE(BigInt(ROOT_INODE), 0)
  body.writeUInt32LE(Buffer.byteLength(name), 8)
  body.write(name, 16)
  return notice(3, body)
}

/** A message of our own accord: `unique` is 0 and the error field holds what it is (enum fuse_notify_code). */
function notice(code: number, body: Buffer): Buffer {
  const header = Buffer.alloc(REPLY_HEADER_BYTES)
  header.writeUInt32LE(REPLY_HEADER_BYTES + body.length, 0)
  header.writeInt32LE(code, 4)
  return Buffer.concat([header, body])
}

/** Writes struct fuse_attr of a file, which is 88 bytes. */
function writeFileAttributes(attributes: Buffer, { inode, size }: FlatEntry): void {
  attributes.writeBigUInt64LE(BigInt(inode), 0)
  attributes.writeBigUInt64LE(BigInt(size), 8)
  attributes.writeBigUInt64LE(BigInt(Math.ceil(size / 512)), 16)
  attributes.writeUInt32LE(FILE_MODE, 60)
  attributes.writeUInt32LE(1, 64)
  attributes.writeUInt32LE(4096, 80)
}

function clearedBody(reply: Buffer, bytes: number): Buffer {
  return reply.subarray(REPLY_HEADER_BYTES, REPLY_HEADER_BYTES + bytes).fill(0)
}

/** A u64 as a number: the kernel's offsets are below 2^63, and those we can mean below 2^53. */
function uint64(bytes: Buffer, at: number): number {
  return bytes.readUInt32LE(at) + bytes.readUInt32LE(at + 4) * 2 ** 32
}

function malformed(what: string, bytes: number, expected: number): KernelError {
  return new KernelError(
    'DATA_LOSS',
    `the kernel sent ${what} of ${bytes} bytes on /dev/fuse where ${expected} were due`,
    { bytes, expected },
  )
}
