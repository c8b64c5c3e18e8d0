import { BlockList, isIP } from 'node:net'
import { z } from 'zod'

/** Slices that are kept. 1,024: of 100 endpoints each, as Kubernetes fills them, a hundred thousand nodes. */
const SLICES_MAX = 1_024

/** Endpoints that are kept, of all slices together. 16,384: three times the nodes of the largest cluster that Kubernetes supports, 5,000. */
const ENDPOINTS_MAX = 16_384

/** The name of the port, in the Service and in the DaemonSet. */
export const CLUSTER_PORT_NAME = 'cluster'

/** The agent of another node, or of this one. */
export type FoundNode = {
  /** As the others call it: https, address and port. */
  readonly url: string
  /** Whether it may be asked, as Kubernetes sees it. */
  readonly isReady: boolean
}

const nameSchema = z.object({
  metadata: z.object({ namespace: z.string().max(63).optional(), name: z.string().max(253) }),
})

/** An EndpointSlice of discovery.k8s.io/v1, as far as we look into it. */
const sliceSchema = nameSchema.extend({
  addressType: z.enum(['IPv4', 'IPv6']),
  // None while there are no endpoints.
  ports: z
    .array(
      z.object({
        name: z.string().nullish(),
        port: z.number().int().min(1).max(65_535).nullish(),
      }),
    )
    .max(100)
    .nullish(),
  // The API server takes 1,000 of a slice.
  endpoints: z.array(z.unknown()).max(1_000).nullish(),
})

const endpointSchema = z.object({
  // All the same, says the API; "clients must not handle additional".
  addresses: z.array(z.string().max(64)).min(1).max(100),
  conditions: z.object({ ready: z.boolean().nullish() }).nullish(),
  nodeName: z.string().max(253).nullish(),
})

type Slice = z.infer<typeof sliceSchema>

type Endpoint = FoundNode & {
  /** What two addresses of one node have in common. */
  readonly node: string
}

/** Where no other node is: nowhere, this one, the link, everybody. Each of its family: IPv4 would be found among what IPv6 has of it. */
const NOWHERE = {
  IPv4: blockList('ipv4', [
    ['0.0.0.0', 8],
    ['127.0.0.0', 8],
    ['169.254.0.0', 16],
    ['224.0.0.0', 3],
  ]),
  IPv6: blockList('ipv6', [
    ['::', 127],
    ['::ffff:0:0', 96],
    ['fe80::', 10],
    ['ff00::', 8],
  ]),
} as const

/** The agents of a cluster, as the EndpointSlices of their Service name them. */
export class EndpointSlices {
  readonly #slices = new Map<string, readonly Endpoint[]>()
  /** Those that were told of, until they are as they should be. */
  readonly #told = new Set<string>()
  readonly #onProblem: (sentence: string) => void
  #endpoints = 0

  constructor({ onProblem }: { readonly onProblem: (sentence: string) => void }) {
    this.#onProblem = onProblem
  }

  /** Takes a slice as it is now. Of one that is none, what it said before stays; an endpoint that is none is left out. Each is told of once. */
  put(object: unknown): void {
    const { data: named } = nameSchema.safeParse(object)
    if (named === undefined) return
    const key = keyOf(named)
    const { data: slice, error } = sliceSchema.safeParse(object)
    if (slice === undefined) {
      this.#tell(key, `is left out: ${sentenceOf(error)}`)
      return
    }
    const { endpoints, problem } = endpointsOf(slice)
    const before = this.#slices.get(key)
    const others = this.#endpoints - (before?.length ?? 0)
    const isMore = before === undefined && this.#slices.size >= SLICES_MAX
    if (isMore || others + endpoints.length > ENDPOINTS_MAX) {
      this.#tell(
        key,
        `is left out: ${SLICES_MAX} slices and ${ENDPOINTS_MAX} endpoints are taken at most`,
      )
      return
    }
    this.#slices.set(key, endpoints)
    this.#endpoints = others + endpoints.length
    if (problem === undefined) this.#told.delete(key)
    else this.#tell(key, problem)
  }

  remove(object: unknown): void {
    const { data: named } = nameSchema.safeParse(object)
    if (named === undefined) return
    const key = keyOf(named)
    this.#endpoints -= this.#slices.get(key)?.length ?? 0
    this.#slices.delete(key)
    this.#told.delete(key)
  }

  /**
   * Every node once, in an order that is the same everywhere; so is the address that each is called by, if it has several: of a pod that is
   * ready before others, IPv4 before IPv6.
   */
  nodes(): FoundNode[] {
    const byNode = new Map<string, Endpoint>()
    for (const endpoint of [...this.#slices.values()].flat()) {
      const known = byNode.get(endpoint.node)
      if (known === undefined || isBefore(endpoint, known)) byNode.set(endpoint.node, endpoint)
    }
    const byUrl = new Map<string, FoundNode>()
    for (const { url, isReady } of byNode.values()) {
      byUrl.set(url, { url, isReady: isReady || byUrl.get(url)?.isReady === true })
    }
    return [...byUrl.values()].toSorted((a, b) => (a.url < b.url ? -1 : 1))
  }

  #tell(key: string, problem: string): void {
    if (this.#told.has(key) || this.#told.size >= SLICES_MAX) return
    this.#told.add(key)
    this.#onProblem(`EndpointSlice ${key} ${problem}`)
  }
}

function endpointsOf({ addressType, ports, endpoints }: Slice): {
  endpoints: Endpoint[]
  problem: string | undefined
} {
  const found: Endpoint[] = []
  const all = endpoints ?? []
  const port = ports?.find(({ name }) => name === CLUSTER_PORT_NAME)?.port ?? undefined
  if (port === undefined) {
    const problem =
      all.length === 0
        ? undefined
        : `has no port named ${CLUSTER_PORT_NAME}, so nobody in it is asked: name it so in the Service`
    return { endpoints: found, problem }
  }
  let problem: string | undefined
  for (const [at, each] of all.entries()) {
    const { data: endpoint, error } = endpointSchema.safeParse(each)
    if (endpoint === undefined) {
      problem ??= `has an endpoint that is left out, number ${at}: ${sentenceOf(error)}`
      continue
    }
    const [address = ''] = endpoint.addresses
    if (!isSomewhere(address, addressType)) {
      const shown = JSON.stringify(address)
      problem ??= `has an endpoint that is left out, number ${at}: ${shown} is no ${addressType} address of another node`
      continue
    }
    const url = new URL(`https://${addressType === 'IPv6' ? `[${address}]` : address}:${port}`)
      .origin
    // Not told means ready.
    const isReady = endpoint.conditions?.ready !== false
    found.push({ url, isReady, node: endpoint.nodeName ?? url })
  }
  return { endpoints: found, problem }
}

function isSomewhere(address: string, addressType: Slice['addressType']): boolean {
  const isIPv6 = addressType === 'IPv6'
  // A zone is this machine's own word.
  if (isIP(address) !== (isIPv6 ? 6 : 4) || address.includes('%')) return false
  return !NOWHERE[addressType].check(address, isIPv6 ? 'ipv6' : 'ipv4')
}

function blockList(
  family: 'ipv4' | 'ipv6',
  subnets: readonly (readonly [net: string, prefix: number])[],
): BlockList {
  const list = new BlockList()
  for (const [net, prefix] of subnets) list.addSubnet(net, prefix, family)
  return list
}

function isBefore(a: Endpoint, b: Endpoint): boolean {
  if (a.isReady !== b.isReady) return a.isReady
  // IPv4 first: a digit sorts before a bracket.
  return a.url < b.url
}

function keyOf({ metadata: { namespace, name } }: z.infer<typeof nameSchema>): string {
  return `${namespace ?? ''}/${name}`
}

function sentenceOf(error: z.ZodError): string {
  const [issue] = error.issues
  return `${issue?.path.join('.') ?? ''}: ${issue?.message ?? ''}`.slice(0, 200)
}
