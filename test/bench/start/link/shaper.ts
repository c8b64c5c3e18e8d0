import { readSync, writeSync } from 'node:fs'
import { ShapedQueue } from './shaped-queue.ts'
import { TunDevice } from './tun-device.ts'
import { parseTunPacket, requestIn } from './tun-packet.ts'
import { ReadableWait } from './wait-readable.ts'

// A link between two network devices, as a process of its own: `node shaper.ts NEAR FAR` makes both devices in its network namespace,
// whoever started it moves one of them elsewhere. It does nothing but wait, carry, and obey lines of JSON on standard input, so
// that a packet is late by microseconds; it ends with that input.

/** What the shaper is told, a line each. */
export type ShaperOrder =
  /** What the link is like from now on. */
  | { readonly kind: 'shape'; readonly bitsPerSecond: number; readonly delayMs: number }
  /** Forget what was counted. */
  | { readonly kind: 'reset' }
  | { readonly kind: 'count' }

/** What was carried since the last reset; the answer to every order. */
export type LinkCount = {
  /** From the near device to the far one, and back. */
  readonly up: DirectionCount
  readonly down: DirectionCount
  /** Connections that the near side opened. */
  readonly connections: number
  /** HTTP requests of the near side in the clear, in order. */
  readonly requests: readonly LinkRequest[]
}

type DirectionCount = {
  /** Headers included. */
  readonly bytes: number
  readonly segments: number
  /** Packets for which there was no room. */
  readonly dropped: number
}

type LinkRequest = {
  /** Since the reset, in ms. */
  readonly at: number
  /** Method, path and range. */
  readonly line: string
}

/** Requests that are remembered; a start of stargz has a few hundred, one that reads its whole image some thousands. */
const REQUESTS_MAX = 100_000
/** Bytes of orders read at once; one has less than a hundred. */
const ORDER_BYTES = 4096

const STANDARD_INPUT = 0
const STANDARD_OUTPUT = 1
/** Places of the descriptors that are waited for. */
const [NEAR, FAR, ORDERS] = [0, 1, 2] as const

class Direction {
  readonly from: TunDevice
  readonly to: TunDevice
  readonly queue = new ShapedQueue<Buffer>({ bitsPerSecond: 1e12, delayMs: 0 })
  bytes = 0
  segments = 0
  dropped = 0

  constructor(from: TunDevice, to: TunDevice) {
    this.from = from
    this.to = to
  }

  get count(): DirectionCount {
    return { bytes: this.bytes, segments: this.segments, dropped: this.dropped }
  }
}

class Shaper {
  readonly #up: Direction
  readonly #down: Direction
  #requests: LinkRequest[] = []
  #seen = new Set<string>()
  #connections = 0
  #resetAt = performance.now()

  constructor(near: TunDevice, far: TunDevice) {
    this.#up = new Direction(near, far)
    this.#down = new Direction(far, near)
  }

  /** Carries until standard input ends. */
  run(): void {
    const { from: near, to: far } = this.#up
    const wait = new ReadableWait([near.fd, far.fd, STANDARD_INPUT])
    let orders = ''
    const buffer = Buffer.alloc(ORDER_BYTES)
    for (;;) {
      const now = performance.now()
      for (const { queue, to } of [this.#up, this.#down]) {
        for (let packet = queue.take(now); packet !== undefined; packet = queue.take(now)) {
          to.write(packet)
        }
      }
      wait.wait(Math.min(this.#nextAt(this.#up), this.#nextAt(this.#down)) - performance.now())
      if (wait.isReadable(NEAR)) this.#read(this.#up)
      if (wait.isReadable(FAR)) this.#read(this.#down)
      if (wait.isReadable(ORDERS)) {
        const bytes = readSync(STANDARD_INPUT, buffer)
        if (bytes === 0) return
        const lines = (orders + buffer.toString('utf8', 0, bytes)).split('\n')
        orders = lines.pop() ?? ''
        for (const line of lines) this.#obey(JSON.parse(line) as ShaperOrder)
      }
    }
  }

  #nextAt({ queue }: Direction): number {
    return queue.nextAt ?? Number.POSITIVE_INFINITY
  }

  #read(direction: Direction): void {
    const bytes = direction.from.read()
    if (bytes === undefined) return
    let packet: ReturnType<typeof parseTunPacket>
    try {
      packet = parseTunPacket(bytes)
    } catch {
      // IPv6 looks for neighbours on every new device.
      return
    }
    const now = performance.now()
    if (!direction.queue.offer(bytes, packet.wireBytes, now)) {
      direction.dropped++
      return
    }
    direction.bytes += packet.wireBytes
    direction.segments += packet.segments
    if (direction === this.#up && packet.tcp !== undefined) this.#note(packet.tcp, now)
  }

  #note(tcp: NonNullable<ReturnType<typeof parseTunPacket>['tcp']>, now: number): void {
    const line = tcp.payload.length > 0 ? requestIn(tcp.payload) : undefined
    if (!tcp.opens && line === undefined) return
    // What is sent again was asked for once.
    const key = `${tcp.sourcePort} ${tcp.sequence} ${tcp.opens}`
    if (this.#seen.has(key)) return
    this.#seen.add(key)
    if (tcp.opens) this.#connections++
    else if (line !== undefined && this.#requests.length < REQUESTS_MAX) {
      this.#requests.push({ at: now - this.#resetAt, line })
    }
  }

  #obey(order: ShaperOrder): void {
    if (order.kind === 'shape') {
      for (const { queue } of [this.#up, this.#down]) queue.reshape(order)
    } else if (order.kind === 'reset') {
      for (const direction of [this.#up, this.#down]) {
        Object.assign(direction, { bytes: 0, segments: 0, dropped: 0 })
      }
      this.#requests = []
      this.#seen = new Set()
      this.#connections = 0
      this.#resetAt = performance.now()
    }
    const answer: LinkCount = {
      up: this.#up.count,
      down: this.#down.count,
      connections: this.#connections,
      requests: this.#requests,
    }
    say(answer)
  }
}

/** A pipe may take a part at a time. */
function say(document: object): void {
  let rest = Buffer.from(`${JSON.stringify(document)}\n`)
  while (rest.length > 0) {
    try {
      rest = rest.subarray(writeSync(STANDARD_OUTPUT, rest))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error
    }
  }
}

const [nearName = '', farName = ''] = process.argv.slice(2)
using near = new TunDevice(nearName)
using far = new TunDevice(farName)
// Both exist: whoever started us may move them.
say({})
new Shaper(near, far).run()
