import { readFileSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import type { Cri, Pod } from '../../support/cri.ts'

/** When a workload is ready: it wrote a line with this text, or answers this address with 200. */
export type Ready =
  | { readonly kind: 'line'; readonly text: string }
  | { readonly kind: 'http'; readonly url: string }

/** From the pull of an image until its container was ready, as a kubelet does it. Times in ms. */
export type TimedStart = {
  readonly pullMs: number
  readonly createMs: number
  /** From the request to start the container until it was ready. */
  readonly runMs: number
  readonly readyMs: number
}

/** Between two looks at the container, in ms, as HelloBench polls. */
const POLL_MS = 10
/** Looks at the log between two looks whether the container still runs: that one costs containerd work that is measured. */
const LOOKS_PER_STATUS = 50

/** Pulls an image and runs a command in it until it is ready. Rejects if it ends without, or once `signal` aborts. */
export async function startUntilReady(
  cri: Cri,
  start: { pod: Pod; image: string; command: readonly string[]; ready: Ready },
  signal: AbortSignal,
): Promise<TimedStart> {
  const { pod, image, command, ready } = start
  // By the wall clock, since containerd stamps the lines of a container by it.
  const startedAt = Date.now()
  const imageRef = await cri.pullImage(image, signal)
  const pulledAt = Date.now()
  const container = await cri.createContainer(pod, imageRef, command)
  const createdAt = Date.now()
  await cri.startContainer(container)
  const { logPath } = await cri.containerStatus(container)
  const readyAt = await whenReady(ready, logPath, signal, async () => {
    const { state, exitCode } = await cri.containerStatus(container)
    if (state !== 'CONTAINER_EXITED') return
    // Its last lines may have come since the last look.
    if (ready.kind === 'line' && lineAt(logPath, ready.text) !== undefined) return
    const said = await cri.logOf(container)
    throw new Error(`${command.join(' ')}: ended with exit code ${exitCode}, never ready\n${said}`)
  })
  return {
    pullMs: pulledAt - startedAt,
    createMs: createdAt - pulledAt,
    runMs: readyAt - createdAt,
    readyMs: readyAt - startedAt,
  }
}

async function whenReady(
  ready: Ready,
  logPath: string,
  signal: AbortSignal,
  checkRunning: () => Promise<void>,
): Promise<number> {
  for (let look = 1; ; look++) {
    const readyAt = ready.kind === 'line' ? lineAt(logPath, ready.text) : await answersAt(ready.url)
    if (readyAt !== undefined) return readyAt
    if (look % LOOKS_PER_STATUS === 0) await checkRunning()
    await setTimeout(POLL_MS, undefined, { signal })
  }
}

/** When a line with the text was written, by CRI's log: "2026-01-02T03:04:05.678901234Z stdout F text". */
function lineAt(logPath: string, text: string): number | undefined {
  const line = readFileSync(logPath, 'utf8')
    .split('\n')
    .find((line) => /^\S+ std(?:out|err) [FP] /.test(line) && line.includes(text))
  return line === undefined ? undefined : Date.parse(line.slice(0, line.indexOf(' ')))
}

async function answersAt(url: string): Promise<number | undefined> {
  try {
    const answer = await fetch(url)
    await answer.arrayBuffer()
    return answer.status === 200 ? Date.now() : undefined
  } catch {
    return undefined
  }
}
