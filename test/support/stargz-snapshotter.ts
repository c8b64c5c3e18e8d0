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

export type StargzOptions = {
  /** Read layers whose manifest vouches for no table of contents, unverified. */
  readonly disablesVerification: boolean
}

/** The snapshotter of the stargz-snapshotter project, built from its Go module, on a socket of its own. It fetches what is read and no more. */
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
  static async start(
    scratch: Scratch,
    { disablesVerification }: StargzOptions,
  ): Promise<StargzSnapshotter> {
    const program = await goProgram('stargz-snapshotter')
    const dir = join(scratch.dir, 'stargz')
    mkdirSync(dir)
    const logPath = join(dir, 'log')
    const socketPath = join(scratch.run, 'stargz.sock')
    const configPath = join(dir, 'config.json')
    const config = {
      disable_verification: disablesVerification,
      noprefetch: true,
      no_background_fetch: true,
      no_prometheus: true,
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

/** Writes a tar as eStargz by the project's own writer, with the files `first` in front of its landmark, into `dir`. */
export async function writeByStargz(
  tar: Uint8Array,
  dir: string,
  first: readonly string[],
): Promise<LayerBlob> {
  mkdirSync(dir, { recursive: true })
  const [tarPath, path] = [join(dir, 'layer.tar'), join(dir, 'layer.estargz')]
  writeFileSync(tarPath, tar)
  const said = await runCommand(await goProgram('stargz-snapshotter'), [
    'convert',
    tarPath,
    path,
    ...first,
  ])
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
