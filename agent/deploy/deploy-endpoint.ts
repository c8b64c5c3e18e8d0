import { connectNodeAdapter } from '@connectrpc/connect-node'
import type { Libp2p } from '@libp2p/interface'
import { ProvisionPodService } from '../../proto/messages/apocryph/provision-pod_pb.js'
import { ProvisioningCapacityService } from '../../proto/messages/apocryph/provisioning-capacity_pb.js'
import { DeployService } from '../../proto/messages/ipdr/deploy_pb.js'
import type { BlockSource } from '../../snapshotter/block-source.ts'
import type { Log } from '../../snapshotter/log.ts'
import { DEPLOY_PROTOCOL } from '../client/deploy-client.ts'
import { readOrCreateNodeKey } from '../ipfs/node-key.ts'
import { Admission, type Funds } from './admission.ts'
import { Capacity } from './capacity.ts'
import type { Cluster } from './cluster.ts'
import { type CallEnd, connectErrors } from './connect-errors.ts'
import type { DeployConfig } from './deploy-config.ts'
import { startDeployHost } from './deploy-host.ts'
import { deployService, type Images, PAYLOAD_BYTES_MAX } from './deploy-service.ts'
import { Deployments } from './deployments.ts'
import { HostClaims } from './host-claims.ts'
import { readIpfsFile } from './ipfs-file.ts'
import { kubernetesObjects } from './kubernetes-objects.ts'
import { openSealed } from './open-secret.ts'
import { PodTurns } from './pod-turns.ts'
import { provisionPodService } from './provision-pod-service.ts'
import { provisioningCapacityService } from './provisioning-capacity-service.ts'
import { RequestRate } from './request-rate.ts'
import { StreamServer } from './stream-server.ts'
import { UsedCalls } from './used-calls.ts'

/** The names under which existing clients dial. Each takes any of the services: they come over Kubo, which knows one at a time. */
const OLD_PROTOCOLS = ['/x/trusted-pods/', '/x/apocryph/'].flatMap((prefix) =>
  ['provision-pod/0.0.1', 'provisioning-capacity/0.0.1'].map((name) => prefix + name),
)

/** A request: a deployment, and what stands around it. Those of existing clients carry secrets by their CIDs. */
const REQUEST_BYTES_MAX = PAYLOAD_BYTES_MAX + 64 * 1024

/** What one secret on IPFS may have. */
const SECRET_BYTES_MAX = 256 * 1024

const NO_IMAGES: Images = { arrivalOf: async () => undefined }

type Parts = {
  readonly cluster: Cluster
  readonly funds: Funds
  /** What has arrived of images on this node; none: nothing is told of it. */
  readonly images?: Images
  /** Where secrets of existing clients come from. */
  readonly blocks: BlockSource
  readonly log: Log
  /** Seconds since 1970. */
  readonly now?: () => number
  /** A call has ended. */
  readonly onCall?: (end: CallEnd) => void
}

/** What publishers reach over libp2p. */
export class DeployEndpoint implements AsyncDisposable {
  readonly libp2p: Libp2p
  readonly deployments: Deployments
  readonly #servers: readonly StreamServer[]
  readonly #turns: PodTurns
  readonly #opened: AsyncDisposableStack

  private constructor(
    parts: Pick<DeployEndpoint, 'libp2p' | 'deployments'>,
    { servers, turns }: { readonly servers: readonly StreamServer[]; readonly turns: PodTurns },
    opened: AsyncDisposableStack,
  ) {
    this.libp2p = parts.libp2p
    this.deployments = parts.deployments
    this.#servers = servers
    this.#turns = turns
    this.#opened = opened
  }

  /** Listens, with the key and the memory of used calls that lie in `dir`. Rejects with CodedError for addresses or a key that cannot be used. */
  static async listen(config: DeployConfig, dir: string, parts: Parts): Promise<DeployEndpoint> {
    const { cluster, funds, blocks, log } = parts
    const { now = () => Date.now() / 1_000, onCall = () => undefined, images = NO_IMAGES } = parts
    await using opened = new AsyncDisposableStack()
    const libp2p = await startDeployHost(config, await readOrCreateNodeKey(`${dir}/peer.key`))
    opened.defer(() => libp2p.stop())
    const peerId = libp2p.peerId.toString()
    const used = opened.use(UsedCalls.open(`${dir}/used-calls.db`))
    const admission = new Admission(config, { peerId, used, funds, now })
    const { operator, namespace, chain, offers } = config
    const turns = new PodTurns(namespace, { cluster, log })
    const deployments = new Deployments({
      cluster,
      turns,
      hosts: new HostClaims(namespace, { cluster }),
      limits: {
        runtimeClasses: config.runtimeClasses,
        hostSuffixes: config.hostSuffixes,
        hasRoutes: config.routes.kind !== 'none',
      },
      objectsOf: (spec, identity, options) => kubernetesObjects(spec, identity, config, options),
      log,
    })
    const capacity = new Capacity(config, { peerId, cluster })
    const openSecret = async ({
      cid,
      key,
    }: {
      cid: Uint8Array
      key: Uint8Array | undefined
    }): Promise<Uint8Array> => {
      const file = await readIpfsFile(cid, SECRET_BYTES_MAX, blocks)
      return key === undefined || key.length === 0 ? file : openSealed(file, key)
    }
    const shared = { admission, deployments, cluster, operator }
    const answer = connectNodeAdapter({
      interceptors: [connectErrors(log, onCall)],
      readMaxBytes: REQUEST_BYTES_MAX,
      // Old clients take none, and what we send is small.
      acceptCompression: [],
      grpc: false,
      grpcWeb: false,
      routes: (router) => {
        router.service(DeployService, deployService({ ...shared, capacity, images }))
        router.service(
          ProvisionPodService,
          provisionPodService({
            ...shared,
            openSecret,
            evmChainId: chain.id,
            contracts: offers.map(({ contract }) => contract),
          }),
        )
        router.service(ProvisioningCapacityService, provisioningCapacityService(capacity))
      },
    })
    const rate = new RequestRate(config.requestsPerSecondMax)
    const takes = (host: string): boolean => rate.takes(host)
    const servers = [
      opened.use(
        await StreamServer.listen({ protocols: [DEPLOY_PROTOCOL], takes }, answer, { libp2p }),
      ),
      opened.use(
        await StreamServer.listen(
          { protocols: OLD_PROTOCOLS, isOfOldClients: true, takes },
          answer,
          {
            libp2p,
          },
        ),
      ),
    ]
    return new DeployEndpoint({ libp2p, deployments }, { servers, turns }, opened.move())
  }

  /** Addresses that publishers can dial, with `/p2p/<peer ID>`. */
  get multiaddrs(): string[] {
    return this.libp2p.getMultiaddrs().map((address) => address.toString())
  }

  /** How much there is to do at the moment. */
  get load(): { readonly streams: number; readonly connections: number; readonly changes: number } {
    const streams = this.#servers.reduce((sum, server) => sum + server.streams, 0)
    const connections = this.libp2p.getConnections().length
    return { streams, connections, changes: this.#turns.waiting }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened.disposeAsync()
  }
}
