import type { AgentProcess } from '../support/agent.ts'

/** Verified block bytes that an agent has fetched, by where they came from. */
export type FetchedBytes = ReadonlyMap<string, number>

/** As the agent's metrics tell it, but for blocks that it fetched before and still had in memory. */
export async function fetchedBytes(agent: AgentProcess): Promise<FetchedBytes> {
  const sample = /^ipdr_fetched_bytes_total\{source="([^"]+)"\}$/
  return new Map(
    [...(await agent.metrics())].flatMap(([name, bytes]) => {
      const source = sample.exec(name)?.[1]
      return source === undefined || source === 'memory' ? [] : [[source, bytes] as const]
    }),
  )
}

/** Of all sources together. */
export function totalBytes(fetched: FetchedBytes): number {
  return [...fetched.values()].reduce((sum, bytes) => sum + bytes, 0)
}
