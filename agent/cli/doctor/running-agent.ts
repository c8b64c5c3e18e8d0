import { connect, type ServiceClient } from '../../../proto/client.ts'
import { agentContract } from '../../../proto/load.ts'
import type { AgentDefinition, AgentHandlers } from '../../../proto/types/ipdr/v1/Agent.ts'
import type { StatusResponse__Output } from '../../../proto/types/ipdr/v1/StatusResponse.ts'
import type { Config } from '../../config.ts'
import { reasonOf } from './reason-of.ts'

/** The agent that runs on this node, if one does; asked once for all checks. */
export class RunningAgent implements Disposable {
  readonly #client: ServiceClient<AgentDefinition, AgentHandlers>
  #status: Promise<StatusResponse__Output | undefined> | undefined
  #problem = ''

  constructor(config: Pick<Config, 'admin'>) {
    this.#client = connect(agentContract(), config.admin.socketPath)
  }

  /** Why there was no status; empty if there was one. */
  get problem(): string {
    return this.#problem
  }

  /** What it says of itself; undefined if it does not answer. */
  status(signal: AbortSignal): Promise<StatusResponse__Output | undefined> {
    this.#status ??= this.#client.calls.Status({}, { signal }).catch((error: unknown) => {
      this.#problem = reasonOf(error)
      return undefined
    })
    return this.#status
  }

  [Symbol.dispose](): void {
    this.#client[Symbol.dispose]()
  }
}
