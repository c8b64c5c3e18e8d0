import type { Labels } from '../containerd/labels.ts'
import type { Mount } from './mounts.ts'

/** What containerd tells of the layer that it is about to download. */
export type ClaimRequest = {
  /** The chain ID of the layer, `sha256:…`: it stands for the layer and all below it. */
  readonly layerChainId: string
  /** All labels of the Prepare: the `containerd.io/snapshot/cri.*` ones, where containerd sends them, are hints. */
  readonly labels: Labels
  readonly signal: AbortSignal
}

/** A layer that is ready to be mounted without having been downloaded. */
export type ClaimedLayer = {
  /** Its number, which snapshots keep across restarts. */
  readonly layer: number
  /** Of its tar; its chain ID too if it is the bottom of an image. */
  readonly diffId: string
  /** Bytes that containerd shall account to its snapshot. */
  readonly size: bigint
  readonly inodes: bigint
}

/** A layer that is claimed again, or whose files can be unpacked again onto mounts of those below it. */
export type RecalledLayer = { readonly layerChainId: string } & (
  | { readonly claimed: ClaimedLayer }
  | { readonly unpack: (mounts: readonly Mount[], signal: AbortSignal) => Promise<void> }
)

/** Where committed snapshots come from that nobody unpacked. Snapshots own names and parents, this owns mounts. */
export interface LazyLayers {
  /**
   * The layer for a chain ID once it can be mounted, or undefined if it is not ours: containerd then downloads it
   * and all layers above it. The same request may come again, also while the first is under way. Rejects if the
   * layer is ours and cannot be had.
   */
  claim(request: ClaimRequest): Promise<ClaimedLayer | undefined>

  /** Whether a claimed layer is still there: it may be deleted as long as no snapshot names it, and not in the turn of this call. */
  holds(layer: number): boolean

  /**
   * The layers of which the uppermost has this chain ID, bottom first, for snapshots that were lost: from what is remembered of
   * images, here or by containerd. Undefined if nobody knows. Rejects if one is ours and cannot be had.
   */
  recall(layerChainId: string, signal: AbortSignal): Promise<readonly RecalledLayer[] | undefined>

  /**
   * Mounts the layers of `chain`, topmost first, where they are not mounted, and resolves to directories for
   * overlay's `lowerdir`, topmost first; fewer than layers where some are merged. Called for every Prepare, View and
   * Mounts: quick when all is mounted.
   */
  lowerDirs(
    chain: readonly { readonly layer: number }[],
    signal: AbortSignal,
  ): Promise<readonly string[]>

  /**
   * No snapshot has this layer any more. Called in the same turn as the last one is forgotten; a claim that was under
   * way may bring the layer back.
   */
  released(layer: number): Promise<void>
}
