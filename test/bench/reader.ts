import {
  closeSync,
  fstatSync,
  lstatSync,
  openSync,
  readdirSync,
  readSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { seeded } from '../support/seeded.ts'
import { median, quantile } from './rounds.ts'
import type { ReadResult, ReadTask } from './timed-read.ts'

// What timed-read.ts runs: reads files as a container would, in a process that serves nobody, and prints how long it took.

const READ_BYTES = 1024 ** 2
const PAGE_BYTES = 4096
const buffer = Buffer.allocUnsafeSlow(READ_BYTES)

/** Reads of what is in the page cache already; one alone takes 0.1 s, as much as another process may take from us. */
const WARM_PASSES = 8

const task = JSON.parse(process.argv[2] ?? '') as ReadTask
console.log(JSON.stringify(task.cache === 'cold' ? runCold(task) : runWarm(task)))

function runCold(task: ReadTask): ReadResult {
  touchMemory(task.memoryBytes)
  dropCaches()
  return run(task)
}

function runWarm(task: ReadTask): ReadResult {
  run(task)
  const passes = Array.from({ length: WARM_PASSES }, () => run(task))
  return { ms: median(passes.map(({ ms }) => ms)), amount: passes[0]?.amount ?? 0 }
}

function run({ kind, paths, reads = 0, seed = 1 }: ReadTask): ReadResult {
  if (kind === 'random') return randomReads(paths[0] ?? '', { reads, seed })
  if (kind === 'walk') {
    return timed(() => paths.reduce((sum, path) => sum + walk(path, () => {}), 0))
  }
  return timed(() => {
    let bytes = 0
    for (const path of paths) walk(path, (file) => (bytes += readWhole(file)))
    return bytes
  })
}

function timed(work: () => number): ReadResult {
  const started = performance.now()
  const amount = work()
  return { ms: performance.now() - started, amount }
}

/** Looks at every entry below `path`, like find(1) -ls, and returns how many there are. */
function walk(path: string, onFile: (path: string) => void): number {
  let entries = 0
  for (const name of readdirSync(path)) {
    const child = join(path, name)
    const stats = lstatSync(child)
    entries += 1
    if (stats.isDirectory()) entries += walk(child, onFile)
    else if (stats.isFile()) onFile(child)
  }
  return entries
}

function readWhole(path: string): number {
  const fd = openSync(path, 'r')
  let total = 0
  for (let bytes = -1; bytes !== 0; total += bytes)
    bytes = readSync(fd, buffer, 0, READ_BYTES, null)
  closeSync(fd)
  return total
}

/** Reads one page each time, no page twice; the amount is the median in microseconds. */
function randomReads(
  path: string,
  { reads, seed }: { readonly reads: number; readonly seed: number },
): ReadResult {
  const fd = openSync(path, 'r')
  const pages = Math.floor(fstatSync(fd).size / PAGE_BYTES)
  const random = seeded(seed)
  const chosen = new Set<number>()
  while (chosen.size < reads) chosen.add(random(pages))
  const durations: number[] = []
  const started = performance.now()
  for (const page of chosen) {
    const before = performance.now()
    readSync(fd, buffer, 0, PAGE_BYTES, page * PAGE_BYTES)
    durations.push((performance.now() - before) * 1000)
  }
  const ms = performance.now() - started
  closeSync(fd)
  return { ms, amount: quantile(durations, 0.5), p99: quantile(durations, 0.99) }
}

/**
 * Makes the machine have so much memory in its hands: a virtual machine gives free memory back to its host, and the first touch
 * after that is many times slower than anything measured here.
 */
function touchMemory(bytes: number): void {
  const piece = 64 * READ_BYTES
  const pieces = Array.from({ length: Math.ceil(bytes / piece) }, () => Buffer.alloc(piece, 1))
  pieces.length = 0
  globalThis.gc?.()
}

/** Page cache, names and inodes (Documentation/admin-guide/sysctl/vm.rst, drop_caches). */
function dropCaches(): void {
  writeFileSync('/proc/sys/vm/drop_caches', '3')
}
