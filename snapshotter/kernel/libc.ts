import { closeSync } from 'node:fs'
import koffi, { type KoffiFunc } from 'koffi'
import type { ByteRange } from '../byte-range.ts'
import { type ErrorCode, KernelError } from '../errors.ts'

// The only file that calls native code, for what Node has no words for. Calls block the calling thread where they do not say otherwise,
// so this is for the control path; a wrong signature here is memory corruption, so each is written out beside its manual page.

/** Flags of mount(2), from linux/mount.h. */
export const MS_RDONLY = 1
export const MS_NOSUID = 2
export const MS_NODEV = 4
export const MS_REMOUNT = 32
export const MS_BIND = 4096

/** Flags of umount2(2): let go at once and free with the last user; do not follow a symlink at the target. */
export const MNT_DETACH = 2
export const UMOUNT_NOFOLLOW = 8

/** Bytes of the option page of mount(2), its end included: one page, whatever the architecture's page size is set to. */
export const MOUNT_OPTIONS_MAX = 4096

/** Bytes of one value of fsconfig(2), its end included: strndup_user(value, 256) in fs/fsopen.c. */
export const FSCONFIG_VALUE_MAX = 256

// System call numbers from asm-generic/unistd.h: from 424 on they are the same on every architecture.
const SYS_OPEN_TREE = 428
const SYS_MOVE_MOUNT = 429
const SYS_FSOPEN = 430
const SYS_FSCONFIG = 431
const SYS_FSMOUNT = 432
const SYS_PIDFD_OPEN = 434
const SYS_PIDFD_GETFD = 438
const SYS_MOUNT_SETATTR = 442

// linux/mount.h
const FSOPEN_CLOEXEC = 1
const FSMOUNT_CLOEXEC = 1
const MOUNT_ATTR_RDONLY = 1
const MOUNT_ATTR_IDMAP = 0x10_0000
const OPEN_TREE_CLONE = 1
/** Of asm-generic/fcntl.h and linux/fcntl.h. */
const O_CLOEXEC = 0o2_000_000
const AT_EMPTY_PATH = 0x1000
const MOVE_MOUNT_F_EMPTY_PATH = 4
const FSCONFIG_SET_FLAG = 0
const FSCONFIG_SET_STRING = 1
const FSCONFIG_CMD_CREATE = 6

// linux/fcntl.h, linux/falloc.h
const AT_FDCWD = -100
const FALLOC_FL_KEEP_SIZE = 1
const FALLOC_FL_PUNCH_HOLE = 2
const POSIX_FADV_DONTNEED = 4

// asm-generic/socket.h, linux/net.h and linux/un.h; MIPS and SPARC, which we do not serve, number some of them otherwise.
const AF_UNIX = 1
const SOCK_DGRAM = 2
const SOCK_CLOEXEC = 0o2000000
const MSG_DONTWAIT = 0x40
const MSG_NOSIGNAL = 0x4000
const SOL_SOCKET = 1
const SCM_RIGHTS = 1
const UNIX_PATH_MAX = 108

/** struct cmsghdr with one descriptor behind it, in bytes: its length as a `long`, level and type as `int`s; padded to a `long`. */
const CMSG_ONE_FD_BYTES = 20
const CMSG_ONE_FD_SPACE = 24

// asm-generic/poll.h; struct pollfd is an `int` and two `short`s.
const POLLERR = 8
const POLLFD_BYTES = 8

// linux/time.h
const CLOCK_REALTIME = 0

type Libc = {
  mount: KoffiFunc<
    (
      source: string | null,
      target: string,
      type: string | null,
      flags: number,
      options: string | null,
    ) => number
  >
  umount2: KoffiFunc<(target: string, flags: number) => number>
  fallocate: KoffiFunc<(fd: number, mode: number, offset: number, length: number) => number>
  fadvise: KoffiFunc<(fd: number, offset: number, length: number, advice: number) => number>
  fsopen: KoffiFunc<(number: number, type: string, flags: number) => number>
  fsconfig: KoffiFunc<
    (
      number: number,
      fd: number,
      command: number,
      key: string | null,
      value: string | null,
      aux: number,
    ) => number
  >
  moveMount: KoffiFunc<
    (
      number: number,
      fromFd: number,
      fromPath: string,
      toFd: number,
      toPath: string,
      flags: number,
    ) => number
  >
  openTree: KoffiFunc<(number: number, fromFd: number, path: string, flags: number) => number>
  mountSetattr: KoffiFunc<
    (
      number: number,
      fd: number,
      path: string,
      flags: number,
      attributes: BigUint64Array,
      bytes: number,
    ) => number
  >
  socket: KoffiFunc<(family: number, type: number, protocol: number) => number>
  sendmsg: KoffiFunc<(fd: number, message: MessageHeader, flags: number) => number>
  poll: KoffiFunc<(fds: Uint8Array, count: number, timeoutMs: number) => number>
  /** With a number, and with memory that the kernel reads or writes, as the third parameter. */
  ioctl: KoffiFunc<(fd: number, request: number, value: number) => number>
  ioctlBytes: KoffiFunc<(fd: number, request: number, bytes: Uint8Array) => number>
  clockGettime: KoffiFunc<(clock: number, timespec: BigInt64Array) => number>
  /** Any call whose arguments are numbers. */
  numeric: KoffiFunc<(number: number, a: number, b: number, c: number) => number>
}

/** struct msghdr of sendmsg(2), with its names. */
type MessageHeader = {
  readonly msg_name: Uint8Array
  readonly msg_namelen: number
  readonly msg_iov: readonly { readonly iov_base: Uint8Array; readonly iov_len: number }[]
  readonly msg_iovlen: number
  readonly msg_control: Uint8Array | null
  readonly msg_controllen: number
  readonly msg_flags: number
}

let bound: Libc | undefined

/** Symbols of the C library that Node itself runs on, glibc or musl; bound at the first call, not at import. */
function libc(): Libc {
  if (bound !== undefined) return bound
  const library = koffi.load(null)
  koffi.struct('iovec', { iov_base: 'const uint8_t *', iov_len: 'size_t' })
  // As glibc has it. musl parts two of the lengths into an `int` and padding of zeros, which is the same on little-endian machines.
  koffi.struct('msghdr', {
    msg_name: 'const uint8_t *',
    msg_namelen: 'uint32_t',
    msg_iov: 'const iovec *',
    msg_iovlen: 'size_t',
    msg_control: 'const uint8_t *',
    msg_controllen: 'size_t',
    msg_flags: 'int',
  })
  // syscall(2) takes and returns registers, so its numbers are declared as `long`.
  bound = {
    mount: library.func(
      'int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *options)',
    ) as Libc['mount'],
    umount2: library.func('int umount2(const char *target, int flags)') as Libc['umount2'],
    fallocate: library.func(
      'int fallocate(int fd, int mode, int64_t offset, int64_t length)',
    ) as Libc['fallocate'],
    fadvise: library.func(
      'int posix_fadvise(int fd, int64_t offset, int64_t length, int advice)',
    ) as Libc['fadvise'],
    fsopen: library.func(
      'long syscall(long number, const char *type, long flags)',
    ) as Libc['fsopen'],
    fsconfig: library.func(
      'long syscall(long number, long fd, long command, const char *key, const char *value, long aux)',
    ) as Libc['fsconfig'],
    moveMount: library.func(
      'long syscall(long number, long fromFd, const char *fromPath, long toFd, const char *toPath, long flags)',
    ) as Libc['moveMount'],
    openTree: library.func(
      'long syscall(long number, long fromFd, const char *path, long flags)',
    ) as Libc['openTree'],
    mountSetattr: library.func(
      'long syscall(long number, long fd, const char *path, long flags, const uint64_t *attributes, size_t bytes)',
    ) as Libc['mountSetattr'],
    socket: library.func('int socket(int family, int type, int protocol)') as Libc['socket'],
    sendmsg: library.func(
      'int64_t sendmsg(int fd, const msghdr *message, int flags)',
    ) as Libc['sendmsg'],
    poll: library.func(
      'int poll(_Inout_ uint8_t *fds, unsigned long count, int timeoutMs)',
    ) as Libc['poll'],
    // Variadic in C; Linux passes these three in the same registers either way, on x86-64 and arm64.
    ioctl: library.func('int ioctl(int fd, unsigned long request, long value)') as Libc['ioctl'],
    ioctlBytes: library.func(
      'int ioctl(int fd, unsigned long request, _Inout_ uint8_t *bytes)',
    ) as Libc['ioctlBytes'],
    // struct timespec: seconds, nanoseconds; each a `long`, of 8 bytes on the architectures that we serve.
    clockGettime: library.func(
      'int clock_gettime(int clock, _Out_ int64_t *timespec)',
    ) as Libc['clockGettime'],
    numeric: library.func('long syscall(long number, long a, long b, long c)') as Libc['numeric'],
  }
  return bound
}

const errnoNames: ReadonlyMap<number, string> = new Map(
  Object.entries(koffi.os.errno).map(([name, number]) => [number, name]),
)

const codeOfErrno: Readonly<Record<string, ErrorCode>> = {
  EACCES: 'PERMISSION_DENIED',
  EBUSY: 'FAILED_PRECONDITION',
  ENXIO: 'NOT_FOUND',
  EEXIST: 'ALREADY_EXISTS',
  EINVAL: 'INVALID_ARGUMENT',
  EMFILE: 'RESOURCE_EXHAUSTED',
  ENFILE: 'RESOURCE_EXHAUSTED',
  ENODEV: 'UNIMPLEMENTED',
  ENOENT: 'NOT_FOUND',
  ENOMEM: 'RESOURCE_EXHAUSTED',
  ENOSPC: 'RESOURCE_EXHAUSTED',
  ENOSYS: 'UNIMPLEMENTED',
  ENOTBLK: 'UNIMPLEMENTED',
  ENOTDIR: 'INVALID_ARGUMENT',
  EOPNOTSUPP: 'UNIMPLEMENTED',
  EPERM: 'PERMISSION_DENIED',
  ESRCH: 'NOT_FOUND',
}

/** `result` if the call `what` succeeded, else throws what errno says. Must follow the call at once: errno is the thread's. */
function checked(result: number, what: string, path?: string): number {
  if (result >= 0) return result
  const number = koffi.errno()
  const errno = errnoNames.get(number) ?? `errno ${number}`
  throw new KernelError(codeOfErrno[errno] ?? 'INTERNAL', `${what} failed with ${errno}`, {
    syscall: what.split(' ', 1)[0],
    errno,
    path,
  })
}

/** One mount(2). Throws KernelError; its facts name the errno. */
export function mount(request: {
  source?: string
  target: string
  type?: string
  flags: number
  options?: string
}): void {
  const { source, target, type, flags, options } = request
  if (options !== undefined && Buffer.byteLength(options) >= MOUNT_OPTIONS_MAX) {
    throw new KernelError(
      'INVALID_ARGUMENT',
      `mount of ${type ?? 'a bind'} at ${target} has ${Buffer.byteLength(options)} bytes of options, the kernel takes ${MOUNT_OPTIONS_MAX - 1}: use mountFileSystem, which passes them one by one`,
      { target },
    )
  }
  checked(
    libc().mount(source ?? null, target, type ?? null, flags, options ?? null),
    `mount of ${type ?? source ?? 'flags'} at ${target}`,
    target,
  )
}

/** One umount2(2). Throws KernelError INVALID_ARGUMENT if nothing is mounted at `target`. */
export function umount(target: string, flags: number): void {
  checked(libc().umount2(target, flags), `umount2 of ${target}`, target)
}

/** A new file system context for `type`, as a file descriptor to configure and to close: fsopen(2). */
export function fsopen(type: string): number {
  return checked(libc().fsopen(SYS_FSOPEN, type, FSOPEN_CLOEXEC), `fsopen of ${type}`)
}

/** Sets option `key` of a context; without a value it is a flag: fsconfig(2). */
export function fsconfigSet(context: number, key: string, value?: string): void {
  const command = value === undefined ? FSCONFIG_SET_FLAG : FSCONFIG_SET_STRING
  checked(
    libc().fsconfig(SYS_FSCONFIG, context, command, key, value ?? null, 0),
    `fsconfig of ${key}${value === undefined ? '' : `=${value}`}`,
    value,
  )
}

/** Makes the file system that a context describes: fsconfig(2) with FSCONFIG_CMD_CREATE. Throws KernelError. */
export function fsconfigCreate(context: number): void {
  checked(libc().fsconfig(...createArguments(context)), 'fsconfig of the finished options')
}

/** The same in another thread. Rejects with KernelError, whose errno is not known. */
export async function fsconfigCreateElsewhere(context: number): Promise<void> {
  const result = await elsewhere(libc().fsconfig, ...createArguments(context))
  if (result < 0) throw failedElsewhere('fsconfig of the finished options')
}

function createArguments(context: number): Parameters<Libc['fsconfig']> {
  return [SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, null, null, 0]
}

/** A detached mount of a made file system, as a file descriptor: fsmount(2). */
export function fsmount(context: number, attributes: { readOnly: boolean }): number {
  const flags = attributes.readOnly ? MOUNT_ATTR_RDONLY : 0
  return checked(libc().numeric(SYS_FSMOUNT, context, FSMOUNT_CLOEXEC, flags), 'fsmount')
}

/**
 * Attaches a detached mount at a directory: move_mount(2). In another thread: whoever mounts or unmounts at the same time is waited for.
 * Rejects with KernelError.
 */
export async function moveMount(detached: number, target: string): Promise<void> {
  const call: Parameters<Libc['moveMount']> = [
    SYS_MOVE_MOUNT,
    detached,
    '',
    AT_FDCWD,
    target,
    MOVE_MOUNT_F_EMPTY_PATH,
  ]
  if ((await elsewhere(libc().moveMount, ...call)) >= 0) return
  // errno is the other thread's: once more in this one, to learn it.
  checked(libc().moveMount(...call), `move_mount to ${target}`, target)
}

/**
 * A copy of the mount at `path`, without what is mounted below it, that is nowhere in the tree: open_tree(2). Give it to `moveMount`, and
 * close it. Throws KernelError.
 */
export function copyMount(path: string): number {
  const flags = OPEN_TREE_CLONE | O_CLOEXEC
  return checked(libc().openTree(SYS_OPEN_TREE, AT_FDCWD, path, flags), `open_tree ${path}`, path)
}

/** Makes a copied mount read-only, with owners shifted by the user namespace of that descriptor: mount_setattr(2). Throws KernelError. */
export function shiftMount(detached: number, userNamespace: number): void {
  const attributes = BigUint64Array.of(
    BigInt(MOUNT_ATTR_IDMAP | MOUNT_ATTR_RDONLY),
    0n,
    0n,
    BigInt(userNamespace),
  )
  checked(
    libc().mountSetattr(
      SYS_MOUNT_SETATTR,
      detached,
      '',
      AT_EMPTY_PATH,
      attributes,
      attributes.byteLength,
    ),
    `mount_setattr of descriptor ${detached}`,
  )
}

/** Gives the bytes of `range` back to the file system; they read as zeros and the file keeps its size: fallocate(2). */
export function punchHole(fd: number, range: ByteRange): void {
  checked(
    libc().fallocate(
      fd,
      FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
      range.start,
      range.end - range.start,
    ),
    `fallocate of a hole at ${range.start} to ${range.end}`,
  )
}

/** Lets go of the pages of a file that are in memory, clean and not mapped, so that the disk is read next: posix_fadvise(3). */
export function dropCached(fd: number): void {
  // The error is returned, and errno is not set. Advice that is not taken does no harm.
  libc().fadvise(fd, 0, 0, POSIX_FADV_DONTNEED)
}

/** One ioctl(2) with a number. Returns what the kernel does. Throws KernelError; its facts name the errno. */
export function ioctl(fd: number, request: { name: string; code: number }, value: number): number {
  return checked(libc().ioctl(fd, request.code, value), `ioctl ${request.name}`)
}

/** One ioctl(2) with memory, which the kernel may write to. Throws KernelError; its facts name the errno. */
export function ioctlBytes(
  fd: number,
  request: { name: string; code: number },
  bytes: Uint8Array,
): void {
  checked(libc().ioctlBytes(fd, request.code, bytes), `ioctl ${request.name}`)
}

/** The same in another thread. Whoever needs the errno of a failure makes the call once more in this one. */
export async function ioctlBytesElsewhere(
  fd: number,
  request: { name: string; code: number },
  bytes: Uint8Array,
): Promise<boolean> {
  return (await elsewhere(libc().ioctlBytes, fd, request.code, bytes)) >= 0
}

/**
 * The same as `ioctl` in another thread, for calls that wait for reads which this process answers. Rejects with KernelError, whose
 * errno is not known: it is the other thread's.
 */
export async function ioctlElsewhere(
  fd: number,
  request: { name: string; code: number },
  value: number,
): Promise<void> {
  const result = await elsewhere(libc().ioctl, fd, request.code, value)
  if (result < 0) throw failedElsewhere(`ioctl ${request.name}`)
}

/** What a call returns that is made in one of libuv's threads. */
async function elsewhere<Call extends (...parameters: never[]) => number>(
  call: KoffiFunc<Call>,
  ...parameters: Parameters<Call>
): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>()
  const done = (error: unknown, result: number): void => {
    if (error === null || error === undefined) resolve(result)
    else reject(error)
  }
  call.async(...parameters, done)
  return await promise
}

function failedElsewhere(what: string): KernelError {
  return new KernelError('INTERNAL', `${what} failed`, { syscall: what.split(' ', 1)[0] })
}

/** The wall clock in nanoseconds since the epoch, of which Node tells the milliseconds only: clock_gettime(2). */
export function wallClockNs(): bigint {
  const timespec = new BigInt64Array(2)
  checked(libc().clockGettime(CLOCK_REALTIME, timespec), 'clock_gettime')
  const [seconds = 0n, nanoseconds = 0n] = timespec
  return seconds * 1_000_000_000n + nanoseconds
}

/** A file descriptor for process `pid`: pidfd_open(2). Throws KernelError NOT_FOUND if there is none. */
export function pidfdOpen(pid: number): number {
  return checked(libc().numeric(SYS_PIDFD_OPEN, pid, 0, 0), `pidfd_open of process ${pid}`)
}

/** A copy, close-on-exec, of file descriptor `fd` of the process behind `pidfd`: pidfd_getfd(2). */
export function pidfdGetfd(pidfd: number, fd: number): number {
  return checked(libc().numeric(SYS_PIDFD_GETFD, pidfd, fd, 0), `pidfd_getfd of descriptor ${fd}`)
}

/**
 * Sends one datagram to a Unix socket, as sd_notify(3) does, and with it a copy of `descriptor` if one is given; Node knows Unix sockets
 * for streams only. A path that starts with `@` is in the abstract namespace. Throws KernelError, at once also when the receiver's queue
 * is full.
 */
export function sendDatagram(socketPath: string, text: string, descriptor?: number): void {
  const path = Buffer.from(socketPath.replace(/^@/, '\0'))
  if (path.length >= UNIX_PATH_MAX) {
    throw new KernelError(
      'INVALID_ARGUMENT',
      `socket path ${socketPath} is ${path.length} bytes long, the kernel takes ${UNIX_PATH_MAX - 1}`,
      { path: socketPath },
    )
  }
  const { socket, sendmsg } = libc()
  const fd = checked(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), 'socket', socketPath)
  try {
    const address = Buffer.concat([Buffer.from(Uint16Array.of(AF_UNIX).buffer), path])
    const bytes = Buffer.from(text)
    const control = descriptor === undefined ? null : rightsTo(descriptor)
    const message = {
      msg_name: address,
      msg_namelen: address.length,
      msg_iov: [{ iov_base: bytes, iov_len: bytes.length }],
      msg_iovlen: 1,
      msg_control: control,
      msg_controllen: control?.length ?? 0,
      msg_flags: 0,
    }
    checked(
      sendmsg(fd, message, MSG_NOSIGNAL | MSG_DONTWAIT),
      `sendmsg to ${socketPath}`,
      socketPath,
    )
  } finally {
    closeSync(fd)
  }
}

/** The control message by which the receiver gets a copy of a descriptor: unix(7), cmsg(3). */
function rightsTo(descriptor: number): Buffer {
  const control = Buffer.alloc(CMSG_ONE_FD_SPACE)
  control.writeBigUInt64LE(BigInt(CMSG_ONE_FD_BYTES), 0)
  control.writeInt32LE(SOL_SOCKET, 8)
  control.writeInt32LE(SCM_RIGHTS, 12)
  control.writeInt32LE(descriptor, 16)
  return control
}

/** Whether the file behind a descriptor is in error, as /dev/fuse is without a connection: poll(2). Throws KernelError. */
export function isInError(fd: number): boolean {
  const entry = Buffer.alloc(POLLFD_BYTES)
  entry.writeInt32LE(fd, 0)
  checked(libc().poll(entry, 1, 0), `poll of descriptor ${fd}`)
  return (entry.readInt16LE(6) & POLLERR) !== 0
}

type MallocTrim = KoffiFunc<(pad: number) => number>
let mallocTrim: MallocTrim | undefined

/**
 * Gives memory that was freed and that malloc keeps for later back to the kernel: malloc_trim(3), a few tens of
 * milliseconds for 100 MB. Does nothing on musl, which has no such call.
 */
export function trimMalloc(): void {
  try {
    mallocTrim ??= koffi.load(null).func('int malloc_trim(size_t pad)') as MallocTrim
  } catch {
    return
  }
  mallocTrim(0)
}
