import type { Scratch } from '../../support/scratch.ts'

/** One figure, as measured in this run. */
export type DeployFigure = {
  readonly name: string
  readonly value: number
  readonly unit: 'ms' | 'x' | 'MiB' | 'KiB' | 's' | 'cores' | ''
  /** What the value was made of. */
  readonly detail: string
}

/** A step of a change: what share of its time that takes. */
export type Step = {
  /** Of which figure. */
  readonly figure: string
  /** As `apply Deployment`. */
  readonly words: string
  readonly callsOfEach: number
  readonly requestsOfEach: number
  /** Median of one call, until the answer was understood, and of its requests. */
  readonly callMs: number
  readonly requestMs: number
  /** Of all calls of one change, in ms. */
  readonly ofEachMs: number
}

/** What every measurement is given. */
export type DeployContext = {
  readonly scratch: Scratch
  readonly rounds: number
  /** Where the endpoint's process leaves a profile of its processor time; undefined: nowhere. */
  readonly profileDir: string | undefined
  /** Tells what is being done, for whoever waits. */
  readonly say: (what: string) => void
}

export type DeployMeasurement = {
  readonly name: string
  readonly measure: (
    context: DeployContext,
  ) => Promise<{ readonly figures: readonly DeployFigure[]; readonly steps?: readonly Step[] }>
}

/** The part of a configuration that only a payment needs, where nobody pays. */
export const UNPAID: object = {
  operator: `0x${'01'.repeat(20)}`,
  chain: { id: 1, rpc: ['http://127.0.0.1:1'] },
  offers: [{ contract: `0x${'02'.repeat(20)}`, token: `0x${'03'.repeat(20)}` }],
}

/** On loopback; everybody who calls comes from there. */
export const LISTEN: object = {
  listen: ['/ip4/127.0.0.1/tcp/0'],
  requestsPerSecondMax: 1_000_000,
}

/** Flags of Node that have a process write a profile when it ends. */
export function profileFlags({ profileDir }: DeployContext): string[] {
  return profileDir === undefined ? [] : ['--cpu-prof', `--cpu-prof-dir=${profileDir}`]
}
