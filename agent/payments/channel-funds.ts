import type { Log } from '../../snapshotter/log.ts'
import type { Funds, PodChannel } from '../deploy/admission.ts'
import type { OfferConfig } from '../deploy/deploy-config.ts'
import type { PodSpec } from '../deploy/pod-spec.ts'
import { ChannelError } from './channel-error.ts'
import { checkChannel } from './check-channel.ts'
import type { ChannelReader, ChannelState } from './payment-channels.ts'
import { type PricedResources, priceOf } from './prices.ts'

/** Whether a pod is paid for: by its channel, as the chain has it now. */
export class ChannelFunds implements Funds {
  readonly #fundedSecondsMin: bigint
  readonly #channels: ChannelReader
  readonly #log: Pick<Log, 'error'>

  constructor(
    { fundedSecondsMin }: { readonly fundedSecondsMin: number },
    { channels, log }: { readonly channels: ChannelReader; readonly log: Pick<Log, 'error'> },
  ) {
    this.#log = log
    this.#fundedSecondsMin = BigInt(fundedSecondsMin)
    this.#channels = channels
  }

  /** Rejects with ChannelError: FAILED_PRECONDITION with what is wrong with the channel, UNAVAILABLE if the chain cannot be asked. */
  async secondsOf(
    channel: PodChannel,
    pod: PodSpec,
    { contract, token, prices, unlockSecondsMin }: OfferConfig,
    signal: AbortSignal,
  ): Promise<bigint | undefined> {
    const perGigasecond = priceOf(resourcesOf(pod), { contract, token, perGigasecond: prices })
    const state = await this.#read(channel, signal)
    const verdict = checkChannel(
      state,
      {
        fundedSecondsMin: this.#fundedSecondsMin,
        unlockSecondsMin: BigInt(unlockSecondsMin),
      },
      { perGigasecond },
    )
    if (verdict.ok) return verdict.fundedSeconds
    throw new ChannelError('FAILED_PRECONDITION', `payment channel: ${verdict.message}`, {
      reason: verdict.reason,
    })
  }

  /** Why the chain cannot be asked is the operator's business: which servers, and how they are set up. */
  async #read(channel: PodChannel, signal: AbortSignal): Promise<ChannelState | undefined> {
    try {
      return await this.#channels.read(channel, signal)
    } catch (error) {
      signal.throwIfAborted()
      const reason = error instanceof Error ? error.message : String(error)
      this.#log.error(
        { contract: channel.contract, reason },
        `a payment channel cannot be read: ${reason}`,
      )
      throw new ChannelError(
        'UNAVAILABLE',
        'payment channel: the operator cannot read it from the chain just now; nothing was changed, try again later',
        {},
        error,
      )
    }
  }
}

/** What a pod reserves with the most replicas that it may have. */
function resourcesOf({ containers, volumes, scaling, isStateful }: PodSpec): PricedResources {
  const replicas = BigInt(scaling.max)
  const sum = (of: (container: PodSpec['containers'][number]) => number): bigint =>
    containers.reduce((total, container) => total + BigInt(of(container)), 0n) * replicas
  const disks = volumes.reduce((total, volume) => {
    if (volume.kind !== 'disk') return total
    const copies = isStateful && !volume.isShared ? replicas : 1n
    return total + BigInt(volume.bytes) * copies
  }, 0n)
  const devices = new Map<string, bigint>()
  for (const [name, count] of containers.flatMap((container) => [...container.devices])) {
    devices.set(name, (devices.get(name) ?? 0n) + BigInt(count) * replicas)
  }
  return {
    cpuMillis: sum(({ cpuMillis }) => cpuMillis),
    memoryBytes: sum(({ memoryBytes }) => memoryBytes),
    storageBytes: disks,
    devices,
  }
}
