import { wallClockNs } from '../kernel/libc.ts'

/** The time as nanoseconds since the epoch. */
export type Clock = { now(): bigint }

/** The kernel's. `Date` cuts the nanoseconds off, so that what it stamps seems older than what the caller did before it. */
export const wallClock: Clock = { now: wallClockNs }
