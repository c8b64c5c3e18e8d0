import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'

/** A layer that stargz-snapshotter wrote, the annotation that it gives it, and its tar. */
export type StargzLayer = {
  readonly blob: Buffer
  readonly annotations: Readonly<Record<string, string>>
  readonly tar: Buffer
}

/** One layer without files to prefetch, one with. */
export const stargzLayers: Readonly<Record<'plain' | 'prioritized', StargzLayer>> = {
  plain: golden('plain', '3bf53b9493ec912b2138e69b002cae701cc20ea5746a5b3a8db09deced5e49a2'),
  prioritized: golden(
    'prioritized',
    '89666a7fd49fbdbfeda203add3ac620c9dc0c739e34208cecff14dadfab7c73b',
  ),
}

function golden(name: string, tocSha256: string): StargzLayer {
  const blob = readFileSync(join(import.meta.dirname, `${name}.tar.gz`))
  const annotations = { 'containerd.io/snapshot/stargz/toc.digest': `sha256:${tocSha256}` }
  return { blob, annotations, tar: gunzipSync(blob) }
}
