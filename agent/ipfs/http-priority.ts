import type { Priority } from '../../snapshotter/block-source.ts'

/** Urgencies of RFC 9218, of which 0 is the highest, 3 the usual and 7 for what nobody waits for. */
const URGENCY: Readonly<Record<Priority, number>> = { foreground: 1, prefetch: 4, background: 7 }

/** Says for whom a block is asked for. */
export function priorityHeader(priority: Priority): { readonly priority: string } {
  return { priority: `u=${URGENCY[priority]}` }
}

/** The other way round. What says nothing, or nothing that can be read, waits behind those who do. */
export function priorityOfHeader(text: string | readonly string[] | undefined): Priority {
  const [, digit] = /(?:^|,)\s*u=([0-7])\s*(?:,|$)/.exec(String(text ?? '').slice(0, 200)) ?? []
  const urgency = Number(digit ?? URGENCY.background)
  if (urgency <= URGENCY.foreground) return 'foreground'
  return urgency <= URGENCY.prefetch ? 'prefetch' : 'background'
}
