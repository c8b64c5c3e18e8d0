/** The one of `words` that `written` was most likely meant to be; undefined if none is near. Spaces, case and - for _ count little. */
export function nearestWord(written: string, words: readonly string[]): string | undefined {
  if (written.length > 64) return undefined
  let nearest: { word: string; distance: number } | undefined
  for (const word of words) {
    const distance = editDistance(folded(written), folded(word))
    if (nearest === undefined || distance < nearest.distance) nearest = { word, distance }
  }
  // A third of the letters: enough for a slip, too little to turn one word into another.
  const near = Math.max(1, Math.floor((nearest?.word.length ?? 0) / 3))
  return nearest !== undefined && nearest.distance <= near ? nearest.word : undefined
}

function folded(word: string): string {
  return word.replace(/[-_ ]/g, '').toLowerCase()
}

/** Letters to add, remove, exchange or swap with their neighbour (optimal string alignment). */
function editDistance(from: string, to: string): number {
  let [beforeLast, last]: [number[], number[]] = [
    [],
    Array.from({ length: to.length + 1 }, (_, i) => i),
  ]
  for (let i = 1; i <= from.length; i++) {
    const row = [i]
    for (let j = 1; j <= to.length; j++) {
      const cost = from[i - 1] === to[j - 1] ? 0 : 1
      const swapped =
        i > 1 && j > 1 && from[i - 1] === to[j - 2] && from[i - 2] === to[j - 1]
          ? (beforeLast[j - 2] ?? 0) + 1
          : Infinity
      row.push(
        Math.min((last[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1, (last[j - 1] ?? 0) + cost, swapped),
      )
    }
    ;[beforeLast, last] = [last, row]
  }
  return last[to.length] ?? 0
}
