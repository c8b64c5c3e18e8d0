/** What went wrong, in gRPC's words: agent/grpc-server.ts sends the code as it is. */
export const ERROR_CODES = [
  'CANCELLED',
  'INVALID_ARGUMENT',
  'DEADLINE_EXCEEDED',
  'NOT_FOUND',
  'ALREADY_EXISTS',
  'PERMISSION_DENIED',
  'RESOURCE_EXHAUSTED',
  'FAILED_PRECONDITION',
  'ABORTED',
  'OUT_OF_RANGE',
  'UNIMPLEMENTED',
  'UNAUTHENTICATED',
  'INTERNAL',
  'UNAVAILABLE',
  'DATA_LOSS',
] as const

/** One of `ERROR_CODES`. */
export type ErrorCode = (typeof ERROR_CODES)[number]

/** Values that locate a failure; loggers print them beside the sentence. */
export type ErrorFacts = Readonly<Record<string, string | number | bigint | boolean | undefined>>

/** A failure that names itself: a code to act on, a sentence for people, facts for the log. */
export class CodedError extends Error {
  readonly code: ErrorCode
  readonly facts: ErrorFacts

  constructor(code: ErrorCode, message: string, facts: ErrorFacts = {}, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause })
    this.name = new.target.name
    this.code = code
    this.facts = facts
  }
}

/** A snapshot call that cannot be carried out; the codes are those containerd acts on. */
export class SnapshotError extends CodedError {}

/** A request that breaks containerd's own rules for filters and labels. */
export class RequestError extends CodedError {}

/** A blob of the content store: not there, in use, or not what was promised when it was written. */
export class ContentError extends CodedError {}

/** A root CID, manifest, index or config that is not an image we can run. */
export class ImageError extends CodedError {}

/** A layer's bytes or its table of contents: truncated, malformed, hostile or not what was promised. */
export class LayerError extends CodedError {}

/** An IPFS block that cannot be had, or is not the block that its CID names. */
export class BlockError extends CodedError {}

/** A registry that cannot be reached, refuses what it is asked for, or does not speak OCI's distribution protocol. */
export class RegistryError extends CodedError {}

/** The kernel refused: a mount, a device, a missing file system. */
export class KernelError extends CodedError {}
