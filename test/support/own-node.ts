import { mkdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { type MountEntry, parseMountinfo } from '../../snapshotter/kernel/mountinfo.ts'
import { Containerd } from './containerd.ts'
import { Daemon } from './daemon.ts'
import { runCommand } from './run-command.ts'
import type { Scratch } from './scratch.ts'

/** The file systems of a node, as programs of a test see them that are started in it: see own-node.sh. It ends with the scratch. */
export class OwnNode {
  readonly #pid: number

  private constructor(pid: number) {
    this.#pid = pid
  }

  /** Makes it. Its /run/containerd is where the scratch's containerd will listen. */
  static async start(scratch: Scratch): Promise<OwnNode> {
    const [disk, run] = [join(scratch.dir, 'node'), join(scratch.run, 'node')]
    for (const path of [disk, run]) mkdirSync(path)
    const holder = await Daemon.start(
      scratch,
      'own-node',
      [
        join(import.meta.dirname, 'own-node.sh'),
        disk,
        run,
        dirname(Containerd.socketPathOf(scratch)),
        'sh',
        '-c',
        'echo made; exec sleep infinity',
      ],
      { PATH: process.env['PATH'] },
    )
    await holder.whenReady(async () => readFileSync(holder.logPath, 'utf8').includes('made'))
    return new OwnNode(holder.pid)
  }

  /** What stands before the words of a command that is to run in it. */
  get within(): readonly string[] {
    return ['nsenter', `--mount=/proc/${this.#pid}/ns/mnt`, '--']
  }

  /** Runs a command in it and gives back what it prints. Rejects with CommandError. */
  async run(...words: readonly string[]): Promise<string> {
    const [file = '', ...args] = [...this.within, ...words]
    return await runCommand(file, args)
  }

  /** Mounts at these paths of it and below. */
  mounts(...directories: readonly string[]): MountEntry[] {
    const isBelow = (target: string): boolean =>
      directories.some((path) => target === path || target.startsWith(`${path}/`))
    const mounts = parseMountinfo(readFileSync(`/proc/${this.#pid}/mountinfo`, 'utf8'))
    return mounts.filter(({ target }) => isBelow(target))
  }
}
