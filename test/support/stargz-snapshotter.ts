import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import { goProgram } from './go-programs.ts'
import type { LayerBlob } from './images/oci-layout.ts'
import { runCommand } from './run-command.ts'
import type { Scratch } from './scratch.ts'

/** An hour: gzip -9 of a large layer, on a busy machine. */
const CONVERT_DEADLINE_MS = 3_600_000

export type StargzOptions = {
  /** Read layers whose manifest vouches for no table of contents, unverified. */
  readonly disablesVerification?: boolean
  /** Fetches what it likes before it is read, as it comes; else what is read and no more. */
  readonly isEager?: boolean
  /** Says in its log which files are read; see `filesRead`. */
  readonly logsFiles?: boolean
  /** Registries, other than those on loopback, that it asks by plain HTTP. */
  readonly plainHosts?: readonly string[]
}

/** The snapshotter of the stargz-snapshotter project, built from its Go module, on a socket of its own. */
export class StargzSnapshotter implements AsyncDisposable {
  readonly name = 'stargz'
  readonly socketPath: string
  readonly logPath: string
  readonly #stop: () => Promise<void>

  private constructor(socketPath: string, logPath: string, stop: () => Promise<void>) {
    this.socketPath = socketPath
    this.logPath = logPath
    this.#stop = stop
  }

  /** Builds it if need be, and starts it. Rejects with what it says if it does not serve. */
  static async start(scratch: Scratch, options: StargzOptions = {}): Promise<StargzSnapshotter> {
    const program = await goProgram('stargz-snapshotter')
    const dir = join(scratch.dir, 'stargz')
    mkdirSync(dir)
    const logPath = join(dir, 'log')
    const socketPath = join(scratch.run, 'stargz.sock')
    const configPath = join(dir, 'config.json')
    const { disablesVerification = false, isEager = false, logsFiles = false } = options
    const host = (name: string): object => ({ mirrors: [{ host: name, insecure: true }] })
    const config = {
      disable_verification: disablesVerification,
      noprefetch: !isEager,
      no_background_fetch: !isEager,
      no_prometheus: true,
      log_file_access: logsFiles,
      resolver: {
        host: Object.fromEntries((options.plainHosts ?? []).map((name) => [name, host(name)])),
      },
    }
    writeFileSync(configPath, JSON.stringify(config))
    const log = openSync(logPath, 'a')
    const child = spawn(program, ['serve', socketPath, join(dir, 'root'), configPath], {
      stdio: ['ignore', 'pipe', log],
    })
    closeSync(log)
    if (child.pid !== undefined) scratch.own(child.pid)
    const exited = once(child, 'exit')
    const ended = exited.then(() => {
      throw new Error(`stargz-snapshotter does not serve\n${readFileSync(logPath, 'utf8')}`)
    })
    ended.catch(() => undefined)
    await Promise.race([once(createInterface(child.stdout as Readable), 'line'), ended])
    return new StargzSnapshotter(socketPath, logPath, async () => {
      child.kill()
      await exited
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stop()
  }
}

/** The files that were read so far, in order of first use, by the digest of their layer; for one that logs them. */
export function filesRead({ logPath }: StargzSnapshotter): ReadonlyMap<string, readonly string[]> {
  const files = new Map<string, string[]>()
  for (const line of readFileSync(logPath, 'utf8').split('\n')) {
    const [, path] = /msg="file accessed: \/(.*?)"/.exec(line) ?? []
    const [, layer] = /layer="?(sha256:[0-9a-f]{64})/.exec(line) ?? []
    if (path === undefined || layer === undefined) continue
    files.set(layer, [...(files.get(layer) ?? []), path])
  }
  return files
}

/** Writes a tar as eStargz by the project's own writer, with the files `first` in front of its landmark, into `dir`. */
export async function writeByStargz(
  tar: Uint8Array,
  dir: string,
  first: readonly string[],
): Promise<LayerBlob> {
  mkdirSync(dir, { recursive: true })
  const tarPath = join(dir, 'layer.tar')
  writeFileSync(tarPath, tar)
  return await convertByStargz(tarPath, dir, first)
}

/** The same for a tar in a file, which may be compressed by gzip or zstd. */
export async function convertByStargz(
  tarPath: string,
  dir: string,
  first: readonly string[],
): Promise<LayerBlob> {
  mkdirSync(dir, { recursive: true })
  const path = join(dir, 'layer.estargz')
  const said = await runCommand(await goProgram('stargz-snapshotter'), ['convert', tarPath, path], {
    input: first.join('\n'),
    signal: AbortSignal.timeout(CONVERT_DEADLINE_MS),
  })
  const { tocDigest, diffId, tarSize } = JSON.parse(said) as Record<string, string> & {
    tarSize: number
  }
  const blob = readFileSync(path)
  return {
    path,
    mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip',
    digest: digestOf(blob),
    size: blob.length,
    diffId: diffId ?? '',
    tarSize,
    annotations: { 'containerd.io/snapshot/stargz/toc.digest': tocDigest ?? '' },
  }
}
