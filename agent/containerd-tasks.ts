import { constants } from 'node:os'
import { status } from '@grpc/grpc-js'
import { connect } from '../proto/client.ts'
import { tasksContract } from '../proto/load.ts'
import { CodedError } from '../snapshotter/errors.ts'

/** How long containerd may take to end a container. 10 s: it only sends a signal. */
const KILL_DEADLINE_MS = 10_000

/** How containerd's metadata names a snapshot to a snapshotter: `<namespace>/<number>/<key>` (metadata/snapshot.go, createKey). */
const SNAPSHOT_KEY = /^([^/]+)\/\d+\/([^/]+)$/

/**
 * Kills all processes of the container that has the active snapshot `snapshotKey`; one that does not run is well. Rejects with
 * CodedError UNAVAILABLE if containerd at `socketPath` cannot be asked, INVALID_ARGUMENT if the key is no container's.
 */
export async function killContainer(socketPath: string, snapshotKey: string): Promise<void> {
  const [, namespace, containerId] = SNAPSHOT_KEY.exec(snapshotKey) ?? []
  if (namespace === undefined || containerId === undefined) {
    throw new CodedError(
      'INVALID_ARGUMENT',
      `snapshot ${snapshotKey} is not named as containerd names those of containers`,
    )
  }
  using tasks = connect(tasksContract(), socketPath, { 'containerd-namespace': namespace })
  try {
    await tasks.calls.Kill(
      { containerId, signal: constants.signals.SIGKILL, all: true },
      { signal: AbortSignal.timeout(KILL_DEADLINE_MS) },
    )
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === status.NOT_FOUND) return
    const why = error instanceof Error ? error.message : String(error)
    throw new CodedError(
      'UNAVAILABLE',
      `containerd at ${socketPath} does not end container ${containerId}: ${why}`,
      { containerId },
      error,
    )
  }
}
