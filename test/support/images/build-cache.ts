import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdirSync } from 'node:fs'
import { rename, rm } from 'node:fs/promises'
import { join } from 'node:path'

/** Where images and their parts are kept between runs; `make clean` removes it. */
export const IMAGES: string = join(import.meta.dirname, '../../../build/images')

/**
 * The folder that `build` filled, now or in an earlier run, for the same name and recipe. Of several processes that
 * ask at once one builds and the others wait. What an interrupted build left is removed by the next.
 */
export async function buildOnce(
  name: string,
  recipe: unknown,
  build: (dir: string) => Promise<void>,
): Promise<string> {
  const key = createHash('sha256').update(JSON.stringify(recipe)).digest('hex').slice(0, 16)
  const dir = join(IMAGES, `${name}-${key}`)
  if (existsSync(dir)) return dir
  await using _lock = await lock(dir)
  if (existsSync(dir)) return dir
  const partial = `${dir}.partial`
  await rm(partial, { recursive: true, force: true })
  mkdirSync(partial)
  await build(partial)
  await rename(partial, dir)
  return dir
}

/** Waits for its turn at `name`. The kernel gives the lock back when we end, however we do. */
export async function lock(name: string): Promise<AsyncDisposable> {
  mkdirSync(IMAGES, { recursive: true })
  // flock(1) holds the lock as long as cat's input, our end of the pipe, is open.
  const holder = spawn('flock', [`${name}.lock`, 'sh', '-c', 'echo locked; exec cat'], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  await Promise.race([once(holder.stdout, 'data'), once(holder, 'exit').then(failed)])
  return {
    async [Symbol.asyncDispose]() {
      const exited = once(holder, 'exit')
      holder.stdin.end()
      await exited
    },
  }
  function failed(): never {
    throw new Error(`cannot lock ${name}.lock`)
  }
}
