/** Options of the commands that read images of others. */
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
