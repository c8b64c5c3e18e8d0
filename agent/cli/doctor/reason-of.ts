/** gRPC's status of a failed call. */
export function statusOf(error: unknown): number | undefined {
  const code = error instanceof Error && 'code' in error ? error.code : undefined
  return typeof code === 'number' ? code : undefined
}

/** Why a call, a request or a file failed, in few words. */
export function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  // grpc-js has the sentence of connect(2) within its own.
  const refused = /Last error: Error: (connect .*?)\. Resolution note/.exec(error.message)?.[1]
  if (refused !== undefined) return refused
  if ('details' in error && typeof error.details === 'string' && error.details !== '') {
    return error.details
  }
  // Node has several of them where a name has several addresses, and an empty sentence.
  return error.message || ('code' in error ? String(error.code) : error.name)
}
