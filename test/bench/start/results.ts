import { median } from '../rounds.ts'
import { type LinkProfile, physicalLimitMs } from './link/link-profile.ts'
import type { MeasuredStart } from './measured-start.ts'

/** What was measured in one run, on one machine; the document of results.json. Times in ms. */
export type StartResults = {
  /** Medians are of so many starts. */
  readonly rounds: number
  readonly startedAt: string
  /** Load averages of the machine. */
  readonly load: { readonly before: readonly number[]; readonly after: readonly number[] }
  readonly rows: readonly StartRow[]
  readonly failures: readonly StartFailure[]
}

export type StartFailure = {
  readonly workload: string
  readonly link: string
  readonly arm: string
  readonly reason: string
}

/** Of numbers that a start has, the medians of all starts. */
export type StartRow = {
  readonly workload: string
  readonly link: string
  readonly arm: string
  /** As tables and pictures call the arm. */
  readonly title: string
  readonly readyMs: number
  readonly readyMsMin: number
  readonly readyMsMax: number
  readonly pullMs: number
  readonly createMs: number
  readonly runMs: number
  readonly downBytes: number
  readonly upBytes: number
  readonly connections: number
  readonly requests: number
  readonly cpuSeconds: number
  readonly peakMemoryBytes: number
  readonly counters: Readonly<Record<string, number>>
  /** What the arm cannot do without, in bytes: the whole image, or what its start reads. */
  readonly neededBytes: number
  /** The least time in which these could have come. */
  readonly limitMs: number
  /** Ready time against that of overlayfs in the same cell; undefined without such an arm. */
  readonly ofOverlayfs?: number
  /** All starts; with their requests if that was asked for. */
  readonly starts: readonly (Omit<MeasuredStart, 'trace'> & Partial<Pick<MeasuredStart, 'trace'>>)[]
}

type Measured = {
  readonly arm: { readonly name: string; readonly title: string }
  readonly neededBytes: number
  readonly starts: readonly MeasuredStart[]
}

/** The rows of a workload behind a link, of arms that started at least once. */
export function rowsOf(
  workload: string,
  link: LinkProfile,
  measured: readonly Measured[],
  { traces }: { traces: boolean },
): StartRow[] {
  const rows = measured
    .filter(({ starts }) => starts.length > 0)
    .map(({ arm, neededBytes, starts }): StartRow => {
      const of = (key: keyof MeasuredStart): number =>
        median(starts.map((start) => Number(start[key])))
      const ready = starts.map(({ readyMs }) => readyMs)
      return {
        workload,
        link: link.name,
        arm: arm.name,
        title: arm.title,
        readyMs: of('readyMs'),
        readyMsMin: Math.min(...ready),
        readyMsMax: Math.max(...ready),
        pullMs: of('pullMs'),
        createMs: of('createMs'),
        runMs: of('runMs'),
        downBytes: of('downBytes'),
        upBytes: of('upBytes'),
        connections: of('connections'),
        requests: of('requests'),
        cpuSeconds: of('cpuSeconds'),
        peakMemoryBytes: of('peakMemoryBytes'),
        counters: mediansOf(starts.map(({ counters }) => counters)),
        neededBytes,
        limitMs: physicalLimitMs(neededBytes, link),
        starts: starts.map(({ trace, ...start }) => (traces ? { ...start, trace } : start)),
      }
    })
  const overlayfs = rows.find(({ arm }) => arm === 'overlayfs')
  if (overlayfs === undefined) return rows
  return rows.map((row) => ({ ...row, ofOverlayfs: row.readyMs / overlayfs.readyMs }))
}

function mediansOf(counters: readonly Readonly<Record<string, number>>[]): Record<string, number> {
  const names = Object.keys(counters[0] ?? {})
  return Object.fromEntries(
    names.map((name) => [name, median(counters.map((counter) => counter[name] ?? 0))]),
  )
}
