import { request } from 'undici'
import { connect } from '../../../proto/client.ts'
import { criImageContract, snapshotsContract } from '../../../proto/load.ts'
import type { Config } from '../../config.ts'
import { type Check, type Finding, failure, notChecked, ok, warning } from './finding.ts'
import { reasonOf, statusOf } from './reason-of.ts'
import type { RunningAgent } from './running-agent.ts'

/** gRPC's status of something that does not exist. */
const NOT_FOUND = 5

/** The snapshot that is asked for: nobody has one of this name. */
const NO_SNAPSHOT = 'ipdr-doctor'

/** What the agent offers: its own socket, containerd's, and the registry. */
export function agentChecks(config: Config, agent: RunningAgent): readonly Check[] {
  return [
    { name: 'agent', look: (signal) => admin(config, agent, signal) },
    { name: 'snapshotter socket', look: (signal) => snapshotter(config, signal) },
    { name: 'registry endpoint', look: (signal) => registry(config, signal) },
    { name: 'health', look: (signal) => health(config, signal) },
    { name: 'image service', look: (signal) => imageService(config, signal) },
  ]
}

async function admin(config: Config, agent: RunningAgent, signal: AbortSignal): Promise<Finding> {
  const status = await agent.status(signal)
  const { socketPath } = config.admin
  if (status === undefined) {
    return failure(
      `no agent answers at ${socketPath}: ${agent.problem}`,
      'Start it (systemctl start ipdr-agent) and see why it ended: journalctl -u ipdr-agent.',
    )
  }
  const bad = Number(status.verificationFailures)
  const says = `ipdr-agent ${status.version}, pid ${status.pid}`
  if (bad === 0) return ok(says)
  return warning(
    `${says}, has refused ${bad} blocks that were not what their CID promises`,
    'Its log names who sent them (journalctl -u ipdr-agent): take that gateway or peer out of the configuration.',
  )
}

async function snapshotter(config: Config, signal: AbortSignal): Promise<Finding> {
  const { socketPath } = config.snapshotter
  using client = connect(snapshotsContract(), socketPath, { 'containerd-namespace': 'k8s.io' })
  try {
    await client.calls.Stat({ snapshotter: 'ipdr', key: NO_SNAPSHOT }, { signal })
  } catch (error) {
    if (statusOf(error) !== NOT_FOUND) {
      return failure(
        `no snapshotter answers at ${socketPath}: ${reasonOf(error)}`,
        'Pods cannot start until it does: start the agent, or compare snapshotter.socketPath.',
      )
    }
  }
  return ok(`it answers at ${socketPath}`)
}

/** Answers in the place of a registry at the configured address. */
async function registry(config: Config, signal: AbortSignal): Promise<Finding> {
  const url = registryUrl(config)
  const refusal = await refusalOf(`${url}/v2/`, signal)
  if (refusal === undefined) return ok(`it answers at ${url}`)
  return failure(
    `${url}/v2/ ${refusal}`,
    'Start the agent; if another program has the port, set registry.listen, and hosts.toml, to another.',
  )
}

async function health({ monitoring }: Config, signal: AbortSignal): Promise<Finding> {
  const url = `http://${hostPort(monitoring.listen)}/readyz`
  const refusal = await refusalOf(url, signal)
  if (refusal === undefined) return ok(`it is ready, says ${url}`)
  return failure(`${url} ${refusal}`, 'The agent starts, stops or does not run: see its log.')
}

async function imageService({ registries }: Config, signal: AbortSignal): Promise<Finding> {
  const socketPath = registries.credentials.imageService?.socketPath
  if (socketPath === undefined) {
    return notChecked('the configuration has no registries.credentials.imageService')
  }
  using client = connect(criImageContract(), socketPath)
  try {
    const { images } = await client.calls.ListImages({}, { signal })
    return ok(`it answers at ${socketPath}, with ${images.length} images`)
  } catch (error) {
    return failure(
      `no image service answers at ${socketPath}: ${reasonOf(error)}`,
      'Start the agent and containerd; the kubelet cannot pull while its imageServiceEndpoint is silent.',
    )
  }
}

/** Where the registry endpoint listens, as it stands in hosts.toml. */
export function registryUrl({ registry }: Pick<Config, 'registry'>): string {
  return `http://${hostPort(registry.listen)}`
}

function hostPort({ host, port }: { readonly host: string; readonly port: number }): string {
  return `${host.includes(':') ? `[${host}]` : host}:${port}`
}

/** Undefined if the URL is answered with success, else the end of a sentence. */
async function refusalOf(url: string, signal: AbortSignal): Promise<string | undefined> {
  try {
    const { statusCode, body } = await request(url, { signal })
    await body.dump()
    return statusCode === 200 ? undefined : `answers HTTP ${statusCode}`
  } catch (error) {
    return `cannot be asked: ${reasonOf(error)}`
  }
}
