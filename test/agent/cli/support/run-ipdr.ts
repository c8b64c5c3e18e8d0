import { type ChildProcessByStdio, spawn } from 'node:child_process'
import { once } from 'node:events'
import type { Readable, Writable } from 'node:stream'
import { fileURLToPath } from 'node:url'

/** The command, as it is installed. */
export const IPDR: string = fileURLToPath(
  new URL('../../../../agent/cli/bin/ipdr', import.meta.url),
)

export type Ended = {
  readonly exitCode: number | null
  readonly stdout: string
  readonly stderr: string
}

type Child = ChildProcessByStdio<Writable, Readable, Readable>

export type RunOptions = {
  readonly input?: string | Uint8Array
  readonly env?: Readonly<Record<string, string>>
}

/** Starts the real command, with an environment that says nothing of its own to it. */
export function startIpdr(words: readonly string[], { env = {} }: RunOptions = {}): Child {
  const { PATH = '', HOME = '/root' } = process.env
  return spawn(IPDR, words, { stdio: ['pipe', 'pipe', 'pipe'], env: { PATH, HOME, ...env } })
}

/** Runs the real command to its end. */
export async function runIpdr(words: readonly string[], options: RunOptions = {}): Promise<Ended> {
  const child = startIpdr(words, options)
  // One that ends without reading its input is judged by its exit code.
  child.stdin.on('error', () => undefined)
  child.stdin.end(options.input)
  return ended(child)
}

/** What a started command said, and how it ended. */
export async function ended(child: Child): Promise<Ended> {
  let [stdout, stderr] = ['', '']
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [exitCode] = (await once(child, 'close')) as [number | null]
  return { exitCode, stdout, stderr }
}
