import { dirname, join } from 'node:path'
import { runCommand } from './run-command.ts'
import { SuitePrograms } from './suite-programs.ts'

/** Runs Debian's kubectl and gives back what it prints; `kubeconfig` is for what asks a server. Rejects with CommandError. */
export async function kubectl(
  words: readonly string[],
  { kubeconfig }: { readonly kubeconfig?: string } = {},
): Promise<string> {
  const [file, ...args] = kubectlCommand()
  // It keeps what it learns of a server, by default in the home directory.
  const server =
    kubeconfig === undefined
      ? []
      : [`--kubeconfig=${kubeconfig}`, `--cache-dir=${join(dirname(kubeconfig), 'kubectl')}`]
  return await runCommand(file, [...args, ...server, ...words], { env: {} })
}

/** The words that start it. The first call unpacks it. */
export function kubectlCommand(): [file: string, ...args: string[]] {
  const programs = SuitePrograms.unpack('trixie', 'kubectl', 'kubernetes-client')
  return programs.command('usr/bin/kubectl')
}
