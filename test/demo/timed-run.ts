import { readFileSync } from 'node:fs'
import type { Cri, Pod } from '../support/cri.ts'
import type { Say } from './steps.ts'

/** A container from the pull of its image to its end, as a kubelet does it. Times in ms. */
export type TimedRun = {
  readonly pullMs: number
  readonly createMs: number
  /** From the request to start it until it wrote something. */
  readonly firstLineMs: number
  readonly totalMs: number
  readonly firstLine: string
}

/** Pulls an image and runs a command in it. Rejects if the command fails or writes nothing. */
export async function timedRun(
  cri: Cri,
  { pod, image, command }: { pod: Pod; image: string; command: readonly string[] },
  { signal, say }: { signal: AbortSignal; say: Say },
): Promise<TimedRun> {
  // By the wall clock, since containerd stamps the lines of a container by it.
  const startedAt = Date.now()
  say('pulling')
  const imageRef = await cri.pullImage(image, signal)
  const pulledAt = Date.now()
  say('creating the container')
  const container = await cri.createContainer(pod, imageRef, command)
  const createdAt = Date.now()
  say('waiting for its first line')
  await cri.startContainer(container)
  const { exitCode, logPath } = await cri.whenExited(container, signal)
  const log = readFileSync(logPath, 'utf8')
  // "2026-01-02T03:04:05.678901234Z stdout F text": the log format of CRI.
  const [, stamp = '', firstLine] = /^(\S+) stdout F (.*)$/m.exec(log) ?? []
  if (exitCode !== 0 || firstLine === undefined) {
    const said = await cri.logOf(container)
    throw new Error(`${command[0]} in the container ended with exit code ${exitCode}:\n${said}`)
  }
  const firstLineAt = Date.parse(stamp)
  return {
    pullMs: pulledAt - startedAt,
    createMs: createdAt - pulledAt,
    firstLineMs: firstLineAt - createdAt,
    totalMs: firstLineAt - startedAt,
    firstLine,
  }
}
