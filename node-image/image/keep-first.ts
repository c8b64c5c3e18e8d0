import { existsSync, renameSync, rmSync } from 'node:fs'

/** Gives a finished folder its name, at once. Of two that were made at the same time the first stays: they are the same. */
export function keepFirst(partial: string, dir: string): void {
  try {
    renameSync(partial, dir)
  } catch (error) {
    if (!existsSync(dir)) throw error
    rmSync(partial, { recursive: true })
  }
}
