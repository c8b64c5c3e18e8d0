import { create, toBinary } from '@bufbuild/protobuf'
import type { KubernetesObject } from '@kubernetes/client-node'
import { describe, expect, test } from 'vitest'
import { ClusterError } from '../../../agent/deploy/cluster.ts'
import { Deployments, STATE_LABEL } from '../../../agent/deploy/deployments.ts'
import { HostClaims } from '../../../agent/deploy/host-claims.ts'
import type { PodIdentity, PodSpec } from '../../../agent/deploy/pod-spec.ts'
import { PodTurns } from '../../../agent/deploy/pod-turns.ts'
import { PodSchema } from '../../../proto/messages/ipdr/deploy_pb.js'
import { Crash, MemoryCluster } from '../../support/memory-cluster.ts'
import { seeded } from '../../support/seeded.ts'
import { silentLog } from '../../support/silent-log.ts'

const OURS = { 'app.kubernetes.io/managed-by': 'ipdr-agent' }

function identity(n: number): PodIdentity {
  return {
    publisher: `0x${String(n).padStart(40, '0')}`,
    podId: `0x${String(n).padStart(64, '0')}`,
    namespace: `tpod-${n}`,
  }
}

/** A namespace, a Deployment of the pod's name, and a Service for each port. */
function objectsOf(
  spec: PodSpec,
  { namespace, publisher, podId }: PodIdentity,
): KubernetesObject[] {
  const inside = (apiVersion: string, kind: string, name: string): KubernetesObject => ({
    apiVersion,
    kind,
    metadata: { namespace, name, labels: OURS },
  })
  return [
    {
      apiVersion: 'v1',
      kind: 'Namespace',
      metadata: {
        name: namespace,
        labels: OURS,
        annotations: {
          'ipdr.dev/publisher': publisher,
          'ipdr.dev/pod-id': podId,
          'ipdr.dev/name': spec.name,
        },
      },
    },
    inside('apps/v1', 'Deployment', `dep-${spec.name}`),
    ...spec.containers
      .flatMap(({ ports }) => ports)
      .map(({ name }) => inside('v1', 'Service', `svc-${name}`)),
  ]
}

function agentOf(cluster: MemoryCluster): Deployments {
  return new Deployments({
    cluster,
    turns: new PodTurns('ipdr-system', { cluster, log: silentLog }),
    hosts: new HostClaims('ipdr-system', { cluster }),
    limits: { runtimeClasses: [], hostSuffixes: [], hasRoutes: true },
    objectsOf,
    log: silentLog,
  })
}

function pod(name: string, ports: readonly string[] = ['a'], host?: string): Uint8Array {
  return toBinary(
    PodSchema,
    create(PodSchema, {
      name,
      containers: [
        {
          name: 'web',
          image: 'ghcr.io/some/image:1',
          cpuMillis: 100,
          memoryBytes: 2n ** 26n,
          ports: ports.map((port, index) => ({
            name: port,
            containerPort: 80 + index,
            ...(host !== undefined &&
              index === 0 && { exposure: { case: 'httpHost', value: host } as const }),
          })),
        },
      ],
    }),
  )
}

function stateOf(cluster: MemoryCluster, { namespace }: PodIdentity): string | undefined {
  return cluster.object('Namespace', namespace)?.metadata?.labels?.[STATE_LABEL]
}

/** What a publisher's pod consists of, without leases and claims. */
function inside(cluster: MemoryCluster, { namespace }: PodIdentity): string[] {
  return cluster
    .names()
    .filter((name) => name.includes(` ${namespace}/`) || name.endsWith(`/${namespace}`))
}

describe('a deployment', () => {
  test('makes the objects, and leaves no lease behind', async () => {
    const cluster = new MemoryCluster()
    const applied = await agentOf(cluster).deploy(identity(1), pod('one', ['a', 'b']), 'either')
    expect(applied).toMatchObject({ objects: 4, deleted: 0, generation: 1 })
    expect(inside(cluster, identity(1))).toEqual([
      'Deployment tpod-1/dep-one',
      'Namespace /tpod-1',
      'Secret tpod-1/ipdr-deployment',
      'Service tpod-1/svc-a',
      'Service tpod-1/svc-b',
    ])
    expect(stateOf(cluster, identity(1))).toBe('applied')
    expect(cluster.names('Lease')).toEqual([])
  })

  test('done twice changes nothing but its generation', async () => {
    const cluster = new MemoryCluster()
    const agent = agentOf(cluster)
    await agent.deploy(identity(1), pod('one'), 'either')
    const before = cluster.names()
    const again = await agent.deploy(identity(1), pod('one'), 'either')
    expect(again).toMatchObject({ deleted: 0, generation: 2 })
    expect(cluster.names()).toEqual(before)
  })

  test('takes away what it does not name any more, but for volumes', async () => {
    const cluster = new MemoryCluster()
    const agent = agentOf(cluster)
    await agent.deploy(identity(1), pod('one', ['a', 'b']), 'either')
    const volume = {
      apiVersion: 'v1',
      kind: 'PersistentVolumeClaim',
      metadata: { namespace: 'tpod-1', name: 'tpod-pvc-data', labels: OURS },
    }
    await cluster.apply(volume)
    const strange = {
      apiVersion: 'v1',
      kind: 'Service',
      metadata: { namespace: 'tpod-1', name: 'theirs' },
    }
    await cluster.apply(strange)
    expect(await agent.deploy(identity(1), pod('one', ['b']), 'either')).toMatchObject({
      deleted: 1,
    })
    expect(inside(cluster, identity(1))).toEqual([
      'Deployment tpod-1/dep-one',
      'Namespace /tpod-1',
      'PersistentVolumeClaim tpod-1/tpod-pvc-data',
      'Secret tpod-1/ipdr-deployment',
      'Service tpod-1/svc-b',
      'Service tpod-1/theirs',
    ])
  })

  test('that must make a pod, or must change one, says when it cannot', async () => {
    const cluster = new MemoryCluster()
    const agent = agentOf(cluster)
    await expect(agent.deploy(identity(1), pod('one'), 'update')).rejects.toMatchObject({
      code: 'NOT_FOUND',
    })
    expect(cluster.names()).toEqual([])
    await agent.deploy(identity(1), pod('one'), 'create')
    await expect(agent.deploy(identity(1), pod('two'), 'create')).rejects.toMatchObject({
      code: 'ALREADY_EXISTS',
    })
    expect(cluster.names('Deployment')).toEqual(['Deployment tpod-1/dep-one'])
  })

  test('of a pod that is being deleted waits for nobody', async () => {
    const cluster = new MemoryCluster()
    const agent = agentOf(cluster)
    await agent.deploy(identity(1), pod('one'), 'either')
    cluster.hasFinalizers = true
    expect(await agent.delete('tpod-1')).toBe(true)
    await expect(agent.deploy(identity(1), pod('one'), 'either')).rejects.toMatchObject({
      code: 'ABORTED',
      message: expect.stringContaining('is being deleted'),
    })
    cluster.finish('tpod-1')
    await agent.deploy(identity(1), pod('one'), 'either')
    expect(stateOf(cluster, identity(1))).toBe('applied')
  })
})

describe('a host name', () => {
  test('belongs to the pod that asked first, until that is deleted', async () => {
    const cluster = new MemoryCluster()
    const agent = agentOf(cluster)
    await agent.deploy(identity(1), pod('one', ['a'], 'app.example.com'), 'either')
    await expect(
      agent.deploy(identity(2), pod('two', ['a'], 'APP.example.com'), 'either'),
    ).rejects.toMatchObject({
      code: 'ALREADY_EXISTS',
      message: expect.stringContaining('app.example.com'),
    })
    expect(inside(cluster, identity(2))).toEqual([])
    await agent.delete('tpod-1')
    await agent.deploy(identity(2), pod('two', ['a'], 'app.example.com'), 'either')
    expect(stateOf(cluster, identity(2))).toBe('applied')
  })

  test('is given back by a deployment without it', async () => {
    const cluster = new MemoryCluster()
    const agent = agentOf(cluster)
    await agent.deploy(identity(1), pod('one', ['a'], 'app.example.com'), 'either')
    await agent.deploy(identity(1), pod('one', ['a'], 'other.example.com'), 'either')
    await agent.deploy(identity(2), pod('two', ['a'], 'app.example.com'), 'either')
    expect(cluster.names('ConfigMap')).toHaveLength(2)
  })

  test('that a claim of a namespace that is gone holds is taken over', async () => {
    const cluster = new MemoryCluster()
    const agent = agentOf(cluster)
    await agent.deploy(identity(1), pod('one', ['a'], 'app.example.com'), 'either')
    const [claim = ''] = cluster.names('ConfigMap').map((name) => name.slice(name.indexOf('/') + 1))
    cluster.set('ConfigMap', claim, (object) => {
      object['data'] = { host: 'app.example.com', namespace: 'tpod-gone', uid: 'uid-gone' }
    })
    await agent.deploy(identity(2), pod('two', ['a'], 'app.example.com'), 'either')
    expect(stateOf(cluster, identity(2))).toBe('applied')
  })

  test('that twenty pods ask for at once belongs to one of them', async () => {
    const cluster = new MemoryCluster()
    const agents = Array.from({ length: 4 }, () => agentOf(cluster))
    const results = await Promise.allSettled(
      Array.from({ length: 20 }, (_, n) =>
        (agents[n % 4] ?? agentOf(cluster)).deploy(
          identity(n),
          pod(`p${n}`, ['a'], 'app.example.com'),
          'either',
        ),
      ),
    )
    expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(1)
    expect(cluster.names('Namespace')).toHaveLength(1)
  })
})

describe('what the cluster refuses', () => {
  const refuse = (cluster: MemoryCluster, words: string): void => {
    cluster.before = (_call, what) => {
      if (what === words) throw new ClusterError('INVALID_ARGUMENT', `the cluster refuses ${words}`)
    }
  }

  test('of a new pod leaves nothing behind', async () => {
    const cluster = new MemoryCluster()
    refuse(cluster, 'apply Service svc-a')
    await expect(agentOf(cluster).deploy(identity(1), pod('one'), 'either')).rejects.toThrow(
      'svc-a',
    )
    expect(cluster.names()).toEqual([])
  })

  test('of a change takes the pod back to what it was', async () => {
    const cluster = new MemoryCluster()
    const agent = agentOf(cluster)
    await agent.deploy(identity(1), pod('one', ['a']), 'either')
    const before = inside(cluster, identity(1))
    refuse(cluster, 'apply Service svc-c')
    await expect(agent.deploy(identity(1), pod('two', ['b', 'c']), 'either')).rejects.toThrow(
      'svc-c',
    )
    expect(inside(cluster, identity(1))).toEqual(before)
    expect(stateOf(cluster, identity(1))).toBe('applied')
  })

  test('and an API that is away are two things: the deployment is gone on with', async () => {
    const cluster = new MemoryCluster()
    const agent = agentOf(cluster)
    cluster.before = (_call, words) => {
      if (words === 'apply Service svc-b') throw new ClusterError('UNAVAILABLE', 'away')
    }
    await expect(agent.deploy(identity(1), pod('one', ['a', 'b']), 'either')).rejects.toMatchObject(
      {
        code: 'UNAVAILABLE',
      },
    )
    expect(stateOf(cluster, identity(1))).toBe('applying')
    cluster.before = () => undefined
    expect(await agentOf(cluster).resume()).toBe(1)
    expect(stateOf(cluster, identity(1))).toBe('applied')
    expect(cluster.names('Service')).toEqual(['Service tpod-1/svc-a', 'Service tpod-1/svc-b'])
    expect(await agentOf(cluster).resume()).toBe(0)
  })
})

/** An agent that dies at a call, and another that comes later, when what the first one held has run out. */
async function dieAt(
  cluster: MemoryCluster,
  call: number,
  when: 'before' | 'after',
  work: (agent: Deployments) => Promise<unknown>,
): Promise<boolean> {
  let isDead = false
  const first = cluster.calls.length
  const strike = (n: number): void => {
    // Whoever is dead asks for nothing more.
    if (isDead || n - first === call) {
      isDead = true
      throw new Crash('killed')
    }
  }
  cluster[when] = strike
  if (when === 'after') cluster.before = () => void (isDead && strike(0))
  await work(agentOf(cluster)).catch((error: unknown) => {
    if (!isDead) throw error
  })
  cluster.before = () => undefined
  cluster.after = () => undefined
  for (const lease of cluster.names('Lease')) {
    const name = lease.slice(lease.indexOf('/') + 1)
    const ref = { apiVersion: 'v1', kind: 'Lease', metadata: { namespace: 'ipdr-system', name } }
    await cluster.delete(ref)
  }
  return isDead
}

describe.each(['before', 'after'] as const)('killed %s any of its calls', (when) => {
  test('a first deployment is whole or gone once another agent has come by', async () => {
    let call = 1
    for (; ; call++) {
      const cluster = new MemoryCluster()
      const work = (agent: Deployments): Promise<unknown> =>
        agent.deploy(identity(1), pod('one', ['a', 'b'], 'app.example.com'), 'either')
      const hasDied = await dieAt(cluster, call, when, work)
      await agentOf(cluster).resume()
      const state = stateOf(cluster, identity(1))
      expect([undefined, 'applied'], `call ${call}`).toContain(state)
      const left =
        state === undefined ? inside(cluster, identity(1)).length : cluster.names('Service').length
      expect(left, `call ${call}`).toBe(state === undefined ? 0 : 2)
      // And the publisher may simply ask again.
      await agentOf(cluster).deploy(
        identity(1),
        pod('one', ['a', 'b'], 'app.example.com'),
        'either',
      )
      expect(stateOf(cluster, identity(1))).toBe('applied')
      if (!hasDied) break
    }
    expect(call).toBeGreaterThan(8)
  })

  test('a change is whole, one way or the other', async () => {
    let call = 1
    for (; ; call++) {
      const cluster = new MemoryCluster()
      await agentOf(cluster).deploy(
        identity(1),
        pod('one', ['a', 'b'], 'app.example.com'),
        'either',
      )
      const work = (agent: Deployments): Promise<unknown> =>
        agent.deploy(identity(1), pod('two', ['b', 'c'], 'other.example.com'), 'either')
      const hasDied = await dieAt(cluster, call, when, work)
      await agentOf(cluster).resume()
      const services = cluster.names('Service').join()
      const deployments = cluster.names('Deployment').join()
      const isOld = services.includes('svc-a') && deployments === 'Deployment tpod-1/dep-one'
      const isNew = services.includes('svc-c') && deployments === 'Deployment tpod-1/dep-two'
      expect(
        [isOld, isNew].filter(Boolean),
        `call ${call}: ${services} ${deployments}`,
      ).toHaveLength(1)
      expect(cluster.names('Service')).toHaveLength(2)
      expect(cluster.names('ConfigMap'), `call ${call}`).toHaveLength(1)
      expect(stateOf(cluster, identity(1))).toBe('applied')
      if (!hasDied) break
    }
    expect(call).toBeGreaterThan(8)
  })
})

test('500 deployments of 50 publishers by 3 agents at once: none is lost, none is done twice', async () => {
  const random = seeded(31)
  const cluster = new MemoryCluster()
  const agents = [agentOf(cluster), agentOf(cluster), agentOf(cluster)] as const
  const last = new Map<number, Set<string>>()
  const work = Array.from({ length: 500 }, (_, n) => {
    const publisher = n % 50
    const name = `v${n}`
    last.set(publisher, (last.get(publisher) ?? new Set()).add(name))
    const agent = agents[random(3)] ?? agents[0]
    return agent.deploy(identity(publisher), pod(name, ['a']), 'either')
  })
  const done = await Promise.all(work)
  expect(done).toHaveLength(500)
  expect(cluster.names('Namespace')).toHaveLength(50)
  expect(cluster.names('Deployment')).toHaveLength(50)
  expect(cluster.names('Service')).toHaveLength(50)
  for (let publisher = 0; publisher < 50; publisher++) {
    const generations = done
      .filter((_, n) => n % 50 === publisher)
      .map(({ generation }) => generation)
    expect(generations.toSorted((a, b) => a - b)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
  }
  expect(cluster.names('Lease')).toEqual([])
}, 120_000)
