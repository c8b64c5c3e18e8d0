import { connect } from 'node:net'
import { setTimeout } from 'node:timers/promises'

// The hook that a container runtime runs before a container's process (OCI runtime-spec, "createRuntime Hooks"): it hands the
// container's state, which it reads from standard input, to the agent, and fails unless the agent says that the container may
// start. It imports next to nothing, since each start waits for it: 60 ms, where the ipdr command takes 300.

/** How long an agent that does not listen is waited for, in ms. 10 s: what it takes to be started again. */
const AGENT_WAIT_MS = 10_000
const RETRY_MS = 100

/** sysexits(3): no permission, and no such service. */
const EXIT = { noPermission: 77, unavailable: 69 } as const

/** What the agent at `socketPath` answers to `state`. Rejects with what connect(2) says. */
async function answerTo(state: Uint8Array, socketPath: string): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  let answer = ''
  const socket = connect({ path: socketPath, allowHalfOpen: true })
  socket.setEncoding('utf8')
  socket.on('data', (text: string) => (answer += text))
  socket.on('end', () => resolve(answer))
  socket.on('error', reject)
  socket.end(state)
  return promise
}

async function main(socketPath: string, waitMs: number): Promise<number> {
  const parts: Uint8Array[] = []
  for await (const part of process.stdin as AsyncIterable<Uint8Array>) parts.push(part)
  const state = Buffer.concat(parts)
  const deadline = performance.now() + waitMs
  for (;;) {
    try {
      const answer: unknown = JSON.parse(await answerTo(state, socketPath))
      if (typeof answer !== 'object' || answer === null) throw new Error('its answer is no object')
      if ('allowed' in answer && answer.allowed === true) return 0
      if ('refused' in answer) {
        process.stderr.write(`ipdr: ${String(answer.refused)}\n`)
        return EXIT.noPermission
      }
      throw new Error('its answer says neither yes nor no')
    } catch (error) {
      if (performance.now() < deadline) {
        await setTimeout(RETRY_MS)
        continue
      }
      const why = error instanceof Error ? error.message : String(error)
      process.stderr.write(
        `ipdr: the agent cannot be asked at ${socketPath} whether the container may start: ${why}; start it (systemctl start ipdr-agent)\n`,
      )
      return EXIT.unavailable
    }
  }
}

const [, , socketPath = '/run/ipdr-agent/authorize.sock', waitMs = String(AGENT_WAIT_MS)] =
  process.argv
process.exitCode = await main(socketPath, Number(waitMs))
