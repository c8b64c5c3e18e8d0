import { once } from 'node:events'
import { mkdir } from 'node:fs/promises'
import type { FastifyPluginAsync } from 'fastify'
import { contentService } from '../snapshotter/content-service.ts'
import { ContentStore } from '../snapshotter/content-store.ts'
import { KEY_PROVIDER_MESSAGE_BYTES_MAX } from '../snapshotter/encryption/key-provider-protocol.ts'
import { trimMalloc } from '../snapshotter/process-calls.ts'
import { registryService } from '../snapshotter/registry-service.ts'
import { snapshotsService } from '../snapshotter/snapshots-service.ts'
import { Snapshotter } from '../snapshotter/snapshotter.ts'
import { takePrecedence } from '../snapshotter/thread-priority.ts'
import { TrustPolicies } from '../snapshotter/trust.ts'
import { adminService } from './admin-service.ts'
import { AuthorizeServer } from './authorize-server.ts'
import { ClusterBlocks } from './cluster/cluster-blocks.ts'
import { ClusterClient } from './cluster/cluster-client.ts'
import { clusterMembers } from './cluster/cluster-members.ts'
import { clusterService } from './cluster/cluster-service.ts'
import { readClusterTls } from './cluster/cluster-tls.ts'
import type { FoundNode } from './cluster/endpoint-slices.ts'
import { KubernetesPeers } from './cluster/kubernetes-peers.ts'
import type { Config } from './config.ts'
import { ContainerdImages } from './containerd-images.ts'
import { killContainer } from './containerd-tasks.ts'
import { ContentLinks } from './content-links.ts'
import { ImageReminder } from './forgotten-images.ts'
import { GrpcServer } from './grpc-server.ts'
import { HttpServer } from './http-server.ts'
import { BlockSources } from './ipfs/block-sources.ts'
import { GatewayClient } from './ipfs/gateway-client.ts'
import type { HeliaNode } from './ipfs/helia-node.ts'
import { KeyProviderClient } from './keys/key-provider-client.ts'
import { readKeyProviderConfig } from './keys/key-provider-config.ts'
import { keyProviderService } from './keys/key-provider-service.ts'
import { NodeKeys } from './keys/node-keys.ts'
import type { Logger } from './logger.ts'
import { tellLostPods } from './lost-pods.ts'
import { Metrics } from './metrics.ts'
import { monitoringRoutes } from './monitoring.ts'
import { placesOf } from './places.ts'
import { CriImageProxy } from './registries/cri-image-proxy.ts'
import { openRegistries } from './registries/open-registries.ts'
import { readPolicies } from './trust/read-policies.ts'
import { whenAtRest } from './when-at-rest.ts'
import { keepTellingOfLife, tellSupervisor } from './worker-message.ts'

/** How long Kubernetes has to tell this node what the others call it, in ms. 60 s: its pod has its address within seconds of its start. */
const NAMELESS_MS = 60_000

const NAMELESS =
  'this node does not know what the others call it, so it is a home to none of its own blocks, and they are fetched twice: set cluster.address, or have cluster.listen use the port of the Service'

/**
 * Runs the data path until `stop` aborts, then releases everything in reverse order: images, snapshots and page faults.
 * `fuseFd` is the mounted /dev/fuse that the supervisor keeps. Rejects if a part cannot start.
 */
export async function runDataWorker(
  config: Config,
  { fuseFd }: { readonly fuseFd: number | undefined },
  stop: AbortSignal,
  log: Logger,
): Promise<void> {
  let lazyMountsInUse = 0
  {
    await using opened = new AsyncDisposableStack()
    const places = placesOf(config)
    await mkdir(config.root, { recursive: true, mode: 0o700 })
    await mkdir(config.runDir, { recursive: true, mode: 0o700 })
    // Threads of libuv's pool are there by now; those that answer page faults inherit it.
    if (!takePrecedence()) {
      log.info(
        {},
        'page faults are answered at the priority of any other process: CAP_SYS_NICE is missing',
      )
    }
    const metrics = new Metrics()
    const gateways = config.ipfs.gateways.map((url) => opened.use(new GatewayClient(url)))
    const node = await heliaNode(config, log.child({ part: 'libp2p' }))
    if (node !== undefined) opened.use(node)
    const onBytes = (source: string, bytes: number): void => {
      if (source !== 'memory') metrics.fetched(source, bytes)
    }
    const onVerificationFailure = (): void => metrics.verificationFailed('block')
    const origin = new BlockSources([...gateways, ...(node?.providers ?? [])], {
      log: log.child({ part: 'ipfs' }),
      onBytes,
      onVerificationFailure,
    })
    const registries = opened.use(await openRegistries(config.registries, { log, metrics }))
    const tls = config.cluster.tls && (await readClusterTls(config.cluster.tls))
    const { kubernetes } = config.cluster
    let names = clusterMembers(config.cluster, [])
    const peers =
      tls && (names.others.length > 0 || kubernetes !== undefined)
        ? opened.use(new ClusterClient(names, { tls, log: log.child({ part: 'cluster' }) }))
        : undefined
    const shared =
      tls && config.cluster.blocks.share
        ? opened.use(
            await ClusterBlocks.open(
              names,
              { root: config.root, blocks: config.cluster.blocks },
              {
                origin,
                tls,
                log: log.child({ part: 'cluster' }),
                stop,
                onBytes,
                onServed: (bytes) => metrics.peerServed(bytes),
                onRefused: (why) => metrics.peerRefused(why),
                onVerificationFailure,
              },
            ),
          )
        : undefined
    const warnIfNameless = (): void => {
      if (config.cluster.listen !== undefined && names.self === undefined) log.warn({}, NAMELESS)
    }
    if (kubernetes === undefined) {
      warnIfNameless()
    } else {
      const onNodes = (found: readonly FoundNode[]): void => {
        names = clusterMembers(config.cluster, found)
        peers?.follow(names)
        shared?.follow(names)
      }
      opened.use(new KubernetesPeers(kubernetes, { log: log.child({ part: 'cluster' }), onNodes }))
      const late = setTimeout(warnIfNameless, NAMELESS_MS)
      opened.defer(() => clearTimeout(late))
    }
    const trust = new TrustPolicies(await readPolicies(config.trust), {
      onRefused: (policy) => metrics.imageRefused(policy),
    })
    metrics.hasPolicies(trust.names)
    const keys = await nodeKeys(config.decryption, log.child({ part: 'keys' }), stop)
    const images = new ContainerdImages(config.containerd.socketPath)
    const snapshotter = opened.use(
      await Snapshotter.open(
        {
          root: config.root,
          fuse: fuseFd === undefined ? undefined : { fd: fuseFd, dir: places.fuseDir },
          storeBytesMax: config.store.bytesMax,
          pinned: config.store.pinned,
          fetchConcurrency: config.fetch.concurrency,
          foregroundDeadlineMs: config.fetch.foregroundDeadlineMs,
          mergeLayersMin: config.mounts.mergeLayersMin,
          readAheadKb: config.mounts.readAheadKb,
          mountsFrom: config.mounts.from,
          prefetch: config.prefetch,
          fetchRest: config.prefetch.rest,
          indexRoots: config.registries.indexes,
        },
        {
          blocks: shared?.blocks ?? origin,
          keys,
          ...(config.registries.lazy && { registries: registries.images }),
          log: log.child({ part: 'snapshotter' }),
          metrics,
          trust,
          ...(peers && { peers }),
          imagesOfNode: images,
          onLost: (containers) => {
            const { socketPath } = config.containerd
            void tellLostPods(containers, { socketPath, log, stop })
          },
          endContainer: (snapshotKey) => killContainer(config.containerd.socketPath, snapshotKey),
        },
      ),
    )
    // Counted before anything closes, for the supervisor: what is in use must stay mounted.
    opened.defer(() => {
      lazyMountsInUse = snapshotter.mountsInUse()
    })
    metrics.observe({
      fuseRequests: () => snapshotter.reads().requests,
      servedBytes: () => snapshotter.reads().servedBytes,
      prefetched: () => snapshotter.prefetched(),
      queueDepths: () => snapshotter.queueDepths(),
      lazyMounts: () => snapshotter.mounts().length,
      storeBytes: () => snapshotter.storeBytes(),
      storeBytesMax: config.store.bytesMax,
      keptForClusterBytes: () => shared?.keptBytes ?? 0,
      clusterPeers: () => names.others.length,
    })
    const grpc = {
      log: log.child({ part: 'grpc' }),
      signal: stop,
      onCall: metrics.call.bind(metrics),
    }
    opened.use(
      await GrpcServer.listen(
        config.admin,
        [
          adminService(
            { storeBytesMax: config.store.bytesMax },
            {
              snapshotter,
              metrics,
              identity: () => ({
                peerId: node?.peerId ?? '',
                addresses: node?.multiaddrs ?? [],
              }),
            },
          ),
        ],
        grpc,
      ),
    )
    opened.use(
      await AuthorizeServer.listen(places, {
        authorize: (container, namespace) => snapshotter.authorize(container, namespace),
        log: log.child({ part: 'authorize' }),
      }),
    )
    if (config.keyProvider !== undefined && keys.nodeWide !== undefined) {
      const { socketPath } = config.keyProvider
      const service = keyProviderService(config.keyProvider, { keys: keys.nodeWide })
      const messageBytesMax = KEY_PROVIDER_MESSAGE_BYTES_MAX
      opened.use(await GrpcServer.listen({ socketPath, messageBytesMax }, [service], grpc))
    }
    let content: ContentStore | undefined
    if (config.content !== undefined) {
      const { root, socketPath } = config.content
      content = opened.use(
        await ContentStore.open(
          { root, recordsPath: `${config.root}/content.db` },
          {
            published: snapshotter.publishedBlobs,
            log: log.child({ part: 'content' }),
            onRead: (from, bytes) => metrics.contentRead(from, bytes),
          },
        ),
      )
      opened.use(await GrpcServer.listen({ socketPath }, [contentService(content)], grpc))
    }
    const registry = opened.use(
      await HttpServer.listen(
        config.registry.listen,
        registryService({
          images: snapshotter.directory,
          log: log.child({ part: 'registry' }),
          onManifest: (served, signal) => snapshotter.manifestServed(served, signal),
          onSent: (kind, bytes) => metrics.registrySent(kind, bytes),
        }),
      ),
    )
    // The registry first: containerd pulls as soon as it finds the snapshotter.
    opened.use(
      await GrpcServer.listen(config.snapshotter, [snapshotsService(snapshotter.snapshots)], grpc),
    )
    const { imageService } = config.registries.credentials
    if (imageService !== undefined) {
      const proxy = opened.use(
        new CriImageProxy(config.containerd.socketPath, {
          pulls: registries.pulls,
          beforePull: (image, signal) => snapshotter.pullBegins(image, signal),
        }),
      )
      opened.use(await GrpcServer.listen(imageService, [proxy.service], grpc))
    }
    if (config.cluster.listen !== undefined && tls !== undefined) {
      const known = clusterService({
        sideIndex: (blobCid) => snapshotter.sideIndex(blobCid),
        prefetchList: (layerChainId) => snapshotter.learnedList(layerChainId),
        onAnswer: (what, found) => metrics.peerAnswered(what, found),
      })
      const service: FastifyPluginAsync = async (app) => {
        await app.register(known)
        if (shared !== undefined) await app.register(shared.service)
      }
      const { cert, key, ca } = tls
      const secure = {
        requestCert: true,
        rejectUnauthorized: true,
        cert: Buffer.from(cert),
        key: Buffer.from(key),
        ca: Buffer.from(ca),
      }
      opened.use(await HttpServer.listen(config.cluster.listen, service, { tls: secure }))
    }
    const monitoring = opened.use(
      await HttpServer.listen(
        config.monitoring.listen,
        monitoringRoutes({ metrics, readiness: () => (stop.aborted ? 'stopping' : undefined) }),
      ),
    )
    tellSupervisor({ kind: 'ready', rung: snapshotter.kernel.rung })
    if (content !== undefined) {
      const { socketPath } = config.containerd
      const parts = { images, store: content, log: log.child({ part: 'content' }) }
      opened.use(new ContentLinks(socketPath, parts))
    }
    opened.use(
      new ImageReminder(config.containerd.socketPath, { log: log.child({ part: 'containerd' }) }),
    )
    opened.use(keepTellingOfLife())
    const tidy = (): void => {
      // Block buffers of many sizes leave holes that malloc returns only from the end, 120 MB after one image (test/bench/README.md).
      trimMalloc()
      snapshotter.tidy()
    }
    opened.use(whenAtRest(() => metrics.fetchedBytes, tidy))
    log.info(
      {
        snapshotter: config.snapshotter.socketPath,
        registry: registry.address,
        monitoring: monitoring.address,
        rung: snapshotter.kernel.rung,
      },
      'ready',
    )
    const failed = [snapshotter.failed, ...(content === undefined ? [] : [content.failed])]
    if (!stop.aborted) await Promise.race([once(stop, 'abort'), ...failed])
    log.info({}, 'stopping: waiting for what is in flight')
  }
  tellSupervisor({ kind: 'stopped', lazyMountsInUse })
}

/** This node on libp2p, if it is to have a part in it: the packages alone take tens of megabytes. */
async function heliaNode(config: Config, log: Logger): Promise<HeliaNode | undefined> {
  const { bitswap, peers, listen } = config.ipfs
  if (!bitswap || (peers.length === 0 && listen.length === 0)) return undefined
  const { HeliaNode } = await import('./ipfs/helia-node.ts')
  return HeliaNode.start({ keyPath: `${config.root}/libp2p.key`, peers, listen }, { log })
}

/** The keys and key providers of the configuration. What is wrong with its directory is told of, and may be mended later. */
async function nodeKeys(
  { keysDir, keyProviders }: Config['decryption'],
  log: Logger,
  signal: AbortSignal,
): Promise<NodeKeys> {
  const providers =
    keyProviders === undefined
      ? []
      : [new KeyProviderClient(await readKeyProviderConfig(keyProviders))]
  const keys = new NodeKeys({ keysDir }, { providers, log })
  try {
    await keys.nodeWide?.keys(signal)
  } catch (error) {
    signal.throwIfAborted()
    log.warn({ keysDir }, error instanceof Error ? error.message : String(error))
  }
  return keys
}
