/**
 * Does `measure` for each arm once a round, in the other order every second round, so that what disturbs the machine for a while
 * disturbs all arms.
 */
export async function inTurn<Arm>(
  rounds: number,
  arms: readonly Arm[],
  measure: (arm: Arm, round: number) => Promise<void>,
): Promise<void> {
  for (let round = 0; round < rounds; round++) {
    for (const arm of round % 2 === 0 ? arms : arms.toReversed()) await measure(arm, round)
  }
}

/** Measures the arms in turn. Resolves to the median of each. */
export async function medians<Arm extends string>(
  rounds: number,
  arms: Readonly<Record<Arm, () => Promise<number>>>,
): Promise<Record<Arm, number>> {
  const names = Object.keys(arms) as Arm[]
  const measured = new Map<Arm, number[]>(names.map((name) => [name, []]))
  await inTurn(rounds, names, async (name) => {
    measured.get(name)?.push(await arms[name]())
  })
  return Object.fromEntries(
    names.map((name) => [name, median(measured.get(name) ?? [])]),
  ) as Record<Arm, number>
}

/** The middle one; of an even number the mean of the two in the middle. Throws RangeError for none. */
export function median(numbers: readonly number[]): number {
  const sorted = numbers.toSorted((a, b) => a - b)
  const [low, high] = [sorted[(sorted.length - 1) >> 1], sorted[sorted.length >> 1]]
  if (low === undefined || high === undefined) throw new RangeError('a median of no numbers')
  return (low + high) / 2
}

/** The smallest number that at least this share of all is not above. Throws RangeError for none. */
export function quantile(numbers: readonly number[], share: number): number {
  const sorted = numbers.toSorted((a, b) => a - b)
  const found = sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)]
  if (found === undefined) throw new RangeError('a quantile of no numbers')
  return found
}

/** How steeply y rises with x, by least squares. Throws RangeError for points of fewer than two x. */
export function slopeOf(points: readonly (readonly [x: number, y: number])[]): number {
  const mean = (of: (point: readonly [number, number]) => number): number =>
    points.reduce((sum, point) => sum + of(point), 0) / points.length
  const [meanX, meanY] = [mean(([x]) => x), mean(([, y]) => y)]
  const spread = points.reduce((sum, [x]) => sum + (x - meanX) ** 2, 0)
  if (!(spread > 0)) throw new RangeError('a slope of points above each other')
  return points.reduce((sum, [x, y]) => sum + (x - meanX) * (y - meanY), 0) / spread
}
