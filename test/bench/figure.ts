/** What may be wanted of a figure: at most or at least so much. */
export type Limit = { readonly atMost: number } | { readonly atLeast: number }

/** One figure, as measured in this run. */
export type Figure = {
  /** By which `--only` finds it. */
  readonly name: string
  readonly value: number
  readonly unit: 'x' | '%' | 'ms' | 'us' | 'MiB' | 'MiB/h' | 'MB/s' | 's/GiB'
  /** None: it is printed as information. */
  readonly limit?: Limit
  /** What the value was made of. */
  readonly detail: string
}

/** How far a figure is beyond its limit, as a share of the limit; 0 or less if it is within. */
export function excess({ value, limit }: Figure): number {
  if (limit === undefined) return 0
  return 'atMost' in limit ? value / limit.atMost - 1 : 1 - value / limit.atLeast
}

/** "0.93 x", "187 MiB": three digits that count. */
export function formatValue(value: number, unit: Figure['unit']): string {
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2
  return `${value.toFixed(digits)} ${unit}`
}

/** "at most 1.3 x" */
export function formatLimit(limit: Limit | undefined, unit: Figure['unit']): string {
  if (limit === undefined) return 'information'
  return 'atMost' in limit ? `at most ${limit.atMost} ${unit}` : `at least ${limit.atLeast} ${unit}`
}

/** "within", or "missed by 12 %". */
export function formatVerdict(figure: Figure): string {
  if (figure.limit === undefined) return ''
  const over = excess(figure)
  return over > 0 ? `missed by ${(over * 100).toFixed(over < 0.1 ? 1 : 0)} %` : 'within'
}
