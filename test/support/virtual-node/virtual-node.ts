import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout } from 'node:timers/promises'
import { runCommand } from '../run-command.ts'
import type { Scratch } from '../scratch.ts'
import type { NodeDisk } from './node-disk.ts'

/** Where the guest finds what listens on this machine's loopback: QEMU's user-mode network. */
export const HOST_ADDRESS = '10.0.2.2'

/** How long a boot may take, in ms. 600 s: instructions are translated; 80 s at a load of 20. */
const BOOT_DEADLINE_MS = 600_000

/** How long one command may take, in ms, unless it says otherwise. 240 s: Node alone takes ten to start, and more on a busy machine. */
const COMMAND_DEADLINE_MS = 240_000

/** Pause between two looks, in ms. */
const LOOK_MS = 500

/** Of a command in the guest. */
export type Outcome = { readonly code: number; readonly output: string }

/** A whole node in QEMU, with a kernel of its own and systemd as process 1. Slow, since it needs no virtualisation of the machine. */
export class VirtualNode implements AsyncDisposable {
  readonly #process: ChildProcess
  readonly #port: Socket
  readonly #consolePath: string
  readonly #lines: string[] = []
  #wake: () => void = () => {}
  #turn: Promise<unknown> = Promise.resolve()

  private constructor(process: ChildProcess, port: Socket, consolePath: string) {
    this.#process = process
    this.#port = port
    this.#consolePath = consolePath
    createInterface(port).on('line', (line) => {
      this.#lines.push(line)
      this.#wake()
    })
    process.on('exit', () => this.#wake())
  }

  /** Boots a copy of the disk, and waits until commands are answered. Rejects with the end of the console if they are not. */
  static async boot(scratch: Scratch, disk: NodeDisk): Promise<VirtualNode> {
    const { vmlinuz, initrd } = disk.kernel
    const own = join(scratch.dir, 'own-disk')
    await runCommand('cp', ['--sparse=always', disk.path, own])
    const consolePath = join(scratch.dir, 'console')
    const portPath = join(scratch.run, 'commands')
    const kernelWords = 'console=ttyS0 root=/dev/vda rw quiet panic=-1 systemd.show_status=1'
    // Without protection keys: translated, V8 ends itself now and then over the pages of its compiled code.
    const processor = ['-cpu', 'max,pku=off', '-smp', '2', '-m', '2048']
    const machine = ['-accel', 'tcg,thread=multi', ...processor]
    const console = ['-nodefaults', '-display', 'none', '-serial', `file:${consolePath}`]
    const boot = ['-kernel', vmlinuz, '-initrd', initrd, '-append', kernelWords]
    const drive = ['-drive', `file=${own},format=raw,if=virtio,cache=unsafe`]
    const network = ['-netdev', 'user,id=net,ipv6=off', '-device', 'virtio-net-pci,netdev=net']
    const devices = ['-device', 'virtio-rng-pci', '-device', 'virtio-serial-pci']
    const commands = [
      '-chardev',
      `socket,id=commands,path=${portPath},server=on,wait=off`,
      '-device',
      'virtserialport,chardev=commands,name=ipdr.commands',
    ]
    const qemu = spawn(
      'qemu-system-x86_64',
      [machine, console, boot, drive, network, devices, commands].flat(),
      { stdio: ['ignore', 'ignore', 'inherit'] },
    )
    await once(qemu, 'spawn')
    if (qemu.pid !== undefined) scratch.own(qemu.pid)
    while (!existsSync(portPath) && qemu.exitCode === null) await setTimeout(50)
    const port = connect(portPath)
    await once(port, 'connect')
    const node = new VirtualNode(qemu, port, consolePath)
    await node.#hasBooted()
    return node
  }

  /** Runs a command by sh as root, and waits for its end. Rejects if there is none in time. */
  async try(command: string, deadlineMs: number = COMMAND_DEADLINE_MS): Promise<Outcome> {
    const before = this.#turn
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#turn = promise
    await before
    try {
      this.#send(command)
      const line = await this.#line(deadlineMs, command)
      const [code = '', output = ''] = line.split(' ')
      return { code: Number(code), output: Buffer.from(output, 'base64').toString() }
    } finally {
      resolve()
    }
  }

  /** What the command prints. Rejects if it fails. */
  async run(command: string, deadlineMs?: number): Promise<string> {
    const { code, output } = await this.try(command, deadlineMs)
    if (code !== 0) throw new Error(`${command}: exit code ${code}\n${output}`)
    return output.trim()
  }

  /** Runs the command again until it succeeds, and gives back what it printed. Rejects with what it said last. */
  async until(command: string, deadlineMs: number = COMMAND_DEADLINE_MS): Promise<string> {
    const deadline = Date.now() + deadlineMs
    for (;;) {
      const { code, output } = await this.try(command)
      if (code === 0) return output.trim()
      if (Date.now() > deadline) throw new Error(`${command}: exit code ${code}\n${output}`)
      await setTimeout(LOOK_MS)
    }
  }

  /** Has it shut down and boot again, and waits until commands are answered. */
  async reboot(): Promise<void> {
    // Who answers may be stopped before he does: an answer is passed over, and none is waited for.
    this.#send('systemctl reboot --no-block')
    await this.#hasBooted()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#port.destroy()
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return
    const ended = once(this.#process, 'exit')
    this.#process.kill('SIGKILL')
    await ended
  }

  #send(command: string): void {
    this.#port.write(`${Buffer.from(command).toString('base64')}\n`)
  }

  async #hasBooted(): Promise<void> {
    for (;;) {
      if ((await this.#line(BOOT_DEADLINE_MS, 'boot')).startsWith('up ')) return
    }
  }

  async #line(deadlineMs: number, what: string): Promise<string> {
    const late = AbortSignal.timeout(deadlineMs)
    while (this.#lines.length === 0) {
      const { promise, resolve } = Promise.withResolvers<void>()
      this.#wake = resolve
      late.addEventListener('abort', () => resolve(), { once: true })
      await promise
      const hasEnded = this.#process.exitCode !== null
      if (this.#lines.length === 0 && (late.aborted || hasEnded)) {
        const why = hasEnded ? 'the machine has ended' : `no answer in ${deadlineMs} ms`
        const console = readFileSync(this.#consolePath, 'utf8').trimEnd().split('\n').slice(-20)
        throw new Error(`${what}: ${why}\n${console.join('\n')}`)
      }
    }
    return this.#lines.shift() ?? ''
  }
}
