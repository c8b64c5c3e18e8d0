import koffi, { type KoffiFunc } from 'koffi'

// ppoll(2): Node waits for devices in a pool of threads, and sleeps in whole milliseconds. A link of 1 ms wants neither.

type Ppoll = KoffiFunc<
  (fds: Uint8Array, count: number, timeout: Uint8Array, mask: Uint8Array | null) => number
>

const POLLIN = 0x0001
/** Bytes of `struct pollfd`: descriptor, events asked for, events seen. */
const POLLFD_BYTES = 8
/** What happens between two looks at the clock is never longer than this, in ms. */
const WAIT_MS_MAX = 1000

/** Waits in the kernel until one of a few file descriptors can be read, or a time is over; blocks the thread. */
export class ReadableWait {
  readonly #ppoll: Ppoll
  readonly #fds: Buffer
  readonly #timeout: Buffer = Buffer.alloc(16)

  constructor(fds: readonly number[]) {
    this.#ppoll = koffi
      .load(null)
      .func(
        'int ppoll(_Inout_ uint8_t *fds, unsigned long count, const uint8_t *timeout, const uint8_t *mask)',
      ) as Ppoll
    this.#fds = Buffer.alloc(fds.length * POLLFD_BYTES)
    for (const [index, fd] of fds.entries()) {
      this.#fds.writeInt32LE(fd, index * POLLFD_BYTES)
      this.#fds.writeInt16LE(POLLIN, index * POLLFD_BYTES + 4)
    }
  }

  /** Waits so many ms at most, to the microsecond. What is readable then is told by `isReadable`. */
  wait(ms: number): void {
    const ns = Math.round(Math.min(Math.max(ms, 0), WAIT_MS_MAX) * 1e6)
    this.#timeout.writeBigInt64LE(BigInt(Math.floor(ns / 1e9)), 0)
    this.#timeout.writeBigInt64LE(BigInt(ns % 1e9), 8)
    // Less than 0 is EINTR alone; then nothing is readable.
    if (this.#ppoll(this.#fds, this.#fds.length / POLLFD_BYTES, this.#timeout, null) <= 0) {
      for (let at = 6; at < this.#fds.length; at += POLLFD_BYTES) this.#fds.writeInt16LE(0, at)
    }
  }

  /** Whether the descriptor at this place can be read, or has come to its end. */
  isReadable(index: number): boolean {
    return this.#fds.readInt16LE(index * POLLFD_BYTES + 6) !== 0
  }
}
