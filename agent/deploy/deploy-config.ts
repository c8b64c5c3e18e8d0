import { z } from 'zod'
import { type ListenAddress, listenAddress } from '../listen-address.ts'

/** The deploy endpoint's part of the configuration, with every default filled in. */
export type DeployConfig = {
  /** Multiaddrs to listen on, as /ip4/0.0.0.0/tcp/4002, `/ws` behind it for WebSockets, /webrtc-direct, or a relay's with /p2p-circuit. */
  readonly listen: readonly string[]
  /** What publishers dial in their place. */
  readonly announce: readonly string[]
  /** Networks from which no connection is taken. */
  readonly denied: readonly string[]
  readonly connectionsMax: number
  /** Requests of one address a second; twice as many at once. */
  readonly requestsPerSecondMax: number
  /** Undefined: as in a pod, by its service account. */
  readonly kubeconfig?: string | undefined
  /** /metrics, /livez and /readyz of the control worker. */
  readonly monitoring: { readonly listen: ListenAddress }
  /** Where the agents themselves live: leases and claims are kept there. */
  readonly namespace: string
  /** The Ethereum address that channels pay, in lower case. */
  readonly operator: `0x${string}`
  /** Publishers who may deploy; undefined: whoever pays. */
  readonly publishers?: readonly `0x${string}`[] | undefined
  readonly chain: {
    readonly id: bigint
    /** JSON-RPC endpoints, asked in this order. */
    readonly rpc: readonly string[]
  }
  /** What is accepted for payment. */
  readonly offers: readonly OfferConfig[]
  /** For how long a channel must last when a pod is deployed, in seconds. */
  readonly fundedSecondsMin: number
  readonly hostSuffixes: readonly string[]
  readonly runtimeClasses: readonly string[]
  readonly routes:
    | { readonly kind: 'none' }
    | { readonly kind: 'ingress'; readonly className?: string | undefined }
    | {
        readonly kind: 'gateway'
        readonly parent: {
          readonly namespace: string
          readonly name: string
          readonly sectionName?: string | undefined
        }
      }
  /** KEDA's HTTP add-on, by which pods sleep until a request comes. */
  readonly keda?:
    | { readonly namespace: string; readonly service: string; readonly port: number }
    | undefined
  /** Where pods ask to be put to sleep, and what they call; undefined: they cannot ask. */
  readonly scaleDown?: { readonly listen: ListenAddress; readonly url: string } | undefined
  readonly storageClass?: string | undefined
  readonly sharedStorageClass?: string | undefined
  /** Namespaces from which requests for host names come. */
  readonly ingressNamespaces: readonly string[]
  /** Networks that pods must not reach: nodes, services and pods of others. */
  readonly clusterCidrs: readonly string[]
  /** Whether nodes have user namespaces for pods (Kubernetes 1.33): replicas get one each. Images still have to name a user that is not root. */
  readonly userNamespaces: boolean
}

export type OfferConfig = {
  readonly contract: `0x${string}`
  readonly token: `0x${string}`
  /** Base units of the token per core, byte or device and 10^9 seconds, by resource: cpu, memory, storage, or a device. */
  readonly prices: ReadonlyMap<string, bigint>
  /** Seconds that a channel must stay locked at least once its publisher wants out. */
  readonly unlockSecondsMin: number
}

const address = z
  .string()
  .regex(/^0x[0-9a-fA-F]{40}$/, 'must be an Ethereum address: 0x and 40 hex digits')
  .transform((text) => text.toLowerCase() as `0x${string}`)

const multiaddrs = z.array(z.string().startsWith('/').max(512)).max(16)

const name = z
  .string()
  .max(63)
  .regex(/^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/, 'must be a name as Kubernetes gives it')

const cidr = z.union([z.cidrv4(), z.cidrv6()])

const price = z
  .string()
  .regex(/^\d{1,40}$/, 'must be a whole number of base units, in quotes')
  .transform(BigInt)

const offer = z.strictObject({
  contract: address,
  token: address,
  prices: z
    .record(z.string().min(1).max(200), price)
    .transform((prices) => new Map(Object.entries(prices)))
    .default(new Map()),
  // 300 s: the default of the existing client, and time to settle in.
  unlockSecondsMin: z.number().int().min(0).max(31_536_000).default(300),
})

const fields = z.strictObject({
  listen: multiaddrs.min(1).default(['/ip4/0.0.0.0/tcp/4002', '/ip4/0.0.0.0/tcp/4003/ws']),
  announce: multiaddrs.default([]),
  denied: z.array(z.string().startsWith('/').max(512)).max(1_024).default([]),
  // 50: a publisher's page asks some five times a second, and several may share an address.
  requestsPerSecondMax: z.number().int().min(1).max(1_000_000).default(50),
  // 1,000 of some 220 KiB each are 220 MiB (test/bench/README.md).
  connectionsMax: z.number().int().min(1).max(100_000).default(1_000),
  kubeconfig: z
    .string()
    .regex(/^\/[^\0]*$/, 'must be an absolute path')
    .optional(),
  monitoring: z.strictObject({ listen: listenAddress.prefault('127.0.0.1:5083') }).prefault({}),
  namespace: name.default('ipdr-system'),
  operator: address,
  publishers: z.array(address).min(1).max(10_000).optional(),
  chain: z.strictObject({
    id: z.number().int().min(1).transform(BigInt),
    rpc: z
      .array(z.url({ protocol: /^https?$/ }).max(1_024))
      .min(1)
      .max(8),
  }),
  offers: z.array(offer).min(1).max(64),
  // 600 s: two of the payment's unlock times.
  fundedSecondsMin: z.number().int().min(0).max(31_536_000).default(600),
  hostSuffixes: z
    .array(z.string().regex(/^\.[a-z0-9.-]{1,250}$/, 'must be like .apps.example.com'))
    .max(64)
    .default([]),
  runtimeClasses: z.array(name).max(64).default([]),
  routes: z
    .discriminatedUnion('kind', [
      z.strictObject({ kind: z.literal('none') }),
      z.strictObject({ kind: z.literal('ingress'), className: name.optional() }),
      z.strictObject({
        kind: z.literal('gateway'),
        parent: z.strictObject({ namespace: name, name, sectionName: name.optional() }),
      }),
    ])
    .default({ kind: 'ingress' }),
  keda: z
    .strictObject({
      namespace: name.default('keda'),
      service: name.default('keda-add-ons-http-interceptor-proxy'),
      port: z.number().int().min(1).max(65_535).default(8_080),
    })
    .optional(),
  scaleDown: z
    .strictObject({
      listen: listenAddress.refine(({ port }) => port !== 0, {
        error: 'must have a port other than 0: what pods may reach is written down beforehand',
      }),
      // Pods write the path behind it.
      url: z
        .url({ protocol: /^https?$/ })
        .max(1_024)
        .regex(/^[^?#]*$/, 'must have no ? and no #')
        .transform((url) => url.replace(/\/+$/, '')),
    })
    .optional(),
  storageClass: name.optional(),
  sharedStorageClass: name.optional(),
  ingressNamespaces: z.array(name).max(16).default(['ingress-nginx']),
  clusterCidrs: z
    .array(cidr)
    .max(64)
    .default(['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', 'fc00::/7']),
  userNamespaces: z.boolean().default(false),
})

export const deployConfigSchema: z.ZodType<DeployConfig> = fields.refine(
  ({ keda, scaleDown }) => scaleDown === undefined || keda !== undefined,
  {
    path: ['scaleDown'],
    error: 'needs keda, since nothing else wakes a pod that sleeps; set it too, or leave this out',
  },
)
