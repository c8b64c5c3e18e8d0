import type { Libp2p, PeerId } from '@libp2p/interface'
import type { CID } from 'multiformats/cid'
import { BlockError } from '../../snapshotter/errors.ts'
import { verifyBlockAside } from '../../snapshotter/oci/verify-block.ts'
import {
  abortedGet,
  BLOCK_BYTES_MAX,
  type BlockProvider,
  ProviderHealth,
} from './block-provider.ts'
import type { RunningBitswap } from './start-bitswap.ts'

/** A block may take this long from one peer, in ms. 20 s: 2 MiB at 100 KiB/s, and a dial of 5 s before it. */
const BLOCK_MS = 20_000

/** Blocks asked of one peer at once. More abort each other under load, and fewer leave the line idle (research: 8 to 16). */
const WANTS_MAX = 8

/** A peer that is asked by bitswap, for one block at a time in a session of its own, so that its "do not have" ends the wait. */
export class BitswapPeer implements BlockProvider {
  readonly kind = 'bitswap'
  readonly name: string
  readonly health: ProviderHealth = new ProviderHealth()
  readonly #peerId: PeerId
  readonly #libp2p: Libp2p
  readonly #broker: RunningBitswap['broker']
  readonly #blockMs: number
  #wants = 0
  /** Wakes those who wait for their turn, in order. */
  readonly #waiting = new Set<() => void>()

  constructor(
    peerId: PeerId,
    { libp2p, broker }: { libp2p: Libp2p; broker: RunningBitswap['broker'] },
    blockMs: number = BLOCK_MS,
  ) {
    this.name = `peer ${peerId.toString()}`
    this.#peerId = peerId
    this.#libp2p = libp2p
    this.#broker = broker
    this.#blockMs = blockMs
  }

  async get(cid: CID, signal: AbortSignal): Promise<Uint8Array> {
    while (this.#wants >= WANTS_MAX && !signal.aborted) await this.#turn(signal)
    if (signal.aborted) {
      // The turn may have been given to this get; it goes on to the next in line.
      this.#waiting.values().next().value?.()
      throw abortedGet(cid, signal)
    }
    this.#wants++
    try {
      return await this.#want(cid, signal)
    } finally {
      this.#wants--
      this.#waiting.values().next().value?.()
    }
  }

  async #want(cid: CID, signal: AbortSignal): Promise<Uint8Array> {
    const late = AbortSignal.timeout(this.#blockMs)
    const stop = AbortSignal.any([signal, late])
    const startedMs = performance.now()
    try {
      await this.#libp2p.dial(this.#peerId, { signal: stop })
      const session = this.#broker.createSession({
        providers: [this.#peerId.toCID()],
        minProviders: 1,
        maxProviders: 1,
      })
      if (session.retrieve === undefined) throw new Error('the session cannot retrieve')
      const bytes = await session.retrieve(cid, { signal: stop })
      await this.#check(cid, bytes)
      this.health.succeeded(performance.now() - startedMs)
      // A block is a view into the whole message; the message is not to live as long as the block.
      return bytes.buffer.byteLength > bytes.length ? new Uint8Array(bytes) : bytes
    } catch (error) {
      if (error instanceof BlockError) throw error
      if (signal.aborted) throw abortedGet(cid, signal)
      throw this.#failure(cid, late.aborted, error)
    }
  }

  async #check(cid: CID, bytes: Uint8Array): Promise<void> {
    try {
      if (bytes.length > BLOCK_BYTES_MAX) throw new Error(`${bytes.length} bytes are too many`)
      await verifyBlockAside(cid, bytes)
    } catch (error) {
      this.health.sentWrongBytes()
      const message = error instanceof Error ? error.message : String(error)
      const code = error instanceof BlockError ? error.code : 'DATA_LOSS'
      throw new BlockError(code, `${this.name} sent wrong bytes: ${message}`, {
        cid: cid.toString(),
      })
    }
  }

  #failure(cid: CID, late: boolean, error: unknown): BlockError {
    const facts = { cid: cid.toString(), peer: this.#peerId.toString() }
    const connected = this.#libp2p.getConnections(this.#peerId).length > 0
    if (connected && !late) {
      return new BlockError('NOT_FOUND', `${this.name} does not have it`, facts, error)
    }
    this.health.failed()
    const reason = error instanceof Error ? error.message : String(error)
    const problem = late
      ? `did not send it within ${this.#blockMs} ms`
      : `cannot be reached: ${reason.slice(0, 300)}`
    return new BlockError('UNAVAILABLE', `${this.name} ${problem}`, facts, error)
  }

  /** Waits until somebody has left, or `signal`. */
  async #turn(signal: AbortSignal): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const wake = (): void => {
      this.#waiting.delete(wake)
      resolve()
    }
    this.#waiting.add(wake)
    signal.addEventListener('abort', wake, { once: true })
    await promise
    signal.removeEventListener('abort', wake)
  }
}
