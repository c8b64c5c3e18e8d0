/** Repeatable random whole numbers: `seeded(n)` gives a function that answers 0 up to, not including, `max`. */
export function seeded(seed: number): (max: number) => number {
  // mulberry32: 32 bits of state, good enough to vary test inputs.
  let state = seed >>> 0
  return (max) => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * max)
  }
}
