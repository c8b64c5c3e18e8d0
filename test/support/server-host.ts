/** Where a server of a test runs: this machine's loopback, or a host that others reach by a link. */
export type ServerHost = {
  /** At which it listens. */
  readonly address: string
  /** The words of a command line that run a command there. */
  command(argv: readonly string[]): string[]
}

export const LOOPBACK: ServerHost = { address: '127.0.0.1', command: (argv) => [...argv] }
