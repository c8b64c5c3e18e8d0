import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { runCommand } from './run-command.ts'

/** Unpacks the layers of an image layout, which deletes nothing in them, over each other into `dir`. */
export async function unpackLayout(layout: string, dir: string): Promise<void> {
  mkdirSync(dir, { recursive: true })
  const blobPath = (digest: string): string => join(layout, 'blobs/sha256', digest.slice(7))
  const read = (path: string): unknown => JSON.parse(readFileSync(path, 'utf8'))
  const { manifests } = read(join(layout, 'index.json')) as { manifests: { digest: string }[] }
  const { layers } = read(blobPath(manifests[0]?.digest ?? '')) as { layers: { digest: string }[] }
  for (const { digest } of layers) await runCommand('tar', ['-xf', blobPath(digest), '-C', dir])
}
