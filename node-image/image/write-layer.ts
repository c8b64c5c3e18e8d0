import { createHash } from 'node:crypto'
import { createReadStream, createWriteStream, statSync } from 'node:fs'
import { rename } from 'node:fs/promises'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createGzip } from 'node:zlib'
import { pack } from 'tar-stream'
import { completeEntries, type LayerEntry } from './layer-entry.ts'

/** A layer as the manifest describes it. */
export type Layer = {
  /** What it holds, for people. */
  readonly name: string
  readonly mediaType: string
  readonly digest: string
  readonly size: number
  /** sha256 of the tar before compression. */
  readonly diffId: string
}

/** Writes a layer of these entries into `blobs`, by its digest. The same entries and `mtime` give the same bytes on the same Node. */
export async function writeLayer(
  name: string,
  entries: readonly LayerEntry[],
  { blobs, mtime }: { readonly blobs: string; readonly mtime: Date },
): Promise<Layer> {
  const tar = pack()
  const [plain, packed] = [createHash('sha256'), createHash('sha256')]
  let size = 0
  const partial = join(blobs, `partial-${name}`)
  const counted = new PassThrough()
  counted.on('data', (chunk: Buffer) => {
    packed.update(chunk)
    size += chunk.length
  })
  const hashed = new PassThrough().on('data', (chunk: Buffer) => plain.update(chunk))
  // gzip: there is no registry, runtime or tool that does not read it.
  const written = pipeline(tar, hashed, createGzip(), counted, createWriteStream(partial))
  await Promise.all([addAll(tar, completeEntries(entries), mtime), written])
  const hex = packed.digest('hex')
  await rename(partial, join(blobs, hex))
  return {
    name,
    mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip',
    digest: `sha256:${hex}`,
    size,
    diffId: `sha256:${plain.digest('hex')}`,
  }
}

async function addAll(
  tar: ReturnType<typeof pack>,
  entries: readonly LayerEntry[],
  mtime: Date,
): Promise<void> {
  for (const entry of entries) {
    const owned = { mtime, uid: 0, gid: 0 }
    switch (entry.kind) {
      case 'folder':
        await addEntry(tar, {
          ...owned,
          type: 'directory',
          name: `${entry.path}/`,
          mode: entry.mode,
        })
        break
      case 'link':
        await addEntry(tar, {
          ...owned,
          type: 'symlink',
          name: entry.path,
          linkname: entry.target,
          mode: 0o777,
        })
        break
      case 'file': {
        const header = { ...owned, type: 'file', name: entry.path, mode: entry.mode } as const
        const { from } = entry
        if (typeof from === 'string') {
          const size = statSync(from).size
          const sink = tar.entry({ ...header, size })
          await pipeline(createReadStream(from), sink)
        } else await addEntry(tar, { ...header, size: from.length }, from)
        break
      }
    }
  }
  tar.finalize()
}

function addEntry(
  tar: ReturnType<typeof pack>,
  header: Parameters<ReturnType<typeof pack>['entry']>[0],
  content?: Uint8Array,
): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const done = (error?: Error | null): void => (error ? reject(error) : resolve())
  if (content === undefined) tar.entry(header, done)
  else tar.entry(header, Buffer.from(content), done)
  return promise
}
