import { statSync } from 'node:fs'
import { join } from 'node:path'
import { MS_RDONLY, mount } from '../../snapshotter/kernel/libc.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'
import type { BenchContext, Measurement } from './bench-context.ts'
import { BenchNode } from './bench-node.ts'
import type { Figure } from './figure.ts'
import { medians } from './rounds.ts'
import { BIG_FILE, TREE, unpack, writeReadSample } from './sample-layouts.ts'
import { type ReadTask, timedRead } from './timed-read.ts'

const MiB = 1024 ** 2

/** Pages read at random. 3,000 of 131,072: few enough that no page comes along with another. */
const RANDOM_READS = 3_000

/** Memory for a walk, in bytes: 15,000 inodes and names at 4 KiB, twice. */
const WALK_BYTES = 128 * MiB

/** One way to the same files: a directory for each layer. */
type Arms = Readonly<Record<'fuse' | 'loop' | 'local' | 'ext4', string>>

/**
 * What the way through us costs when every byte is on this node: EROFS on FUSE, answered by the agent from its store,
 * against EROFS on the same file without us, and against the files as they lie on ext4.
 */
export const reads: Measurement = {
  names: ['walk-cold', 'sequential-cold', 'sequential-warm', 'random-4k'],
  measure: measureReads,
}

/** The same for every file of a whole image, layers stacked by overlayfs as in a container. */
export const imageRead: Measurement = { names: ['image-cold'], measure: measureImageRead }

async function measureReads({ publisher, rounds, say }: BenchContext): Promise<Figure[]> {
  await using scratch = Scratch.open('bench-reads')
  say('making an image of 15,000 entries and a file of 512 MiB')
  const sample = await writeReadSample(scratch.dir)
  const { reference } = await publisher.push(sample.layout)
  await using node = await BenchNode.start(publisher)
  await node.pull(reference, { all: true })
  const [layer = 0] = node.layerIds
  const arms: Arms = {
    fuse: await node.mountLayer(layer, 'fuse'),
    loop: await node.mountLayer(layer, 'loop'),
    local: await node.mountLayer(layer, 'local'),
    ext4: sample.dir,
  }
  await runCommand('sync', [])
  const bytes = statSync(join(arms.ext4, BIG_FILE)).size
  const compare = (what: string, task: (dir: string) => ReadTask, of: 'ms' | 'amount' = 'ms') => {
    say(what)
    const run = (dir: string) => async () => (await timedRead(task(dir)))[of]
    return medians(rounds, {
      fuse: run(arms.fuse),
      loop: run(arms.loop),
      local: run(arms.local),
      ext4: run(arms.ext4),
    })
  }
  const readBig = (cache: ReadTask['cache']) => (dir: string) =>
    ({ kind: 'files', paths: [join(dir, 'big')], cache, memoryBytes: 2.5 * bytes }) as const

  const walk = await compare('walking 15,000 entries', (dir) => ({
    kind: 'walk',
    paths: [join(dir, TREE)],
    cache: 'cold',
    memoryBytes: WALK_BYTES,
  }))
  const cold = await compare('reading 512 MiB, cold', readBig('cold'))
  const warm = await compare('reading 512 MiB, warm', readBig('warm'))
  const random = await compare(
    'reading pages at random',
    (dir) => ({
      kind: 'random',
      paths: [join(dir, BIG_FILE)],
      cache: 'cold',
      memoryBytes: WALK_BYTES,
      reads: RANDOM_READS,
    }),
    'amount',
  )
  const rates = (ms: typeof cold): string =>
    each(ms, (one) => `${(bytes / 1000 / one).toFixed(0)} MB/s`)
  return [
    {
      name: 'walk-cold',
      value: walk.fuse / walk.local,
      unit: 'x',
      limit: { atMost: 1.3 },
      detail: `15,000 entries: ${each(walk, (ms) => `${ms.toFixed(0)} ms`)}`,
    },
    {
      name: 'sequential-cold',
      value: cold.ext4 / cold.fuse,
      unit: 'x',
      limit: { atLeast: 0.85 },
      detail: `speed, 512 MiB: ${rates(cold)}`,
    },
    {
      name: 'sequential-warm',
      value: warm.ext4 / warm.fuse,
      unit: 'x',
      limit: { atLeast: 0.95 },
      detail: `speed, 512 MiB: ${rates(warm)}`,
    },
    {
      name: 'random-4k',
      value: random.fuse / random.ext4,
      unit: 'x',
      limit: { atMost: 2 },
      detail: `median of ${RANDOM_READS} pages: ${each(random, (us) => `${us.toFixed(0)} us`)}`,
    },
  ]
}

async function measureImageRead(context: BenchContext): Promise<Figure[]> {
  const { publisher, rounds, say } = context
  const { layout, published } = await context.demo()
  await using scratch = Scratch.open('bench-image')
  await using node = await BenchNode.start(publisher)
  say('fetching the demo image whole')
  await node.pull(published.reference, { all: true })
  const ext4 = join(scratch.dir, 'ext4')
  await unpack(layout, ext4)
  await runCommand('sync', [])
  const stack = async (content: 'fuse' | 'loop' | 'local'): Promise<string> => {
    const mounted: string[] = []
    for (const id of node.layerIds) mounted.push(await node.mountLayer(id, content))
    const lower = mounted.toReversed()
    const target = node.newDirectory('overlay')
    mount({
      source: 'overlay',
      target,
      type: 'overlay',
      flags: MS_RDONLY,
      options: `lowerdir=${lower.join(':')}`,
    })
    return target
  }
  const run = (dir: string) => async () => {
    const bytes = published.unpackedBytes
    return (
      await timedRead({ kind: 'files', paths: [dir], cache: 'cold', memoryBytes: 2.2 * bytes })
    ).ms
  }
  const arms: Arms = {
    fuse: await stack('fuse'),
    loop: await stack('loop'),
    local: await stack('local'),
    ext4,
  }
  say('reading every file of the demo image')
  const ms = await medians(rounds, {
    fuse: run(arms.fuse),
    loop: run(arms.loop),
    local: run(arms.local),
    ext4: run(arms.ext4),
  })
  return [
    {
      name: 'image-cold',
      value: ms.fuse / ms.ext4,
      unit: 'x',
      limit: { atMost: 1 },
      detail: `${published.files} entries, ${(published.unpackedBytes / MiB).toFixed(0)} MiB: ${each(ms, (one) => `${(one / 1000).toFixed(2)} s`)}`,
    },
  ]
}

function each(
  arms: Readonly<Record<keyof Arms, number>>,
  format: (value: number) => string,
): string {
  return `${format(arms.fuse)}, over loop devices ${format(arms.loop)}, EROFS on a local file ${format(arms.local)}, ext4 ${format(arms.ext4)}`
}
