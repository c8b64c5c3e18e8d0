/** Exit codes; those from 64 on are those of sysexits(3), so that a script can tell what failed without reading sentences. */
export const EXIT_CODES = {
  ok: 0,
  failure: 1,
  usage: 2,
  badData: 65,
  notFound: 66,
  unavailable: 69,
  temporary: 75,
  verification: 76,
  noPermission: 77,
  interrupted: 130,
  brokenPipe: 141,
  terminated: 143,
} as const

export type ExitCode = (typeof EXIT_CODES)[keyof typeof EXIT_CODES]

/** What each code says; the help and the manual page print this table. */
export const EXIT_CODE_MEANINGS: readonly (readonly [code: ExitCode, meaning: string])[] = [
  [EXIT_CODES.ok, 'it is done'],
  [EXIT_CODES.failure, 'it failed, for a reason that has no code of its own below'],
  [EXIT_CODES.usage, 'the command line is wrong; nothing was done'],
  [EXIT_CODES.badData, 'what was given or found is not a valid image, layer or answer'],
  [EXIT_CODES.notFound, 'no such image, layer, file or repository'],
  [EXIT_CODES.unavailable, 'the agent, a gateway, a peer or containerd cannot be reached'],
  [EXIT_CODES.temporary, 'it took too long; trying again may help'],
  [EXIT_CODES.verification, 'bytes are not what their CID or digest promises'],
  [EXIT_CODES.noPermission, 'permission denied'],
  [EXIT_CODES.interrupted, 'interrupted by SIGINT before it was done'],
  [EXIT_CODES.brokenPipe, 'whoever read standard output went away'],
  [EXIT_CODES.terminated, 'stopped by SIGTERM before it was done'],
]
