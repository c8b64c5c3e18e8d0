import { ChannelError } from './channel-error.ts'

/** What an operator takes for resources, through one payment contract. */
export type PriceTable = {
  readonly contract: `0x${string}`
  /** In whose base units the prices are. */
  readonly token: `0x${string}`
  /**
   * Base units per 10^9 seconds and core (`cpu`), byte (`memory`, `storage`) or device (by Kubernetes' name, as nvidia.com/gpu). Not per
   * second: of a token with 6 digits, a byte of memory costs far less than one unit in a second.
   */
  readonly perGigasecond: ReadonlyMap<string, bigint>
}

/** What a pod reserves; nothing of it is negative. */
export type PricedResources = {
  /** Thousandths of a core. */
  readonly cpuMillis: bigint
  readonly memoryBytes: bigint
  readonly storageBytes: bigint
  /** How many of each device, by Kubernetes' name. */
  readonly devices: ReadonlyMap<string, bigint>
}

/**
 * What they cost: base units per 10^9 seconds, the sum rounded up to a whole unit. CPU, memory and storage without a price are free; throws
 * ChannelError INVALID_ARGUMENT for a device without one.
 */
export function priceOf(resources: PricedResources, { perGigasecond }: PriceTable): bigint {
  const { cpuMillis, memoryBytes, storageBytes, devices } = resources
  const cpu = perGigasecond.get('cpu') ?? 0n
  const memory = perGigasecond.get('memory') ?? 0n
  const storage = perGigasecond.get('storage') ?? 0n
  let whole = memoryBytes * memory + storageBytes * storage
  for (const [name, count] of devices) {
    if (count > 0n) whole += count * devicePrice(name, perGigasecond)
  }
  // Here alone, and less than one unit in 31 years, is anything rounded.
  return whole + (cpuMillis * cpu + 999n) / 1000n
}

function devicePrice(name: string, perGigasecond: PriceTable['perGigasecond']): bigint {
  const price = perGigasecond.get(name)
  if (price !== undefined) return price
  throw new ChannelError(
    'INVALID_ARGUMENT',
    `this operator has no price for ${name}: leave it out, or find an operator that offers it`,
    { device: name },
  )
}
