import type { V1Secret } from '@kubernetes/client-node'
import { type Cluster, OURS, SECRET } from './cluster.ts'

/** In the pod's namespace, beside the pod's objects; a secret, since the publisher's secrets are in it. */
export const RECORD_NAME = 'ipdr-deployment'

/** What a publisher has asked for, and what was in the cluster whole before: so that whoever comes after a crash can go on, or back. */
export type DeploymentRecord = {
  /** An ipdr.deploy.v1.Pod in binary. */
  readonly wanted: Uint8Array
  /** The last one that was applied whole; undefined: none. */
  readonly applied?: Uint8Array | undefined
  readonly generation: number
}

/** Undefined: there is none, or none that can be read. */
export async function readRecord(
  cluster: Cluster,
  namespace: string,
): Promise<DeploymentRecord | undefined> {
  const found = await cluster.read<V1Secret>({
    ...SECRET,
    metadata: { namespace, name: RECORD_NAME },
  })
  const wanted = bytesOf(found, 'wanted')
  const generation = Number(found?.metadata?.annotations?.['ipdr.dev/generation'] ?? Number.NaN)
  if (wanted === undefined || !Number.isSafeInteger(generation)) return undefined
  return { wanted, applied: bytesOf(found, 'applied'), generation }
}

export async function writeRecord(
  cluster: Cluster,
  namespace: string,
  { wanted, applied, generation }: DeploymentRecord,
): Promise<void> {
  await cluster.apply<V1Secret>({
    ...SECRET,
    metadata: {
      namespace,
      name: RECORD_NAME,
      labels: OURS,
      annotations: { 'ipdr.dev/generation': String(generation) },
    },
    type: 'ipdr.dev/deployment',
    data: {
      wanted: Buffer.from(wanted).toString('base64'),
      ...(applied !== undefined && { applied: Buffer.from(applied).toString('base64') }),
    },
  })
}

function bytesOf(secret: V1Secret | undefined, field: string): Uint8Array | undefined {
  const text = secret?.data?.[field]
  return text === undefined ? undefined : Buffer.from(text, 'base64')
}
