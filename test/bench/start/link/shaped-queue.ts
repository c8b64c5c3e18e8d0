/** A direction of a link: how fast, how far, and how much may wait. */
export type QueueShape = {
  readonly bitsPerSecond: number
  /** From the last bit sent to its arrival, in ms. */
  readonly delayMs: number
}

/**
 * How much may wait to be sent, in ms of the link's own speed; what comes then is dropped, and TCP slows down. 100 ms is what home
 * routers have at least: enough that one connection alone fills the link.
 */
const QUEUE_MS = 100
/** But never less than this, in bytes: two of the largest packets that the kernel hands over. */
const QUEUE_BYTES_MIN = 128 * 1024

type Waiting<Packet> = { readonly packet: Packet; readonly arrivesAt: number }

/**
 * One direction of a link, shared by all connections: packets leave one after the other at the link's speed, and arrive a fixed
 * time later, in the order in which they came. Times in ms, by any clock that the caller likes.
 */
export class ShapedQueue<Packet> {
  #shape: QueueShape
  #waiting: Waiting<Packet>[] = []
  #first = 0
  /** When the last bit of all that was taken will have been sent. */
  #freeAt = Number.NEGATIVE_INFINITY

  constructor(shape: QueueShape) {
    this.#shape = shape
  }

  /** Changes the link for what comes from now on; what is under way arrives at once. */
  reshape(shape: QueueShape): void {
    this.#shape = shape
    this.#freeAt = Number.NEGATIVE_INFINITY
    this.#waiting = this.#waiting
      .slice(this.#first)
      .map(({ packet }) => ({ packet, arrivesAt: Number.NEGATIVE_INFINITY }))
    this.#first = 0
  }

  /** Takes a packet of so many bytes; false if too much is waiting already, and it is dropped. */
  offer(packet: Packet, bytes: number, now: number): boolean {
    const { bitsPerSecond, delayMs } = this.#shape
    const msPerByte = 8000 / bitsPerSecond
    const startsAt = Math.max(now, this.#freeAt)
    const queueMs = Math.max(QUEUE_MS, QUEUE_BYTES_MIN * msPerByte)
    if (startsAt - now > queueMs) return false
    this.#freeAt = startsAt + bytes * msPerByte
    this.#waiting.push({ packet, arrivesAt: this.#freeAt + delayMs })
    return true
  }

  /** When the next packet arrives; undefined if none is under way. */
  get nextAt(): number | undefined {
    return this.#waiting[this.#first]?.arrivesAt
  }

  /** The next packet that has arrived by now, which is then gone. */
  take(now: number): Packet | undefined {
    const next = this.#waiting[this.#first]
    if (next === undefined || next.arrivesAt > now) return undefined
    this.#first++
    // Compacted now and then, so that taking stays cheap however many wait.
    if (this.#first === this.#waiting.length || this.#first > 1024) {
      this.#waiting = this.#waiting.slice(this.#first)
      this.#first = 0
    }
    return next.packet
  }
}
