import { createHash } from 'node:crypto'
import type { V1ConfigMap, V1Namespace } from '@kubernetes/client-node'
import { base32 } from 'multiformats/bases/base32'
import { type Cluster, CONFIG_MAP, NAMESPACE, OURS } from './cluster.ts'
import { PodError } from './parse-pod.ts'

/** On each claim: whose it is. */
const CLAIM_LABEL = 'ipdr.dev/host-of'

/** A name of this kind in a race is looked at again; more often than that somebody makes and deletes it on purpose. */
const LOOKS_MAX = 10

/** Whose each host name is: a ConfigMap a name in the agents' own namespace, which the cluster makes once. It goes with the pod's namespace. */
export class HostClaims {
  readonly #namespace: string
  readonly #cluster: Cluster

  constructor(namespace: string, { cluster }: { readonly cluster: Cluster }) {
    this.#namespace = namespace
    this.#cluster = cluster
  }

  /** Makes `host` belong to the pod of this namespace. Rejects with PodError ALREADY_EXISTS if it is another's. */
  async claim(host: string, owner: V1Namespace): Promise<void> {
    const wanted = this.#claimOf(host, owner)
    const { name } = wanted.metadata
    for (let look = 0; look < LOOKS_MAX; look++) {
      if ((await this.#cluster.create(wanted)) !== undefined) return
      const found = await this.#cluster.read<V1ConfigMap>({
        ...CONFIG_MAP,
        metadata: { namespace: this.#namespace, name },
      })
      if (found === undefined) continue
      if (found.data?.['uid'] === owner.metadata?.uid) return
      if (await this.#isInUse(found)) break
      // Its namespace is gone; the garbage collector has not come by yet.
      const newer = this.#claimOf(host, owner, found.metadata?.resourceVersion)
      const replaced = await this.#cluster.replace(newer)
      if (replaced !== undefined) return
    }
    throw new PodError(
      'ALREADY_EXISTS',
      `http_host: '${host}' belongs to another pod of this cluster; choose another name`,
      { host },
    )
  }

  /** Gives back what of a pod's names is not among `kept`. */
  async releaseOthers(owner: V1Namespace, kept: readonly string[]): Promise<void> {
    const claims = await this.#cluster.list<V1ConfigMap>(CONFIG_MAP, {
      namespace: this.#namespace,
      labels: { [CLAIM_LABEL]: owner.metadata?.name ?? '' },
    })
    for (const { metadata, data } of claims) {
      if (data?.['uid'] !== owner.metadata?.uid || kept.includes(data?.['host'] ?? '')) continue
      await this.#cluster.delete(
        { ...CONFIG_MAP, metadata: { namespace: this.#namespace, name: metadata?.name ?? '' } },
        metadata?.uid,
      )
    }
  }

  async #isInUse({ data }: V1ConfigMap): Promise<boolean> {
    const owner = await this.#cluster.read<V1Namespace>({
      ...NAMESPACE,
      metadata: { name: data?.['namespace'] ?? '' },
    })
    return owner?.metadata?.uid === data?.['uid']
  }

  #claimOf(
    host: string,
    { metadata }: V1Namespace,
    resourceVersion?: string,
  ): V1ConfigMap & { readonly metadata: { readonly name: string } } {
    const namespace = metadata?.name ?? ''
    const uid = metadata?.uid ?? ''
    return {
      ...CONFIG_MAP,
      metadata: {
        namespace: this.#namespace,
        // A host name may be longer than a name, and be one that is taken.
        name: `host-${base32.baseEncode(createHash('sha256').update(host).digest())}`,
        labels: { ...OURS, [CLAIM_LABEL]: namespace },
        ownerReferences: [{ ...NAMESPACE, name: namespace, uid }],
        ...(resourceVersion !== undefined && { resourceVersion }),
      },
      data: { host, namespace, uid },
    }
  }
}
