import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { GrpcServer } from '../../../../agent/grpc-server.ts'
import { implement, type Methods } from '../../../../proto/contract.ts'
import { agentContract } from '../../../../proto/load.ts'
import type { AgentHandlers } from '../../../../proto/types/ipdr/v1/Agent.ts'
import { CodedError } from '../../../../snapshotter/errors.ts'

export type AgentMethods = Methods<AgentHandlers>

const silent = { debug: () => undefined, warn: () => undefined, error: () => undefined }

/** An agent that answers on a real socket with what it is told to; every other call is UNIMPLEMENTED. */
export class FakeAgent implements AsyncDisposable {
  readonly socketPath: string
  readonly #dir: string
  readonly #server: GrpcServer

  private constructor(dir: string, socketPath: string, server: GrpcServer) {
    this.#dir = dir
    this.socketPath = socketPath
    this.#server = server
  }

  static async start(methods: Partial<AgentMethods>): Promise<FakeAgent> {
    const dir = await mkdtemp(join(tmpdir(), 'fake-agent-'))
    const socketPath = join(dir, 'admin.sock')
    const service = implement(agentContract(), { ...UNIMPLEMENTED, ...methods })
    const signal = AbortSignal.timeout(60_000)
    const server = await GrpcServer.listen({ socketPath, closeGraceMs: 100 }, [service], {
      log: silent,
      signal,
    })
    return new FakeAgent(dir, socketPath, server)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server[Symbol.asyncDispose]()
    await rm(this.#dir, { recursive: true, force: true })
  }
}

function refuse(): never {
  throw new CodedError('UNIMPLEMENTED', 'this agent has no such call')
}

const refuseLater = async (): Promise<never> => refuse()

const UNIMPLEMENTED: AgentMethods = {
  Status: refuseLater,
  Pull: refuse,
  ListLayers: refuseLater,
  ListImages: refuseLater,
  CollectGarbage: refuseLater,
  RemoveLayer: refuseLater,
  CheckLayer: refuseLater,
  WaitedFor: refuseLater,
  LayerIndex: refuse,
  Record: refuse,
  FinishRecording: refuseLater,
}
