import { readFileSync } from 'node:fs'
import { constants, gunzipSync, zstdCompressSync } from 'node:zlib'
import { ZSTD_LEVEL } from '../../snapshotter/publish/compress-frame.ts'
import { GzipIndexer } from '../../snapshotter/toc/gzip/gzip-indexer.ts'
import type { OciLayout } from '../support/images/oci-layout.ts'
import type { BenchContext, Measurement } from './bench-context.ts'
import { BenchNode } from './bench-node.ts'
import type { Figure } from './figure.ts'
import { medians } from './rounds.ts'
import { cpuSeconds } from './start/process-cost.ts'

/** `ipdr push` of the demo's image. */
export const push: Measurement = {
  names: ['push', 'push-limit', 'push-size', 'push-zstd'],
  measure: measurePush,
}

/** Our gzip decoder, which finds checkpoints on the way, against zlib's. */
export const inflate: Measurement = { names: ['inflate'], measure: measureInflate }

/** All blocks of the demo's image from a gateway on loopback: fetched, verified, decompressed and kept. */
export const fetchWhole: Measurement = { names: ['fetch', 'fetch-cpu'], measure: measureFetch }

async function measurePush(context: BenchContext): Promise<Figure[]> {
  const { published, layout } = await context.demo()
  const { builtBytes, publishedBytes, unpackedBytes, ms } = published
  context.say('compressing the same layers with plain zstd')
  const plain = compressPlainly(layout)
  const both = (2 * unpackedBytes) / 1000 / plain.ms
  return [
    {
      name: 'push',
      value: unpackedBytes / 1000 / ms,
      unit: 'MB/s',
      detail: `of tar; ${(unpackedBytes / 1e6).toFixed(0)} MB in ${(ms / 1000).toFixed(1)} s, once`,
    },
    {
      name: 'push-limit',
      value: unpackedBytes / 1000 / ms / both,
      unit: 'x',
      detail: `of two cores that compress with zstd -${ZSTD_LEVEL} and do nothing else, ${both.toFixed(0)} MB/s`,
    },
    {
      name: 'push-zstd',
      value: publishedBytes / plain.bytes,
      unit: 'x',
      limit: { atMost: 1.06 },
      detail: `of plain zstd -${ZSTD_LEVEL}, one stream a layer: ${(publishedBytes / 1e6).toFixed(0)} MB against ${(plain.bytes / 1e6).toFixed(0)} MB`,
    },
    {
      name: 'push-size',
      value: publishedBytes / builtBytes,
      unit: 'x',
      detail: `of gzip: ${(publishedBytes / 1e6).toFixed(0)} MB against ${(builtBytes / 1e6).toFixed(0)} MB`,
    },
  ]
}

/** Each layer of the image as one zstd stream, of the level that `ipdr push` has. */
export function compressPlainly(layout: OciLayout): {
  readonly bytes: number
  readonly ms: number
} {
  const plain = { bytes: 0, ms: 0 }
  for (const { path } of layout.layers) {
    const tar = gunzipSync(readFileSync(path))
    const started = performance.now()
    const stream = zstdCompressSync(tar, {
      params: { [constants.ZSTD_c_compressionLevel]: ZSTD_LEVEL },
    })
    plain.ms += performance.now() - started
    plain.bytes += stream.length
  }
  return plain
}

async function measureInflate(context: BenchContext): Promise<Figure[]> {
  const { layout } = await context.demo()
  const layer = layout.layers[0]
  if (layer === undefined) throw new Error('the demo image has no layers')
  const blob = readFileSync(layer.path)
  context.say('decoding a gzip layer')
  const timed = (work: () => void) => async () => {
    const started = performance.now()
    work()
    return performance.now() - started
  }
  const ms = await medians(context.rounds, {
    ours: timed(() => {
      const indexer = new GzipIndexer({ outputBytesMax: layer.tarSize })
      for (const _ of indexer.push(blob)) {
        // Only decoded.
      }
      indexer.finish()
    }),
    zlib: timed(() => void gunzipSync(blob)),
  })
  const rate = (one: number): number => layer.tarSize / 1000 / one
  return [
    {
      name: 'inflate',
      value: rate(ms.ours),
      unit: 'MB/s',
      detail: `of tar; zlib ${rate(ms.zlib).toFixed(0)} MB/s`,
    },
  ]
}

async function measureFetch(context: BenchContext): Promise<Figure[]> {
  const { publisher, rounds, say } = context
  const { published } = await context.demo()
  const used: number[] = []
  const { ms } = await medians(rounds, {
    ms: async () => {
      say('fetching the demo image whole')
      await using node = await BenchNode.start(publisher)
      const before = cpuSeconds([node.agent.workerPid])
      const took = await node.pull(published.reference, { all: true })
      used.push(cpuSeconds([node.agent.workerPid]) - before)
      return took
    },
  })
  const gib = published.publishedBytes / 1024 ** 3
  return [
    {
      name: 'fetch',
      value: published.publishedBytes / 1000 / ms,
      unit: 'MB/s',
      detail: `of blocks; ${(published.publishedBytes / 1e6).toFixed(0)} MB fetched, checked, unpacked to ${(published.unpackedBytes / 1e6).toFixed(0)} MB and kept in ${(ms / 1000).toFixed(1)} s`,
    },
    {
      name: 'fetch-cpu',
      value: Math.min(...used) / gib,
      unit: 's/GiB',
      detail: `CPU of the data worker for a GiB of blocks, check of the diff IDs included; the least of ${rounds} rounds`,
    },
  ]
}
