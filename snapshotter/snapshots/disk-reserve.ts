import { rmSync, statSync, writeFileSync } from 'node:fs'

/** 1 MiB: forgetting a snapshot writes some 6 pages of 4 KiB to the database's log, so this is room for 40. */
const RESERVE_BYTES = 1024 * 1024

/** A file that only takes up room, so that on a full disk there is some left to record that something was deleted. */
export class DiskReserve {
  readonly #path: string

  constructor(path: string) {
    this.#path = path
  }

  /** Takes the room, if it is not taken and the disk has it. */
  fill(): void {
    try {
      if (statSync(this.#path, { throwIfNoEntry: false })?.size === RESERVE_BYTES) return
      writeFileSync(this.#path, Buffer.alloc(RESERVE_BYTES))
    } catch {
      // The disk is still full: half a reserve would only make it fuller.
      rmSync(this.#path, { force: true })
    }
  }

  /** Gives the room back, once until it is filled again. False if there was none. */
  spend(): boolean {
    const filled = statSync(this.#path, { throwIfNoEntry: false }) !== undefined
    rmSync(this.#path, { force: true })
    return filled
  }
}
