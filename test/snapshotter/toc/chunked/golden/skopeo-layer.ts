import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { decodeZstdStream } from '../../../../../snapshotter/toc/decode-zstd-stream.ts'

/** A layer that skopeo wrote, its annotations as they are in skopeo's manifest, and its tar. */
export async function skopeoLayer(): Promise<{
  blob: Buffer
  annotations: Readonly<Record<string, string>>
  tar: Buffer
}> {
  const blob = readFileSync(join(import.meta.dirname, 'skopeo-1.18.tar.zst'))
  const signal = AbortSignal.timeout(10_000)
  const parts: Uint8Array[] = []
  const content = decodeZstdStream(Readable.from([blob]), { outputBytesMax: 2 ** 24, signal })
  for await (const bytes of content) parts.push(Uint8Array.from(bytes))
  return { blob, annotations, tar: Buffer.concat(parts) }
}

const annotations = {
  'io.github.containers.zstd-chunked.manifest-checksum':
    'sha256:c0ad28d6779dcbf180a56970146be001b93b735ead873255c367466bb59800a3',
  'io.github.containers.zstd-chunked.manifest-position': '12547:4012:16308:1',
  'io.github.containers.zstd-chunked.tarsplit-position': '16567:3858:104763',
}
