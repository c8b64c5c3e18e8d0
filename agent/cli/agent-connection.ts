import { connect as connectSocket } from 'node:net'
import { connect, type ServiceClient } from '../../proto/client.ts'
import { agentContract } from '../../proto/load.ts'
import type { AgentDefinition, AgentHandlers } from '../../proto/types/ipdr/v1/Agent.ts'
import { EXIT_CODES } from './exit-codes.ts'
import { CommandFailure } from './failure.ts'

/** How long the agent may take to answer a question, in ms: 20 s. It only reads its own memory and disk. */
export const ANSWER_MS_MAX = 20_000

/** Longest path of a Unix socket, in bytes: sun_path holds 108, the last one NUL (unix(7)). */
const SOCKET_PATH_BYTES_MAX = 107

/** The agent on this node; each call rejects with grpc-js's ServiceError. Dispose of it to close the connection. */
export type Agent = ServiceClient<AgentDefinition, AgentHandlers>

/**
 * Connects to the agent. Rejects with CommandFailure: unavailable if nobody listens at `socketPath`, and what to do about it.
 */
export async function connectAgent(socketPath: string): Promise<Agent> {
  await checkListening(socketPath)
  return connect(agentContract(), socketPath)
}

/** Asks one question; rejects with CommandFailure (temporary) if the agent does not answer in time, else as the call. */
export async function ask<Answer>(
  question: (call: { signal: AbortSignal }) => Promise<Answer>,
  signal: AbortSignal,
): Promise<Answer> {
  const deadline = AbortSignal.timeout(ANSWER_MS_MAX)
  try {
    return await question({ signal: AbortSignal.any([signal, deadline]) })
  } catch (error) {
    if (!deadline.aborted || signal.aborted) throw error
    throw new CommandFailure(
      EXIT_CODES.temporary,
      `the agent did not answer within ${ANSWER_MS_MAX / 1000} s`,
      'See what it is doing: journalctl -u ipdr-agent',
      error,
    )
  }
}

/** gRPC says UNAVAILABLE for a socket that is missing, closed or forbidden alike; connect(2) tells them apart. */
async function checkListening(socketPath: string): Promise<void> {
  if (Buffer.byteLength(socketPath) > SOCKET_PATH_BYTES_MAX) {
    throw new CommandFailure(
      EXIT_CODES.usage,
      `${socketPath} is longer than ${SOCKET_PATH_BYTES_MAX} bytes, the kernel's limit for a socket path`,
    )
  }
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const socket = connectSocket({ path: socketPath })
  socket.once('connect', resolve)
  socket.once('error', reject)
  try {
    await promise
  } catch (error) {
    throw unreachable(socketPath, error as NodeJS.ErrnoException)
  } finally {
    socket.destroy()
  }
}

function unreachable(socketPath: string, error: NodeJS.ErrnoException): CommandFailure {
  if (error.code === 'EACCES' || error.code === 'EPERM') {
    return new CommandFailure(
      EXIT_CODES.noPermission,
      `you may not connect to the agent at ${socketPath}`,
      'Run it as root, with sudo.',
      error,
    )
  }
  const found = error.code === 'ENOENT' ? 'there is no such socket' : 'nobody listens there'
  return new CommandFailure(
    EXIT_CODES.unavailable,
    `the agent cannot be reached at ${socketPath}: ${found}`,
    'Start it (systemctl start ipdr-agent), or name its socket with --agent.',
    error,
  )
}
