import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { dirname, relative, resolve } from 'node:path'
import type { PrivateKeyAccount } from 'viem/accounts'
import type { DeployClient, PodId } from '../client/deploy-client.ts'
import type { DescribedPod } from '../client/described-pod.ts'
import type { OldDeploymentState } from '../client/old-manifest.ts'
import { EXIT_CODES } from './exit-codes.ts'
import { CommandFailure } from './failure.ts'

/** The file that a pod is described in where none is named. */
export const DEPLOYMENT_FILE = 'ipdr.yaml'

export const FILE_ARGUMENT = {
  type: 'string',
  default: DEPLOYMENT_FILE as string,
  describe:
    'The deployment file: YAML as docs/deployment-file.md has it, or a manifest of trustedpods',
} as const

/** Options of the commands that talk to a cluster. */
export const PUBLISHER_OPTIONS = {
  provider: {
    type: 'string',
    array: true,
    requiresArg: true,
    default: [] as string[],
    env: 'IPDR_PROVIDER',
    describe: "Multiaddr of the cluster's agent, with /p2p/ and its ID; may be repeated",
    valueName: 'MULTIADDR',
  },
  'key-file': {
    type: 'string',
    requiresArg: true,
    describe: 'File with the Ethereum key that pays, 64 hex digits; else IPDR_KEY has it',
    valueName: 'FILE',
  },
  contract: {
    type: 'string',
    requiresArg: true,
    describe: 'The payment contract; by default the first that the cluster takes',
    valueName: 'ADDRESS',
  },
  'pod-id': {
    type: 'string',
    requiresArg: true,
    describe: "32 bytes in hex; by default made of the file's name for the pod",
    valueName: 'HEX',
  },
  state: {
    type: 'string',
    requiresArg: true,
    describe: 'Deployment state of trustedpods, for the provider, contract and pod ID in it',
    valueName: 'FILE',
  },
} as const

export type PublisherValues = {
  readonly provider: readonly string[]
  readonly 'key-file'?: string | undefined
  readonly contract?: string | undefined
  readonly 'pod-id'?: string | undefined
  readonly state?: string | undefined
}

/** A cluster, and one pod there. */
export type OpenedPod = {
  readonly client: DeployClient
  readonly podId: PodId
  readonly described: DescribedPod
}

/** What a deployment file says; images and secrets that it names lie beside it. */
export async function describedPod(file: string): Promise<DescribedPod> {
  const { readDeploymentFile } = await import('../client/deployment-file.ts')
  const contents = await readFile(file).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error
    const message = `there is no ${file}: write one with ipdr init, or name another`
    throw new CommandFailure(EXIT_CODES.notFound, message, undefined, error)
  })
  return await readDeploymentFile(file, contents, {
    readFile: (path) => readFile(resolve(dirname(file), path)),
    environment: process.env,
  })
}

/** A client for the cluster that options, file or state name; closed with `opened`. */
export async function openPod(
  file: string,
  values: PublisherValues,
  opened: AsyncDisposableStack,
): Promise<OpenedPod> {
  const described = await describedPod(file)
  const state = await readState(values.state)
  const named = described.provider ?? state?.provider?.libp2pAddress
  const provider = values.provider.length > 0 ? values.provider : named === undefined ? [] : [named]
  const contract = values.contract ?? state?.payment?.contract
  const client = await openClient({ ...values, provider, contract }, opened)
  const podId = parsePodId(values['pod-id']) ?? state?.podId ?? podIdOf(file, described)
  return { client, podId, described }
}

/** A client for a cluster; closed with `opened`. */
export async function openClient(
  values: PublisherValues,
  opened: AsyncDisposableStack,
): Promise<DeployClient> {
  const { provider, contract } = values
  if (provider.length === 0) {
    const message =
      'whom to ask is not said: give --provider, IPDR_PROVIDER, or provider: in the deployment file'
    throw new CommandFailure(EXIT_CODES.usage, message)
  }
  if (contract !== undefined && !/^0x[0-9a-fA-F]{40}$/.test(contract)) {
    throw new CommandFailure(
      EXIT_CODES.usage,
      `--contract: ${contract} is no address: 0x and 40 hex digits`,
    )
  }
  const signer = await readKey(values['key-file'])
  const { startClientHost } = await import('../client/client-host.ts')
  const { DeployClient } = await import('../client/deploy-client.ts')
  const libp2p = await startClientHost()
  opened.defer(() => libp2p.stop())
  try {
    return new DeployClient(libp2p, provider, {
      signer,
      ...(contract !== undefined && { contract: contract as `0x${string}` }),
    })
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    const message = `--provider: ${provider.join(', ')} is no multiaddr like /dns4/node.example.com/tcp/4002/p2p/12D3…: ${reason}`
    throw new CommandFailure(EXIT_CODES.usage, message, undefined, error)
  }
}

/** Never from the command line, which everybody on the machine can read. */
async function readKey(file: string | undefined): Promise<PrivateKeyAccount> {
  const text = file === undefined ? process.env['IPDR_KEY'] : await readFile(file, 'utf8')
  const where = file ?? 'IPDR_KEY'
  if (text === undefined || text.trim() === '') {
    const message = 'no key to sign with: give --key-file, or set IPDR_KEY'
    throw new CommandFailure(EXIT_CODES.usage, message)
  }
  const digits = text.trim().replace(/^0x/, '')
  const { privateKeyToAccount } = await import('viem/accounts')
  try {
    if (/^[0-9a-fA-F]{64}$/.test(digits)) return privateKeyToAccount(`0x${digits}`)
  } catch {
    // Zero, or beyond the curve's order: said below, without the key.
  }
  throw new CommandFailure(EXIT_CODES.badData, `${where} holds no Ethereum key: 64 hex digits`)
}

async function readState(path: string | undefined): Promise<OldDeploymentState | undefined> {
  if (path === undefined) return undefined
  const { readOldDeploymentState } = await import('../client/old-manifest.ts')
  return readOldDeploymentState(await readFile(path), path)
}

function parsePodId(text: string | undefined): PodId | undefined {
  if (text === undefined) return undefined
  if (/^0x[0-9a-fA-F]{64}$/.test(text)) return text.toLowerCase() as PodId
  throw new CommandFailure(EXIT_CODES.usage, `--pod-id: ${text} must be 0x and 64 hex digits`)
}

/** The same pod for the same name, wherever the file lies; without a name, as trustedpods has it: of the file's path from here. */
function podIdOf(file: string, { pod }: DescribedPod): PodId {
  const text = pod.name === '' ? relative('.', file) : `ipdr pod ${pod.name}`
  return `0x${createHash('sha256').update(text).digest('hex')}`
}
