import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'

/** An empty directory that goes with the test that asked for it. */
export async function scratchDir(): Promise<string> {
  const dir = await mkdtemp(join('/tmp', 'ipdr-cli-test-'))
  onTestFinished(() => rm(dir, { recursive: true, force: true }))
  return dir
}
