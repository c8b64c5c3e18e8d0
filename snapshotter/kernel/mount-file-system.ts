import { closeSync, readSync } from 'node:fs'
import { KernelError } from '../errors.ts'
import {
  FSCONFIG_VALUE_MAX,
  fsconfigCreate,
  fsconfigCreateElsewhere,
  fsconfigSet,
  fsmount,
  fsopen,
  moveMount,
} from './libc.ts'

export type FileSystemMount = {
  readonly type: string
  /** An existing directory. */
  readonly target: string
  /** Options in order, a key may repeat; without a value it is a flag. `source` is one of them. */
  readonly options: readonly (readonly [key: string, value?: string])[]
  readonly readOnly: boolean
}

/**
 * Mounts a file system through fsopen(2) and fsconfig(2): no loop device behind our back as mount(8) makes, no option page
 * of 4096 bytes, and the kernel's own words in the error. What takes long is done in other threads.
 * Rejects with KernelError; nothing is left mounted then.
 */
export async function mountFileSystem(request: FileSystemMount): Promise<void> {
  const { type, target, options } = request
  for (const [key, value] of options) {
    if (value !== undefined && Buffer.byteLength(value) >= FSCONFIG_VALUE_MAX) {
      throw new KernelError(
        'INVALID_ARGUMENT',
        `mount of ${type} at ${target}: ${key} is ${Buffer.byteLength(value)} bytes long, the kernel takes ${FSCONFIG_VALUE_MAX - 1}: choose shorter paths`,
        { target, option: key, value },
      )
    }
  }
  try {
    await mountBy(request, fsconfigCreateElsewhere)
  } catch (error) {
    if (!(error instanceof KernelError)) throw error
    // errno is the other thread's, and a context that failed is of no more use: all of it once more in this one, to learn it.
    await mountBy(request, fsconfigCreate)
  }
}

async function mountBy(
  { type, target, options, readOnly }: FileSystemMount,
  create: (context: number) => void | Promise<void>,
): Promise<void> {
  const context = fsopen(type)
  try {
    for (const [key, value] of options) fsconfigSet(context, key, value)
    await create(context)
    const detached = fsmount(context, { readOnly })
    try {
      await moveMount(detached, target)
    } finally {
      closeSync(detached)
    }
  } catch (error) {
    if (!(error instanceof KernelError)) throw error
    const said = contextLog(context)
    throw new KernelError(
      error.code,
      `mount of ${type} at ${target}: ${error.message}${said === '' ? '' : ` (kernel: ${said})`}`,
      { ...error.facts, target },
      error,
    )
  } finally {
    closeSync(context)
  }
}

/** What the kernel wrote for this mount alone, `; ` between messages: each read(2) of the context is one message. */
function contextLog(context: number): string {
  const messages: string[] = []
  const buffer = Buffer.alloc(1024)
  for (;;) {
    let length = 0
    try {
      length = readSync(context, buffer)
    } catch {
      break // ENODATA: no message is left. The mount's own error is the one to report.
    }
    if (length === 0) break
    messages.push(
      buffer
        .toString('utf8', 0, length)
        .replace(/^[ewi] /, '')
        .trim(),
    )
  }
  return messages.join('; ')
}
