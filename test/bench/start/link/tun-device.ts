import { closeSync, constants, openSync, readSync, writeSync } from 'node:fs'
import { ioctl, ioctlBytes } from '../../../../snapshotter/kernel/libc.ts'

// linux/if_tun.h; the numbers of _IOW('T', n, int) are the same on x86-64 and arm64.
const TUNSETIFF = { name: 'TUNSETIFF', code: 0x4004_54ca }
const TUNSETOFFLOAD = { name: 'TUNSETOFFLOAD', code: 0x4004_54d0 }
const IFF_TUN = 0x0001
const IFF_NO_PI = 0x1000
const IFF_VNET_HDR = 0x4000
const TUN_F_CSUM = 0x01
const TUN_F_TSO4 = 0x02

/** Bytes of `struct ifreq`; the flags stand behind the 16 of the name. */
const IFREQ_BYTES = 40
const IFNAME_BYTES = 16

/** The largest packet, 64 KiB, with the kernel's header before it. */
const PACKET_BYTES_MAX = 65_536 + 64

/**
 * A network device whose packets we carry. The kernel leaves them as large as TCP made them (TSO), so that a gigabit is a few
 * thousand packets a second, while TCP counts in segments of 1,500 bytes as it does on a wire.
 */
export class TunDevice implements Disposable {
  readonly fd: number
  readonly #buffer = Buffer.alloc(PACKET_BYTES_MAX)

  /** Makes the device in the network namespace of this process; it is gone once it is closed. Throws KernelError. */
  constructor(name: string) {
    this.fd = openSync('/dev/net/tun', constants.O_RDWR | constants.O_NONBLOCK)
    const request = Buffer.alloc(IFREQ_BYTES)
    request.write(name, 0, IFNAME_BYTES - 1)
    request.writeUInt16LE(IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, IFNAME_BYTES)
    try {
      ioctlBytes(this.fd, TUNSETIFF, request)
      ioctl(this.fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    } catch (error) {
      closeSync(this.fd)
      throw error
    }
  }

  /** The next packet that the kernel wants carried; undefined if there is none. */
  read(): Buffer | undefined {
    try {
      return Buffer.from(this.#buffer.subarray(0, readSync(this.fd, this.#buffer)))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EAGAIN') return undefined
      throw error
    }
  }

  /** Hands a packet to the kernel, as one that came by this device. */
  write(packet: Uint8Array): void {
    try {
      writeSync(this.fd, packet)
    } catch (error) {
      // EIO: the device is not up yet. EINVAL: not a packet that the kernel likes. A wire would lose both.
      const { code = '' } = error as NodeJS.ErrnoException
      if (!['EIO', 'EINVAL', 'EAGAIN', 'ENOBUFS'].includes(code)) throw error
    }
  }

  [Symbol.dispose](): void {
    closeSync(this.fd)
  }
}
