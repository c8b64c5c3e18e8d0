/** What a link is like, the same in both directions. */
export type LinkProfile = {
  /** By which `--links` finds it. */
  readonly name: string
  /** In bits a second, headers of IP and TCP included. */
  readonly bitsPerSecond: number
  /** Of an empty link, in ms. */
  readonly roundTripMs: number
}

/** A machine room, a city away, a continent away by a poor line. */
export const LINKS: readonly LinkProfile[] = [
  { name: '1g', bitsPerSecond: 1e9, roundTripMs: 1 },
  { name: '100m', bitsPerSecond: 100e6, roundTripMs: 20 },
  { name: '20m', bitsPerSecond: 20e6, roundTripMs: 80 },
]

/** As fast as the machine moves packets: for what is prepared before anything is measured. */
export const UNSHAPED: LinkProfile = { name: 'unshaped', bitsPerSecond: 1e12, roundTripMs: 0 }

/** Round trips that no start does without: one for the connection, one for what the image is made of, one for the first byte. */
const ROUND_TRIPS = 3

/** The least time, in ms, in which anybody could have moved so many bytes to a node that knew nothing but a name. */
export function physicalLimitMs(bytes: number, link: LinkProfile): number {
  return ((bytes * 8) / link.bitsPerSecond) * 1000 + ROUND_TRIPS * link.roundTripMs
}
