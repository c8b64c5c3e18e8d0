/** Hosts that are remembered. 10,000 of some 100 bytes; one that is forgotten begins anew. */
const HOSTS_MAX = 10_000

/** How many requests a host may send: so many a second, and twice as many at once after a pause. */
export class RequestRate {
  readonly #perSecond: number
  readonly #nowMs: () => number
  /** What is left to each, and when that was. The first was asked for longest ago. */
  readonly #hosts = new Map<string, { left: number; atMs: number }>()

  constructor(perSecond: number, nowMs: () => number = () => performance.now()) {
    this.#perSecond = perSecond
    this.#nowMs = nowMs
  }

  /** Whether one more request of `host` is taken now. */
  takes(host: string): boolean {
    const nowMs = this.#nowMs()
    const most = this.#perSecond * 2
    const known = this.#hosts.get(host) ?? { left: most, atMs: nowMs }
    const gained = ((nowMs - known.atMs) / 1_000) * this.#perSecond
    const left = Math.min(most, known.left + gained)
    const isTaken = left >= 1
    this.#hosts.delete(host)
    this.#hosts.set(host, { left: isTaken ? left - 1 : left, atMs: nowMs })
    const [oldest] = this.#hosts.keys()
    if (this.#hosts.size > HOSTS_MAX && oldest !== undefined) this.#hosts.delete(oldest)
    return isTaken
  }
}
