/** Bytes as layers have them: words, noise, runs, and copies of what came up to 40,000 bytes before. */
export function layerSample(random: (max: number) => number, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  let end = 0
  while (end < length) {
    const count = Math.min(length - end, 1 + random(random(10) === 0 ? 3000 : 60))
    switch (random(4)) {
      case 0:
        for (let i = 0; i < count; i++) bytes[end + i] = random(256)
        break
      case 1:
        bytes.fill(random(256), end, end + count)
        break
      case 2:
        for (let i = 0; i < count; i++) bytes[end + i] = 'etaoin shrdlu\n'.charCodeAt(random(14))
        break
      default: {
        const from = Math.max(0, end - 1 - random(40_000))
        for (let i = 0; i < count; i++) bytes[end + i] = bytes[from + i]!
      }
    }
    end += count
  }
  return bytes
}

/** `bytes` in pieces of 1 up to `max` bytes. */
export function* inPieces(
  bytes: Uint8Array,
  { random, max }: { random: (max: number) => number; max: number },
): Generator<Uint8Array> {
  for (let at = 0; at < bytes.length; ) {
    const end = Math.min(bytes.length, at + 1 + random(max))
    yield bytes.subarray(at, end)
    at = end
  }
}

/** Binary digits in the order of a deflate stream's bits, as bytes; spaces are for the reader. */
export function bitsToBytes(bits: string): Uint8Array {
  const digits = bits.replaceAll(/\s/g, '')
  const bytes = new Uint8Array(Math.ceil(digits.length / 8))
  for (let i = 0; i < digits.length; i++) bytes[i >> 3]! |= Number(digits[i]) << (i & 7)
  return bytes
}
