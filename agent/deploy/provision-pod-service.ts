import { createHash } from 'node:crypto'
import { create, toBinary } from '@bufbuild/protobuf'
import type { HandlerContext, ServiceImpl } from '@connectrpc/connect'
import type { V1Namespace } from '@kubernetes/client-node'
import { bytesToHex } from 'viem'
import {
  type Pod as OldPod,
  PodSchema as OldPodSchema,
} from '../../proto/messages/apocryph/pod_pb.js'
import {
  type PaymentChannel,
  type PodLogResponse,
  PodLogResponseSchema,
  type ProvisionPodResponse,
  ProvisionPodResponseSchema,
  type ProvisionPodService,
} from '../../proto/messages/apocryph/provision-pod_pb.js'
import { type Address, PodSchema } from '../../proto/messages/ipdr/deploy_pb.js'
import { CodedError } from '../../snapshotter/errors.ts'
import type { Admission, PodChannel } from './admission.ts'
import { type BearerToken, readBearerToken } from './bearer-token.ts'
import { CallError } from './call-error.ts'
import { type Cluster, NAMESPACE } from './cluster.ts'
import type { Deployments, Mode } from './deployments.ts'
import { type OpenSecret, translateOldPod } from './old-pod.ts'
import { PodError } from './parse-pod.ts'
import { addressesOf } from './pod-addresses.ts'
import { podLogs } from './pod-logs.ts'
import { namespaceOf } from './pod-namespace.ts'
import type { PodIdentity } from './pod-spec.ts'
import { podState } from './pod-status.ts'

const SERVICE_PATH = '/apocryph.proto.v0.provisionPod.ProvisionPodService'

type Parts = {
  readonly admission: Admission
  readonly deployments: Deployments
  readonly cluster: Cluster
  readonly openSecret: OpenSecret
  readonly operator: `0x${string}`
  readonly evmChainId: bigint
  /** Payment contracts, of which clients that name none in an update mean the one that the pod was deployed with. */
  readonly contracts: readonly `0x${string}`[]
}

/**
 * The service of Trusted Pods and Apocryph for their clients as they are. Their token is taken for what it says and nothing else: the
 * operation that is called, and the pod whose channel pays.
 */
export function provisionPodService({
  admission,
  deployments,
  cluster,
  openSecret,
  operator,
  evmChainId,
  contracts,
}: Parts): ServiceImpl<typeof ProvisionPodService> {
  const tokenFor = async (
    rpc: string,
    { requestHeader }: HandlerContext,
  ): Promise<BearerToken & { readonly identity: PodIdentity }> => {
    const header = requestHeader.get('authorization')
    const token = await readBearerToken(header, `${SERVICE_PATH}/${rpc}`, admission.now)
    const { publisher, podId } = token
    admission.mayBeHere(publisher)
    const namespace = namespaceOf(publisher, podId)
    const named = requestHeader.get('x-namespace')
    if (named !== null && named !== namespace) {
      throw new CallError('UNAUTHENTICATED', `X-Namespace: is not ${namespace}, the token's own`)
    }
    return { ...token, identity: { publisher, podId, namespace } }
  }

  const mustExist = async (namespace: string): Promise<V1Namespace> => {
    const found = await cluster.read<V1Namespace>({ ...NAMESPACE, metadata: { name: namespace } })
    if (found !== undefined) return found
    throw new PodError(
      'FAILED_PRECONDITION',
      `there is no pod ${namespace} here; provision it first`,
    )
  }

  const deploy = async (
    token: BearerToken & { readonly identity: PodIdentity },
    old: OldPod | undefined,
    channels: readonly PodChannel[],
    {
      mode,
      signal,
      request,
    }: { readonly mode: Mode; readonly signal: AbortSignal; readonly request: Uint8Array },
  ): Promise<ProvisionPodResponse> => {
    const { identity } = token
    if (old === undefined) throw new PodError('INVALID_ARGUMENT', 'pod: is missing')
    // Nothing is fetched for who does not pay.
    const unopened = toBinary(PodSchema, await translateOldPod(old, async () => new Uint8Array()))
    const asked = deployments.check(unopened)
    await firstFunded(channels, (channel) => admission.fundedSeconds(channel, asked, signal))
    const pod = toBinary(PodSchema, await translateOldPod(old, openSecret))
    const spec = deployments.check(pod)
    const { namespace } = identity
    admission.use({ ...token, pod: namespace, request })
    await deployments.deploy(identity, pod, mode)
    const state = await podState(cluster, namespace)
    const addresses = addressesOf(spec, state?.services ?? [])
    return create(ProvisionPodResponseSchema, { namespace, addresses: addresses.map(oldAddress) })
  }

  return {
    provisionPod: async (request, context) => {
      const token = await tokenFor('ProvisionPod', context)
      return await inAnswer(async () => {
        const channel = channelOf(request.payment, token)
        const digest = requestDigest(request.pod, channel)
        const { signal } = context
        return await deploy(token, request.pod, [channel], {
          mode: 'either',
          signal,
          request: digest,
        })
      })
    },
    updatePod: async (request, context) => {
      const token = await tokenFor('UpdatePod', context)
      await mustExist(token.identity.namespace)
      return await inAnswer(async () => {
        const { publisher, podId } = token
        const channels =
          request.payment === undefined
            ? contracts.map((contract) => ({ publisher, podId, operator, contract, evmChainId }))
            : [channelOf(request.payment, token)]
        const digest = requestDigest(request.pod, channels[0])
        const { signal } = context
        return await deploy(token, request.pod, channels, {
          mode: 'update',
          signal,
          request: digest,
        })
      })
    },
    deletePod: async (_request, context) => {
      const token = await tokenFor('DeletePod', context)
      const { namespace } = token.identity
      await mustExist(namespace)
      admission.use({ ...token, pod: namespace, request: new Uint8Array() })
      await deployments.delete(namespace)
      return { success: true }
    },
    async *getPodLogs({ containerName }, context): AsyncGenerator<PodLogResponse> {
      const { namespace } = (await tokenFor('GetPodLogs', context)).identity
      await mustExist(namespace)
      const wanted = {
        ...(containerName !== '' && { container: containerName }),
        follow: true,
        previous: false,
      }
      for await (const { time, line } of podLogs(cluster, namespace, wanted, context.signal)) {
        yield create(PodLogResponseSchema, {
          logEntry: { NanosecondsUnixEpoch: time, line, stream: 'stdout' },
        })
      }
    },
  }
}

/** What is wrong with a deployment stands in the answer, where these clients look for it; but not that it may be tried again. */
async function inAnswer(work: () => Promise<ProvisionPodResponse>): Promise<ProvisionPodResponse> {
  try {
    return await work()
  } catch (error) {
    if (error instanceof CallError && error.code === 'UNAUTHENTICATED') throw error
    if (!(error instanceof CodedError) || error.code === 'UNAVAILABLE') throw error
    return create(ProvisionPodResponseSchema, { error: error.message })
  }
}

/** Throws CallError UNAUTHENTICATED if the channel is not of the token's publisher and pod. */
function channelOf(
  payment: PaymentChannel | undefined,
  { publisher, podId }: BearerToken,
): PodChannel {
  if (payment === undefined) throw new PodError('INVALID_ARGUMENT', 'payment: is missing')
  const field = (
    name: 'contractAddress' | 'publisherAddress' | 'providerAddress' | 'podID',
    length: number,
  ): `0x${string}` => {
    const bytes = payment[name]
    if (bytes.length !== length) {
      throw new PodError(
        'INVALID_ARGUMENT',
        `payment.${name}: has ${bytes.length} bytes, not ${length}`,
      )
    }
    return bytesToHex(bytes)
  }
  if (payment.chainID.length > 32)
    throw new PodError('INVALID_ARGUMENT', 'payment.chainID: has more than 32 bytes')
  if (field('publisherAddress', 20) !== publisher) {
    throw new CallError('UNAUTHENTICATED', "payment.publisherAddress: is not the token's publisher")
  }
  if (field('podID', 32) !== podId) {
    throw new CallError(
      'UNAUTHENTICATED',
      "payment.podID: is not the token's pod; each pod has a channel of its own",
    )
  }
  return {
    publisher,
    podId,
    operator: field('providerAddress', 20),
    contract: field('contractAddress', 20),
    evmChainId: BigInt(`0x${Buffer.from(payment.chainID).toString('hex') || '0'}`),
  }
}

/** What a token may be used for once more. */
function requestDigest(pod: OldPod | undefined, channel: PodChannel | undefined): Uint8Array {
  const hash = createHash('sha256')
  if (pod !== undefined) hash.update(toBinary(OldPodSchema, pod))
  return hash.update(`${channel?.evmChainId}/${channel?.contract}/${channel?.operator}`).digest()
}

/** The first channel that pays; the last one's refusal, if none does. */
async function firstFunded(
  channels: readonly PodChannel[],
  check: (channel: PodChannel) => Promise<unknown>,
): Promise<void> {
  for (const [index, channel] of channels.entries()) {
    try {
      await check(channel)
      return
    } catch (error) {
      const isRefusal = error instanceof CodedError && error.code === 'FAILED_PRECONDITION'
      if (!isRefusal || index === channels.length - 1) throw error
    }
  }
}

function oldAddress(address: Address): {
  multiaddr: string
  containerName: string
  containerPort: bigint
} {
  const { where, container, containerPort } = address
  const multiaddr =
    where.case === 'url'
      ? `http/${where.value.replace(/^https?:\/\//, '')}`
      : where.case === 'tcpPort'
        ? `tcp/${where.value}`
        : ''
  return { multiaddr, containerName: container, containerPort: BigInt(containerPort) }
}
