import { CodedError, type ErrorCode } from '../../snapshotter/errors.ts'
import { EXIT_CODES, type ExitCode } from './exit-codes.ts'

/** What a person is told when a command fails: a sentence, and what to do next where that is known. */
export type Failure = {
  readonly sentence: string
  readonly nextStep?: string | undefined
  readonly exitCode: ExitCode
}

/** A failure that the command line itself found, already in words for a person. */
export class CommandFailure extends Error implements Failure {
  readonly exitCode: ExitCode
  readonly nextStep: string | undefined

  constructor(exitCode: ExitCode, sentence: string, nextStep?: string, cause?: unknown) {
    super(sentence, cause === undefined ? undefined : { cause })
    this.name = 'CommandFailure'
    this.exitCode = exitCode
    this.nextStep = nextStep
  }

  get sentence(): string {
    return this.message
  }
}

/** The reason of the process's signal once SIGINT or SIGTERM came. */
export class Interrupted extends CommandFailure {
  constructor(signal: 'SIGINT' | 'SIGTERM') {
    const exitCode = signal === 'SIGINT' ? EXIT_CODES.interrupted : EXIT_CODES.terminated
    super(exitCode, `stopped by ${signal} before it was done`)
    this.name = 'Interrupted'
  }
}

/** What was typed on the command line turned out to be no reference, address or the like: a usage failure, not bad data. */
export function asUsageFailure(error: unknown): unknown {
  const typed = error instanceof CodedError && error.code === 'INVALID_ARGUMENT'
  return typed ? new CommandFailure(EXIT_CODES.usage, error.message, undefined, error) : error
}

const EXIT_BY_ERROR_CODE: Readonly<Record<ErrorCode, ExitCode>> = {
  CANCELLED: EXIT_CODES.failure,
  INVALID_ARGUMENT: EXIT_CODES.badData,
  DEADLINE_EXCEEDED: EXIT_CODES.temporary,
  NOT_FOUND: EXIT_CODES.notFound,
  ALREADY_EXISTS: EXIT_CODES.failure,
  PERMISSION_DENIED: EXIT_CODES.noPermission,
  RESOURCE_EXHAUSTED: EXIT_CODES.failure,
  FAILED_PRECONDITION: EXIT_CODES.failure,
  ABORTED: EXIT_CODES.temporary,
  OUT_OF_RANGE: EXIT_CODES.badData,
  UNIMPLEMENTED: EXIT_CODES.failure,
  UNAUTHENTICATED: EXIT_CODES.noPermission,
  INTERNAL: EXIT_CODES.failure,
  UNAVAILABLE: EXIT_CODES.unavailable,
  DATA_LOSS: EXIT_CODES.verification,
}

/** gRPC's status codes by number (grpc.io, "Status codes and their use in gRPC"); 2, UNKNOWN, says nothing. */
const ERROR_CODE_BY_GRPC_STATUS: ReadonlyMap<number, ErrorCode> = new Map([
  [1, 'CANCELLED'],
  [3, 'INVALID_ARGUMENT'],
  [4, 'DEADLINE_EXCEEDED'],
  [5, 'NOT_FOUND'],
  [6, 'ALREADY_EXISTS'],
  [7, 'PERMISSION_DENIED'],
  [8, 'RESOURCE_EXHAUSTED'],
  [9, 'FAILED_PRECONDITION'],
  [10, 'ABORTED'],
  [11, 'OUT_OF_RANGE'],
  [12, 'UNIMPLEMENTED'],
  [13, 'INTERNAL'],
  [14, 'UNAVAILABLE'],
  [15, 'DATA_LOSS'],
  [16, 'UNAUTHENTICATED'],
])

const BY_ERRNO: Readonly<Record<string, Omit<Failure, 'sentence'>>> = {
  ENOENT: { exitCode: EXIT_CODES.notFound },
  ENOTDIR: { exitCode: EXIT_CODES.notFound },
  EACCES: {
    exitCode: EXIT_CODES.noPermission,
    nextStep: 'Run it as a user who may, or with sudo.',
  },
  EPERM: { exitCode: EXIT_CODES.noPermission, nextStep: 'Run it as a user who may, or with sudo.' },
  ENOSPC: {
    exitCode: EXIT_CODES.failure,
    nextStep: 'Free some space on that disk and run it again.',
  },
  EADDRINUSE: {
    exitCode: EXIT_CODES.failure,
    nextStep: 'Choose another address, or stop what uses it.',
  },
  ECONNREFUSED: { exitCode: EXIT_CODES.unavailable },
  EPIPE: { exitCode: EXIT_CODES.brokenPipe },
}

/** Longest sentence shown, in characters: 25 lines of 80. What a server answered may be of any length. */
const SENTENCE_CHARS_MAX = 2000

/** Puts any error in words: ours by class, gRPC's and Node's by their code, others by their message. */
export function describeFailure(error: unknown, signal: AbortSignal): Failure {
  // Once stopped, whatever fails fails because of that.
  if (signal.aborted && signal.reason instanceof Interrupted) return signal.reason
  if (error instanceof CommandFailure) return error
  if (!(error instanceof Error))
    return { sentence: plain(String(error)), exitCode: EXIT_CODES.failure }
  if (error instanceof CodedError) {
    return { sentence: plain(error.message), exitCode: EXIT_BY_ERROR_CODE[error.code] }
  }
  const { code, details, rawMessage } = error as {
    code?: unknown
    details?: unknown
    rawMessage?: unknown
  }
  // Connect's codes are gRPC's; the message without the code in front of it is the sentence.
  if (typeof code === 'number' && typeof rawMessage === 'string') {
    const named = ERROR_CODE_BY_GRPC_STATUS.get(code)
    const exitCode = named === undefined ? EXIT_CODES.failure : EXIT_BY_ERROR_CODE[named]
    return { sentence: plain(rawMessage), exitCode }
  }
  if (typeof code === 'number' && typeof details === 'string') {
    const named = ERROR_CODE_BY_GRPC_STATUS.get(code)
    return {
      sentence: plain(details === '' ? error.message : details),
      exitCode: named === undefined ? EXIT_CODES.failure : EXIT_BY_ERROR_CODE[named],
    }
  }
  const known = typeof code === 'string' ? BY_ERRNO[code] : undefined
  return { exitCode: EXIT_CODES.failure, ...known, sentence: plain(error.message) }
}

/** One line that a terminal shows as it is: control characters, which whoever answered may have chosen, are left out. */
export function plain(text: string): string {
  // oxlint would have it spelled otherwise, but these are exactly C0, DEL and C1 (ECMA-48).
  const shown = text.replaceAll(/\p{Cc}+/gu, ' ').trim()
  return shown.length > SENTENCE_CHARS_MAX ? `${shown.slice(0, SENTENCE_CHARS_MAX)}…` : shown
}
