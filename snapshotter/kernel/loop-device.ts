import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { KernelError } from '../errors.ts'
import { ioctl, ioctlBytes, ioctlBytesElsewhere, ioctlElsewhere } from './libc.ts'

// linux/loop.h. LOOP_CONFIGURE is of Linux 5.8.
const LOOP_CHANGE_FD = { name: 'LOOP_CHANGE_FD', code: 0x4c06 } as const
const LOOP_GET_STATUS64 = { name: 'LOOP_GET_STATUS64', code: 0x4c05 } as const
const LOOP_CONFIGURE = { name: 'LOOP_CONFIGURE', code: 0x4c0a } as const
const LOOP_CTL_GET_FREE = { name: 'LOOP_CTL_GET_FREE', code: 0x4c82 } as const
const LO_FLAGS_READ_ONLY = 1
const LO_FLAGS_AUTOCLEAR = 4
const LO_FLAGS_DIRECT_IO = 16

/** struct loop_config: fd and block_size, loop_info64, eight reserved numbers of 64 bits. */
const CONFIG_BYTES = 304
const CONFIG_INFO_AT = 8
/** struct loop_info64, and where its fields are. */
const INFO_BYTES = 232
const INFO_FLAGS_AT = 52
const INFO_FILE_NAME_AT = 56
const FILE_NAME_BYTES = 64

/** What a loop device reads in: 512-byte sectors. What is beyond the last whole one of its file does not exist. */
export const LOOP_SECTOR_BYTES = 512

/** How often a device that another process was faster to take is looked for anew. 64: so many start loops at one time nowhere. */
const ATTEMPTS_MAX = 64

const CONTROL = '/dev/loop-control'
const BLOCK_FOLDER = '/sys/block'

/** A loop device that is attached to a file. */
export type LoopDevice = {
  /** `/dev/loop7` */
  readonly path: string
  /** What `attachLoop` was given. */
  readonly tag: string
  /** The file that it reads now; only the end of its path if it lies on a mount that was taken out of the tree. */
  readonly backingPath: string
}

/**
 * Attaches a file to a free loop device, read-only. The device frees itself when the last who has it open, such as a file system
 * mounted from it, lets go: dispose of the handle once that is so. `tag`, at most 63 bytes, finds it again. Rejects with KernelError.
 */
export async function attachLoop(
  backingPath: string,
  { tag, direct }: { readonly tag: string; readonly direct: boolean },
): Promise<Disposable & { readonly path: string }> {
  const name = Buffer.from(tag)
  if (name.length >= FILE_NAME_BYTES) {
    throw new KernelError('INVALID_ARGUMENT', `tag ${tag} has ${name.length} bytes`, { tag })
  }
  using opened = new DisposableStack()
  const control = openFile(CONTROL, opened)
  const backing = openFile(backingPath, opened)
  for (let attempt = 0; ; attempt++) {
    const path = `/dev/loop${ioctl(control, LOOP_CTL_GET_FREE, 0)}`
    const device = openSync(path, 'r')
    const config = Buffer.alloc(CONFIG_BYTES)
    config.writeUInt32LE(backing, 0)
    const flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | (direct ? LO_FLAGS_DIRECT_IO : 0)
    config.writeUInt32LE(flags, CONFIG_INFO_AT + INFO_FLAGS_AT)
    name.copy(config, CONFIG_INFO_AT + INFO_FILE_NAME_AT)
    try {
      // The only call of these that may take long: the kernel waits for whoever uses the device's queue.
      if (!(await ioctlBytesElsewhere(device, LOOP_CONFIGURE, config)))
        ioctlBytes(device, LOOP_CONFIGURE, config)
    } catch (error) {
      closeSync(device)
      // Somebody else has taken it meanwhile.
      const isTaken = error instanceof KernelError && error.facts['errno'] === 'EBUSY'
      if (isTaken && attempt < ATTEMPTS_MAX) continue
      throw error
    }
    return { path, [Symbol.dispose]: () => closeSync(device) }
  }
}

/**
 * Has a device read another file from now on, one of the same size and bytes; who has the device open sees nothing of it. Waits
 * for reads of the old file that are on their way. Rejects with KernelError.
 */
export async function changeLoopFile(devicePath: string, backingPath: string): Promise<void> {
  // Opened elsewhere too: whoever answers for the file may need this thread.
  await using device = await open(devicePath)
  await using backing = await open(backingPath)
  await ioctlElsewhere(device.fd, LOOP_CHANGE_FD, backing.fd)
}

/** Every attached loop device of this machine whose tag starts so. */
export function listLoops(tagPrefix: string): LoopDevice[] {
  return readdirSync(BLOCK_FOLDER)
    .filter((name) => name.startsWith('loop'))
    .flatMap((name) => {
      const backingPath = backingOf(name)
      const tag = backingPath === undefined ? undefined : tagOf(`/dev/${name}`)
      if (backingPath === undefined || tag?.startsWith(tagPrefix) !== true) return []
      return { path: `/dev/${name}`, tag, backingPath }
    })
}

/** Undefined if the device is not attached. */
function backingOf(name: string): string | undefined {
  try {
    return readFileSync(`${BLOCK_FOLDER}/${name}/loop/backing_file`, 'utf8').replace(/\n$/, '')
  } catch {
    return undefined
  }
}

/** Undefined if the device has been freed meanwhile. */
function tagOf(devicePath: string): string | undefined {
  const info = Buffer.alloc(INFO_BYTES)
  try {
    using opened = new DisposableStack()
    ioctlBytes(openFile(devicePath, opened), LOOP_GET_STATUS64, info)
  } catch {
    return undefined
  }
  const name = info.subarray(INFO_FILE_NAME_AT, INFO_FILE_NAME_AT + FILE_NAME_BYTES)
  return name.toString('utf8').replace(/\0.*$/s, '')
}

function openFile(path: string, opened: DisposableStack): number {
  const fd = openSync(path, 'r')
  opened.defer(() => closeSync(fd))
  return fd
}
