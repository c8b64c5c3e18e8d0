import type { PlacedFrame } from './frames-underway.ts'

/**
 * Compressed bytes between two frames that a start reads which count as read, too: 8 KiB. They are on a link of 100 Mbit/s in less
 * than 1 ms, and a leaf more is a request more.
 */
export const BRIDGE_BYTES: number = 8 * 1024

/** A frame, and whether a start reads it; undefined for headers and padding, which belong to what is before them. */
export type UsedFrame = PlacedFrame & { readonly isRead: boolean | undefined }

/** Takes frames that lie between two which a start reads for read as well, if they are few bytes. */
export class BridgedFrames {
  /** Frames after one that is read, until it is known how far the next such one is. */
  #held: UsedFrame[] = []
  #heldBytes = 0
  #isAfterRead = false

  /** Takes the next frame; returns those about which all is known, in order. */
  push(frame: UsedFrame): UsedFrame[] {
    if (frame.isRead === true) {
      const bridged = this.#held.map((held) => ({ ...held, isRead: true }))
      this.#take()
      this.#isAfterRead = true
      return [...bridged, frame]
    }
    if (!this.#isAfterRead) return [frame]
    this.#held.push(frame)
    this.#heldBytes += frame.bytes.length
    return this.#heldBytes > BRIDGE_BYTES ? this.end() : []
  }

  /** The layer is over, or the next frame that is read is too far. */
  end(): UsedFrame[] {
    this.#isAfterRead = false
    return this.#take()
  }

  #take(): UsedFrame[] {
    const held = this.#held
    this.#held = []
    this.#heldBytes = 0
    return held
  }
}
