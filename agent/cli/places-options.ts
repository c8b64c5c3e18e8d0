/** Options of the commands that look at images without an agent, beside --repository: where their blocks may be. */
export const PLACES_OPTIONS = {
  gateway: {
    type: 'string',
    array: true,
    requiresArg: true,
    default: [] as string[],
    describe: 'Trustless HTTP gateway to ask; may be repeated',
    valueName: 'URL',
  },
  peer: {
    type: 'string',
    array: true,
    requiresArg: true,
    default: [] as string[],
    describe: 'Peer to ask by bitswap, with /p2p/ and its ID; may be repeated',
    valueName: 'MULTIADDR',
  },
} as const

/** What those options come to, and --repository. */
export type Places = {
  readonly repository: string | undefined
  readonly gateway: readonly string[]
  readonly peer: readonly string[]
}
