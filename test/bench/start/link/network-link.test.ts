import { join } from 'node:path'
import { expect, test } from 'vitest'
import { runCommand } from '../../../support/run-command.ts'
import { LINKS } from './link-profile.ts'
import type { ProbedLink } from './probe-link.ts'

// Goal: a link is as fast and as long as it is said to be. Method: TCP over it, measured by a program in a network namespace of its own.
// What physics forbids must never be seen, so these bounds are exact; what a busy machine does to TCP is allowed for below.

/** Bytes that TCP carries of those that the link does: 1,448 of 1,500 in a segment. */
const PAYLOAD_SHARE = 1448 / 1500
/** Of the speed, on a machine that does other things: seen were 0.8 to 0.95, and at a load of 20 0.38 once, for the gigabit. */
const SPEED_SHARE_MIN = 0.2
/** What measuring may add to the shortest of ten round trips, in ms: seen were 0.4 to 2. */
const LATE_MS = 15

/** So that a transfer takes a second: long enough that the start of TCP does not count. */
const BYTES = { '1g': 60e6, '100m': 10e6, '20m': 2.5e6 } as const

async function probe(bits: number, rtt: number, bytes: number): Promise<ProbedLink> {
  const program = join(import.meta.dirname, 'probe-link.ts')
  const words = ['--bits', `${bits}`, '--rtt', `${rtt}`, '--bytes', `${bytes}`]
  const answer = await runCommand('unshare', ['--net', process.execPath, program, ...words], {
    signal: AbortSignal.timeout(50_000),
  })
  return JSON.parse(answer) as ProbedLink
}

test.for(LINKS)(
  'the link $name has its round trip and its speed both ways, however many share it, and no more',
  async ({ name, bitsPerSecond, roundTripMs }) => {
    const seen = await probe(bitsPerSecond, roundTripMs, BYTES[name as keyof typeof BYTES])
    expect(seen.connectMs).toBeGreaterThanOrEqual(roundTripMs)
    expect(seen.roundTripMs).toBeGreaterThanOrEqual(roundTripMs)
    expect(seen.roundTripMs).toBeLessThan(roundTripMs + LATE_MS)
    for (const speed of [seen.down, seen.up, seen.downShared]) {
      expect(speed).toBeLessThanOrEqual(bitsPerSecond * PAYLOAD_SHARE)
      expect(speed).toBeGreaterThan(bitsPerSecond * SPEED_SHARE_MIN)
    }
    expect(seen.connections).toBe(5)
    // What had to be sent twice counts, so that there is no upper bound below that.
    expect(seen.overhead).toBeGreaterThanOrEqual(1 / PAYLOAD_SHARE)
    expect(seen.overhead).toBeLessThan(1.2)
  },
)
