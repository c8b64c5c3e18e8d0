type Random = (max: number) => number

/** Numbers at which parsers go wrong: the ends of integer types, and of what a double holds exactly. */
const EDGES = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]

const VALUES: readonly unknown[] = [
  null,
  true,
  '',
  0,
  -1,
  0.5,
  1e308,
  2 ** 53,
  [],
  {},
  'a'.repeat(300),
  '../../etc/passwd',
  '\0',
  '\u{10ffff}',
  'sha256:0',
  ['x', 1, null],
]

/** One to four changes of `input`; `other` is where foreign bytes are taken from. */
export function mutateBytes(
  random: Random,
  input: Uint8Array,
  other: Uint8Array,
): Buffer<ArrayBuffer> {
  let bytes = Buffer.from(input)
  for (let left = 1 + random(4); left > 0; left--) bytes = mutateOnce(random, bytes, other)
  return bytes
}

function mutateOnce(
  random: Random,
  bytes: Buffer<ArrayBuffer>,
  other: Uint8Array,
): Buffer<ArrayBuffer> {
  const at = random(bytes.length + 1)
  const end = Math.min(bytes.length, at + 1 + random(random(4) === 0 ? 4096 : 16))
  switch (random(9)) {
    case 0:
      return bytes.subarray(0, at)
    case 1:
      return Buffer.concat([bytes.subarray(0, at), bytes.subarray(end)])
    case 2:
      return Buffer.concat([bytes.subarray(0, end), bytes.subarray(at)])
    case 3: {
      const from = random(other.length + 1)
      return Buffer.concat([
        bytes.subarray(0, at),
        other.subarray(from, from + 1 + random(64)),
        bytes.subarray(end),
      ])
    }
    case 4: {
      const edge = EDGES[random(EDGES.length)] ?? 0
      for (let byte = at; byte < Math.min(at + 8, bytes.length); byte++) {
        bytes[byte] = byte - at < 4 ? (edge >>> (8 * (byte - at))) & 0xff : 0
      }
      return bytes
    }
    case 5:
      bytes.fill(random(2) === 0 ? 0 : 0xff, at, end)
      return bytes
    default:
      if (at < bytes.length) bytes[at] = (bytes[at] ?? 0) ^ (1 << random(8))
      return bytes
  }
}

/** JSON in which one to three values were exchanged, removed or doubled, or whose text was changed. */
export function mutateJson(
  random: Random,
  input: Uint8Array,
  other: Uint8Array,
): Buffer<ArrayBuffer> {
  if (random(4) === 0) return mutateBytes(random, input, other)
  const document = JSON.parse(Buffer.from(input).toString()) as unknown
  const changed = { document }
  for (let left = 1 + random(3); left > 0; left--) {
    const places = placesIn(changed)
    const { holder, name } = places[random(places.length)] ?? { holder: changed, name: 'document' }
    const held = holder as Record<string, unknown>
    const way = random(8)
    if (way === 0) delete held[name]
    else if (way === 1) held[name] = [held[name], structuredClone(held[name])]
    else if (way === 2) held[name] = { [name]: held[name] }
    else if (way === 3 && typeof held[name] === 'string')
      held[name] = mutateText(random, held[name])
    else if (way === 4 && typeof held[name] === 'number')
      held[name] *= [-1, 2, 0.1, 2 ** 40][random(4)] ?? 1
    else held[name] = structuredClone(VALUES[random(VALUES.length)])
  }
  return Buffer.from(JSON.stringify(changed.document) ?? '')
}

/** One to four characters of a text exchanged, removed or added. */
export function mutateText(random: Random, text: string): string {
  let changed = text
  for (let left = 1 + random(4); left > 0; left--) {
    const at = random(changed.length + 1)
    const foreign =
      [String.fromCodePoint(random(0x300)), '/', ':', '@', '"', '\\', '..', '', '%00', ' '][
        random(10)
      ] ?? ''
    changed = changed.slice(0, at) + foreign + changed.slice(at + random(3))
  }
  return changed
}

function placesIn(value: unknown): { holder: object; name: string }[] {
  if (typeof value !== 'object' || value === null) return []
  return Object.entries(value).flatMap(([name, child]) => [
    { holder: value, name },
    ...placesIn(child),
  ])
}
