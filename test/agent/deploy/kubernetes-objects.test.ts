import type {
  KubernetesObject,
  V1Deployment,
  V1Ingress,
  V1LimitRange,
  V1Namespace,
  V1NetworkPolicy,
  V1PersistentVolumeClaim,
  V1PodSpec,
  V1PodTemplateSpec,
  V1ResourceQuota,
  V1Secret,
  V1Service,
  V1ServiceAccount,
  V1StatefulSet,
} from '@kubernetes/client-node'
import { describe, expect, test } from 'vitest'
import type { ClusterSettings } from '../../../agent/deploy/cluster-settings.ts'
import { kubernetesObjects } from '../../../agent/deploy/kubernetes-objects.ts'
import type { HttpScaledObject } from '../../../agent/deploy/objects/http-scaled-object.ts'
import type { HttpRoute } from '../../../agent/deploy/objects/routes.ts'
import type { ContainerSpec, PodSpec, PortSpec } from '../../../agent/deploy/pod-spec.ts'
import { containerSpec, IDENTITY, podSpec, randomPodSpec } from '../../support/random-pod-spec.ts'
import { seeded } from '../../support/seeded.ts'

const SETTINGS: ClusterSettings = {
  routes: { kind: 'ingress', className: 'nginx' },
  ingressNamespaces: ['ingress-nginx'],
  clusterCidrs: ['10.0.0.0/8', '192.168.0.0/16', 'fc00::/7'],
  userNamespaces: false,
  namespace: 'ipdr-system',
}

const KEDA: ClusterSettings = {
  ...SETTINGS,
  keda: { namespace: 'keda', service: 'keda-add-ons-http-interceptor-proxy', port: 8_080 },
}

const GATEWAY: ClusterSettings = {
  ...SETTINGS,
  routes: { kind: 'gateway', parent: { namespace: 'gateways', name: 'public' } },
}

const ASKING: ClusterSettings = {
  ...KEDA,
  scaleDown: {
    listen: { host: '0.0.0.0', port: 5_084 },
    url: 'http://ipdr-scale-down.ipdr-system.svc:80',
  },
}

const WEB: PortSpec = {
  name: 'web',
  containerPort: 80,
  servicePort: 8_080,
  exposure: { kind: 'http', host: 'a.example.com' },
}

const ADMIN: PortSpec = {
  name: 'admin',
  containerPort: 8_081,
  servicePort: 8_081,
  exposure: { kind: 'http', host: 'admin.example.com' },
}

const WIRE: PortSpec = {
  name: 'wire',
  containerPort: 5_432,
  servicePort: 5_432,
  exposure: { kind: 'tcp', nodePort: undefined },
}

const PLAIN: PortSpec = { name: 'metrics', containerPort: 9_090, servicePort: 9_100 }

type Kinds = {
  Namespace: V1Namespace
  ResourceQuota: V1ResourceQuota
  LimitRange: V1LimitRange
  NetworkPolicy: V1NetworkPolicy
  ServiceAccount: V1ServiceAccount
  Secret: V1Secret
  PersistentVolumeClaim: V1PersistentVolumeClaim
  Deployment: V1Deployment
  StatefulSet: V1StatefulSet
  Service: V1Service
  Ingress: V1Ingress
  HTTPRoute: HttpRoute
  HTTPScaledObject: HttpScaledObject
}

class Objects {
  readonly all: readonly KubernetesObject[]

  constructor(spec: PodSpec, settings: ClusterSettings = SETTINGS, isNew = true) {
    this.all = kubernetesObjects(spec, IDENTITY, settings, { isNew })
  }

  get names(): string[] {
    return this.all.map(({ kind, metadata }) => `${kind} ${metadata?.name}`)
  }

  ofKind<K extends keyof Kinds>(kind: K): Kinds[K][] {
    return this.all.filter((object) => object.kind === kind) as Kinds[K][]
  }

  named<K extends keyof Kinds>(kind: K, name: string): Kinds[K] {
    const found = this.ofKind(kind).find(({ metadata }) => metadata?.name === name)
    if (found === undefined) throw new Error(`no ${kind} ${name} among ${this.names.join(', ')}`)
    return found
  }

  get workload(): V1Deployment | V1StatefulSet {
    const [found] = [...this.ofKind('Deployment'), ...this.ofKind('StatefulSet')]
    if (found === undefined) throw new Error('no workload')
    return found
  }

  get template(): V1PodTemplateSpec {
    return this.workload.spec?.template ?? {}
  }

  get pod(): V1PodSpec {
    return this.template.spec ?? { containers: [] }
  }

  get container(): V1PodSpec['containers'][number] | undefined {
    return this.pod.containers[0]
  }

  get policies(): Map<string, V1NetworkPolicy['spec']> {
    const found = this.ofKind('NetworkPolicy')
    return new Map(found.map(({ metadata, spec }) => [metadata?.name ?? '', spec]))
  }
}

function withContainer(given: Partial<ContainerSpec>, more: Partial<PodSpec> = {}): PodSpec {
  return podSpec({ containers: [containerSpec(given)], ...more })
}

/** Every kind of cluster, for pods of which it does not matter which. */
const ALL_SETTINGS = [
  SETTINGS,
  KEDA,
  GATEWAY,
  { ...GATEWAY, keda: KEDA.keda },
  { ...KEDA, routes: { kind: 'none' } },
  { ...KEDA, userNamespaces: true, storageClass: 'fast', sharedStorageClass: 'nfs' },
  ASKING,
] as const satisfies ClusterSettings[]

// Goal: what holds of every pod holds of every pod. Method: 300 random ones, as the parser lets them in, each in one of seven clusters.
describe('of any pod', () => {
  const random = seeded(41)
  const pods = Array.from({ length: 300 }, (_, number) => {
    const spec = randomPodSpec(random)
    const settings = ALL_SETTINGS[number % ALL_SETTINGS.length] ?? SETTINGS
    return { number, spec, settings, objects: new Objects(spec, settings, random(2) === 0) }
  })

  test('nothing is outside of its namespace, which comes first', () => {
    for (const { number, objects } of pods) {
      const [first, ...others] = objects.all
      expect(first?.kind, `pod ${number}`).toBe('Namespace')
      expect(first?.metadata?.name).toBe(IDENTITY.namespace)
      expect(first?.metadata?.namespace).toBeUndefined()
      for (const { kind, metadata } of others) {
        expect(metadata?.namespace, `pod ${number}: ${kind}`).toBe(IDENTITY.namespace)
      }
    }
  })

  test('everything can be found and deleted by its labels, replicas too, and no two are the same', () => {
    const labels = {
      'app.kubernetes.io/managed-by': 'ipdr-agent',
      'ipdr.dev/pod': IDENTITY.namespace,
    }
    for (const { number, objects } of pods) {
      for (const { metadata } of objects.all) expect(metadata?.labels).toMatchObject(labels)
      expect(objects.template.metadata?.labels).toMatchObject({ ...labels, tpod: '1' })
      expect(new Set(objects.names).size, `pod ${number}`).toBe(objects.all.length)
    }
  })

  test('Pod Security restricted is kept by every container, and asked for by the namespace', () => {
    for (const { number, objects, settings } of pods) {
      const modes = ['enforce', 'audit', 'warn'].map((mode) => `pod-security.kubernetes.io/${mode}`)
      const { labels } = objects.all[0]?.metadata ?? {}
      for (const mode of modes) {
        expect(labels?.[mode]).toBe('restricted')
        expect(labels?.[`${mode}-version`]).toBe('latest')
      }
      const { pod } = objects
      expect(pod.securityContext, `pod ${number}`).toMatchObject({
        runAsNonRoot: true,
        seccompProfile: { type: 'RuntimeDefault' },
      })
      expect(pod.securityContext?.runAsUser).toBeUndefined()
      expect(pod.hostUsers).toBe(settings.userNamespaces ? false : undefined)
      for (const field of ['hostNetwork', 'hostPID', 'hostIPC'] as const) {
        expect(pod[field]).toBeUndefined()
      }
      for (const { securityContext, ports = [] } of pod.containers) {
        expect(securityContext).toEqual({
          allowPrivilegeEscalation: false,
          capabilities: { drop: ['ALL'] },
        })
        for (const { hostPort } of ports) expect(hostPort).toBeUndefined()
      }
      const kinds = new Set(pod.volumes?.flatMap((volume) => Object.keys(volume)))
      const allowed = new Set(['name', 'emptyDir', 'persistentVolumeClaim', 'secret', 'projected'])
      expect([...kinds].filter((kind) => !allowed.has(kind))).toEqual([])
    }
  })

  test('no replica gets a token that the cluster takes, or hears of services by variables', () => {
    for (const { objects } of pods) {
      const sources = objects.pod.volumes?.flatMap(({ projected }) => projected?.sources ?? [])
      for (const source of sources ?? []) {
        expect(source).toMatchObject({ serviceAccountToken: { audience: 'ipdr-scale-down' } })
        expect(Object.keys(source)).toEqual(['serviceAccountToken'])
      }
      const {
        serviceAccountName = '',
        automountServiceAccountToken,
        enableServiceLinks,
      } = objects.pod
      expect(automountServiceAccountToken).toBe(false)
      expect(enableServiceLinks).toBe(false)
      const account = objects.named('ServiceAccount', serviceAccountName)
      expect(account.automountServiceAccountToken).toBe(false)
    }
  })

  test('every container has bounds, and what it pays for is reserved', () => {
    for (const { number, spec, objects } of pods) {
      for (const [index, { resources }] of objects.pod.containers.entries()) {
        const { cpuMillis, memoryBytes } = spec.containers[index] ?? containerSpec()
        const paid = { cpu: `${cpuMillis}m`, memory: `${memoryBytes}` }
        expect(resources?.requests, `pod ${number}`).toMatchObject(paid)
        expect(resources?.limits).toMatchObject(paid)
        expect(Number(resources?.limits?.['ephemeral-storage'])).toBeGreaterThan(0)
      }
    }
  })

  test('every volume that is mounted is there, and every secret, claim and service that is named', () => {
    for (const { number, objects } of pods) {
      const { pod } = objects
      const templates = (objects.workload as V1StatefulSet).spec?.volumeClaimTemplates ?? []
      const names = [
        ...(pod.volumes ?? []).map(({ name }) => name),
        ...templates.map(({ metadata }) => metadata?.name),
      ]
      expect(new Set(names).size, `pod ${number}`).toBe(names.length)
      for (const { volumeMounts = [] } of pod.containers) {
        for (const { name } of volumeMounts) expect(names).toContain(name)
      }
      for (const { secret, persistentVolumeClaim } of pod.volumes ?? []) {
        if (secret !== undefined) objects.named('Secret', secret.secretName ?? '')
        if (persistentVolumeClaim !== undefined) {
          objects.named('PersistentVolumeClaim', persistentVolumeClaim.claimName)
        }
      }
      for (const { spec } of objects.ofKind('Ingress')) {
        for (const { http } of spec?.rules ?? []) {
          const { service } = http?.paths[0]?.backend ?? {}
          const found = objects.named('Service', service?.name ?? '')
          expect(found.spec?.ports?.map(({ port }) => port)).toContain(service?.port?.number)
        }
      }
      for (const { spec } of objects.ofKind('HTTPScaledObject')) {
        const { kind, name, service, port } = spec.scaleTargetRef
        objects.named(kind, name)
        const found = objects.named('Service', service)
        expect(found.spec?.ports?.[0]?.port).toBe(port)
      }
    }
  })

  test('names are short enough for the labels and hosts that Kubernetes makes of them', () => {
    for (const { number, objects } of pods) {
      for (const { kind, metadata } of objects.all) {
        const { name = '', labels = {} } = metadata ?? {}
        expect(name.length, `pod ${number}: ${kind} ${name}`).toBeLessThanOrEqual(63)
        for (const value of Object.values(labels)) {
          expect(value).toMatch(/^(?=.{1,63}$)[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$/)
        }
      }
      for (const { name } of objects.pod.volumes ?? []) expect(name.length).toBeLessThanOrEqual(63)
      // `controller-revision-hash` is its name and up to 11 characters; replicas are its name and up to 3.
      for (const { metadata } of objects.ofKind('StatefulSet')) {
        expect(metadata?.name?.length).toBeLessThanOrEqual(52)
      }
    }
  })

  test('the same pod gives the same objects, in whatever order its maps come', () => {
    const reversed = <T>(map: ReadonlyMap<string, T>): Map<string, T> =>
      new Map([...map].toReversed())
    for (const { number, spec, settings } of pods) {
      const again: PodSpec = {
        ...spec,
        containers: spec.containers.map((container) => ({
          ...container,
          env: reversed(container.env),
          devices: reversed(container.devices),
        })),
      }
      // As text: the order counts.
      const textOf = (one: PodSpec): string => JSON.stringify(new Objects(one, settings).all)
      expect(textOf(again), `pod ${number}`).toBe(textOf(spec))
    }
  })

  test('nothing is left undefined for the client to make something of', () => {
    for (const { number, objects } of pods) {
      expect(JSON.parse(JSON.stringify(objects.all)), `pod ${number}`).toStrictEqual(objects.all)
    }
  })
})

test('objects come in the order in which they are needed', () => {
  const spec = withContainer(
    { ports: [WEB], mounts: [{ volume: 'disk', path: '/disk', readOnly: false }] },
    {
      volumes: [
        { kind: 'disk', name: 'disk', bytes: 1, isShared: false },
        { kind: 'secret', name: 'key', contents: new Uint8Array(1) },
      ],
      scaling: { min: 0, max: 2 },
      registryLogins: [{ server: 'ghcr.io', username: 'u', password: 'p' }],
    },
  )
  expect(new Objects(spec, KEDA).names).toEqual([
    `Namespace ${IDENTITY.namespace}`,
    'ResourceQuota tpod-quota',
    'LimitRange tpod-limits',
    'NetworkPolicy tpod-isolated',
    'NetworkPolicy tpod-within',
    'NetworkPolicy tpod-names',
    'NetworkPolicy tpod-internet',
    'NetworkPolicy tpod-http',
    'Secret tpod-registry-logins',
    'ServiceAccount tpod-sa',
    'Secret tpod-secret-key',
    'PersistentVolumeClaim tpod-pvc-disk',
    'Deployment tpod-dep-3cpleg7x5zg5a7mi5d4quujyclm5hcwdscsyoitwfsptv7cob7vq',
    'Service tpod-svc-web',
    'Service tpod-interceptor',
    'HTTPScaledObject tpod-hso',
    'Ingress tpod-ingress-web',
  ])
})

test('the namespace says whose it is, to Trusted Pods too', () => {
  const { metadata } = new Objects(podSpec({ name: 'Gästebuch' })).named(
    'Namespace',
    IDENTITY.namespace,
  )
  expect(metadata?.labels).toMatchObject({
    'coop.comrade/trusted-pods-namespace': 'true',
    'ipdr.dev/publisher': IDENTITY.publisher,
  })
  expect(metadata?.annotations).toEqual({
    'ipdr.dev/publisher': IDENTITY.publisher,
    'ipdr.dev/pod-id': IDENTITY.podId,
    'ipdr.dev/name': 'Gästebuch',
  })
})

describe('a container', () => {
  test('gets words and variables as they were written, and no others', () => {
    const { container } = new Objects(
      withContainer({
        entrypoint: ['/bin/sh', '-c'],
        arguments: ['echo $(HOME) $$ $'],
        workingDir: '/srv',
        env: new Map([
          ['PASSWORD', 'pa$$word'],
          ['HOME', '$(PASSWORD)'],
        ]),
      }),
    )
    // Kubernetes takes $$ for $, so that this is what was written.
    expect(container).toMatchObject({
      command: ['/bin/sh', '-c'],
      args: ['echo $$(HOME) $$$$ $$'],
      workingDir: '/srv',
      env: [
        { name: 'HOME', value: '$$(PASSWORD)' },
        { name: 'PASSWORD', value: 'pa$$$$word' },
      ],
    })
    const bare = new Objects(podSpec()).container
    for (const field of [
      'command',
      'args',
      'workingDir',
      'env',
      'ports',
      'volumeMounts',
    ] as const) {
      expect(bare).not.toHaveProperty(field)
    }
  })

  test('has an image of ours pulled once, and one of a registry by whoever may, each time', () => {
    const policyOf = (image: string): string | undefined =>
      new Objects(withContainer({ image })).container?.imagePullPolicy
    expect(policyOf('ipdr.internal/bafkreib5:latest')).toBe('IfNotPresent')
    expect(policyOf('ipdr.internal.example/a:latest')).toBe('Always')
    expect(policyOf('docker.io/library/nginx:1.27')).toBe('Always')
  })

  test('may listen below port 1024 without root', () => {
    const sysctls = (containerPort: number): unknown =>
      new Objects(withContainer({ ports: [{ ...PLAIN, containerPort }] })).pod.securityContext
        ?.sysctls
    expect(sysctls(1_023)).toEqual([{ name: 'net.ipv4.ip_unprivileged_port_start', value: '0' }])
    expect(sysctls(1_024)).toBeUndefined()
  })

  test('is ready when the first port that is exposed listens; without one, when it runs', () => {
    const probed = new Objects(withContainer({ ports: [PLAIN, WIRE, WEB] })).container
    expect(probed?.readinessProbe).toMatchObject({ tcpSocket: { port: 5_432 }, periodSeconds: 1 })
    expect(probed?.livenessProbe).toBeUndefined()
    const plain = new Objects(withContainer({ ports: [PLAIN] })).container
    expect(plain).not.toHaveProperty('readinessProbe')
  })

  test('may write scratch volumes, and 1 GiB beside them', () => {
    const { pod } = new Objects(
      podSpec({
        containers: [containerSpec(), containerSpec({ name: 'other' })],
        volumes: [
          { kind: 'scratch', name: 'a', bytes: 1_000 },
          { kind: 'scratch', name: 'b', bytes: 500 },
        ],
      }),
    )
    const amounts = pod.containers.map(({ resources }) => [
      resources?.requests?.['ephemeral-storage'],
      resources?.limits?.['ephemeral-storage'],
    ])
    expect(amounts).toEqual([
      ['1500', String(1500 + 1024 ** 3)],
      ['0', String(1024 ** 3)],
    ])
  })

  test('finds the others by their names, as in Trusted Pods', () => {
    const names = ['web', 'cache']
    const spec = podSpec({ containers: names.map((name) => containerSpec({ name })) })
    expect(new Objects(spec).pod.hostAliases).toEqual([{ ip: '127.0.0.1', hostnames: names }])
    expect(new Objects(spec).workload.metadata?.labels?.['containers']).toBe('web_cache')
    expect(new Objects(podSpec()).pod).not.toHaveProperty('hostAliases')
  })

  test('runs in the runtime class that was asked for', () => {
    expect(new Objects(podSpec({ runtimeClass: 'kata' })).pod.runtimeClassName).toBe('kata')
    expect(new Objects(podSpec()).pod).not.toHaveProperty('runtimeClassName')
  })
})

describe('a volume', () => {
  test('that is scratch has a bound, one that is a secret is a file, and a disk is what users of images can write to', () => {
    const objects = new Objects(
      withContainer(
        {
          mounts: [
            { volume: 'tmp', path: '/tmp', readOnly: false },
            { volume: 'key', path: '/run/key.pem', readOnly: false },
            { volume: 'data', path: '/data', readOnly: true },
          ],
        },
        {
          volumes: [
            { kind: 'scratch', name: 'tmp', bytes: 1_000 },
            { kind: 'secret', name: 'key', contents: Buffer.from('hello') },
            { kind: 'disk', name: 'data', bytes: 2_000, isShared: false },
          ],
        },
      ),
    )
    expect(objects.pod.volumes).toEqual([
      { name: 'tpod-scratch-tmp', emptyDir: { sizeLimit: '1000' } },
      { name: 'tpod-secret-key', secret: { secretName: 'tpod-secret-key' } },
      { name: 'tpod-pvc-data', persistentVolumeClaim: { claimName: 'tpod-pvc-data' } },
    ])
    expect(objects.container?.volumeMounts).toEqual([
      { name: 'tpod-scratch-tmp', mountPath: '/tmp' },
      { name: 'tpod-secret-key', mountPath: '/run/key.pem', subPath: 'data', readOnly: true },
      { name: 'tpod-pvc-data', mountPath: '/data', readOnly: true },
    ])
    const { data } = objects.named('Secret', 'tpod-secret-key')
    expect(data).toEqual({ data: Buffer.from('hello').toString('base64') })
    expect(objects.pod.securityContext?.fsGroup).toBe(65_532)
  })

  test('that is a disk is of the class for its kind, and may be one or many nodes at a time', () => {
    const spec = podSpec({
      volumes: [
        { kind: 'disk', name: 'own', bytes: 1, isShared: false },
        { kind: 'disk', name: 'all', bytes: 2, isShared: true },
      ],
    })
    const settings = { ...SETTINGS, storageClass: 'fast', sharedStorageClass: 'nfs' }
    const claim = (name: string, settings: ClusterSettings): unknown =>
      new Objects(spec, settings).named('PersistentVolumeClaim', name).spec
    expect(claim('tpod-pvc-own', settings)).toEqual({
      accessModes: ['ReadWriteOnce'],
      resources: { requests: { storage: '1' } },
      storageClassName: 'fast',
    })
    expect(claim('tpod-pvc-all', settings)).toMatchObject({
      accessModes: ['ReadWriteMany'],
      storageClassName: 'nfs',
    })
    expect(claim('tpod-pvc-own', SETTINGS)).not.toHaveProperty('storageClassName')
  })

  test('that is a secret starts replicas anew when its contents change, and only then', () => {
    const digestOf = (contents: string, name = 'web'): string | undefined =>
      new Objects(
        withContainer(
          { name },
          { volumes: [{ kind: 'secret', name: 'a', contents: Buffer.from(contents) }] },
        ),
      ).template.metadata?.annotations?.['ipdr.dev/spec']
    expect(digestOf('1')).toMatch(/^[0-9a-f]{64}$/)
    expect(digestOf('1')).not.toBe(digestOf('2'))
    expect(digestOf('1')).toBe(digestOf('1', 'other'))
    expect(new Objects(podSpec()).template.metadata).not.toHaveProperty('annotations')
  })
})

describe('replicas', () => {
  const OWN = [{ kind: 'disk', name: 'own', bytes: 1_000, isShared: false }] as const
  const SHARED = [{ kind: 'disk', name: 'all', bytes: 1_000, isShared: true }] as const

  test('of a pod without a disk of its own are renewed one before the other goes, on different nodes', () => {
    const { workload, pod } = new Objects(podSpec({ volumes: SHARED, scaling: { min: 2, max: 2 } }))
    expect(workload).toMatchObject({
      kind: 'Deployment',
      spec: {
        replicas: 2,
        strategy: { type: 'RollingUpdate', rollingUpdate: { maxSurge: 1, maxUnavailable: 0 } },
      },
    })
    expect(pod.topologySpreadConstraints).toMatchObject([{ whenUnsatisfiable: 'ScheduleAnyway' }])
    expect(pod.affinity).toBeUndefined()
  })

  test('that share a disk of one node go before others come, to the same node', () => {
    const { workload, pod } = new Objects(podSpec({ volumes: OWN, scaling: { min: 2, max: 2 } }))
    expect(workload.spec).toMatchObject({ strategy: { type: 'Recreate' } })
    expect(pod.affinity?.podAffinity?.requiredDuringSchedulingIgnoredDuringExecution).toHaveLength(
      1,
    )
    expect(pod.topologySpreadConstraints).toBeUndefined()
  })

  test('of a stateful pod have names and disks of their own, and start in order', () => {
    const objects = new Objects(
      podSpec({ volumes: [...OWN, ...SHARED], scaling: { min: 3, max: 3 }, isStateful: true }),
    )
    expect(objects.workload).toMatchObject({
      kind: 'StatefulSet',
      metadata: { name: 'tpod-set' },
      spec: {
        replicas: 3,
        serviceName: 'tpod-set',
        podManagementPolicy: 'OrderedReady',
        volumeClaimTemplates: [{ metadata: { name: 'tpod-pvc-own' } }],
      },
    })
    const claims = objects.ofKind('PersistentVolumeClaim').map(({ metadata }) => metadata?.name)
    expect(claims).toEqual(['tpod-pvc-all'])
    expect(objects.pod.volumes?.map(({ name }) => name)).toEqual(['tpod-pvc-all'])
    expect(objects.named('Service', 'tpod-set').spec).toMatchObject({
      clusterIP: 'None',
      publishNotReadyAddresses: true,
    })
  })

  test('may be one more than the most while they are renewed, each no larger than was paid for', () => {
    const objects = new Objects(
      podSpec({
        containers: [
          containerSpec({ cpuMillis: 250, memoryBytes: 1_000, devices: new Map([['a.b/gpu', 1]]) }),
          containerSpec({
            name: 'b',
            cpuMillis: 500,
            memoryBytes: 500,
            devices: new Map([['a.b/gpu', 2]]),
          }),
        ],
        scaling: { min: 1, max: 3 },
      }),
    )
    expect(objects.named('ResourceQuota', 'tpod-quota').spec?.hard).toEqual({
      pods: '7',
      persistentvolumeclaims: '0',
      'requests.storage': '0',
      'services.nodeports': '64',
      'services.loadbalancers': '0',
    })
    expect(objects.named('LimitRange', 'tpod-limits').spec?.limits).toEqual([
      { type: 'Pod', max: { cpu: '750m', memory: '1500', 'a.b/gpu': '3' } },
    ])
  })

  test('have the disks that are asked for, counted exactly, and room for as many that a change leaves behind', () => {
    const quotaOf = (spec: PodSpec): unknown =>
      new Objects(spec).named('ResourceQuota', 'tpod-quota').spec?.hard
    const volumes = [...OWN, ...SHARED]
    expect(quotaOf(podSpec({ volumes, scaling: { min: 1, max: 3 } }))).toMatchObject({
      persistentvolumeclaims: '4',
      'requests.storage': '4000',
    })
    const isStateful = true
    expect(quotaOf(podSpec({ volumes, scaling: { min: 1, max: 3 }, isStateful }))).toMatchObject({
      persistentvolumeclaims: '8',
      'requests.storage': '8000',
    })
    // More than a double can count.
    const huge = [{ ...OWN[0], bytes: 64 * 1024 ** 4 - 1 }]
    expect(
      quotaOf(podSpec({ volumes: huge, scaling: { min: 1, max: 99 }, isStateful })),
    ).toMatchObject({ 'requests.storage': String(198n * (64n * 1024n ** 4n - 1n)) })
  })
})

describe('requests for a host name', () => {
  const web = (scaling: PodSpec['scaling'], ports: readonly PortSpec[] = [WEB]): PodSpec =>
    withContainer({ ports }, { scaling })
  const backends = (objects: Objects): unknown[] =>
    objects.ofKind('Ingress').map(({ spec }) => {
      const [rule] = spec?.rules ?? []
      const { name, port } = rule?.http?.paths[0]?.backend.service ?? {}
      return [rule?.host, name, port?.number]
    })

  test('go to its port by an Ingress of the operator’s class', () => {
    const objects = new Objects(web({ min: 1, max: 1 }, [WEB, ADMIN, WIRE, PLAIN]))
    expect(backends(objects)).toEqual([
      ['a.example.com', 'tpod-svc-web', 8_080],
      ['admin.example.com', 'tpod-svc-admin', 8_081],
    ])
    const { spec } = objects.named('Ingress', 'tpod-ingress-web')
    expect(spec?.ingressClassName).toBe('nginx')
  })

  test('go to its port by a route of the operator’s gateway', () => {
    const objects = new Objects(web({ min: 1, max: 1 }), GATEWAY)
    expect(objects.ofKind('Ingress')).toEqual([])
    expect(objects.named('HTTPRoute', 'tpod-route-web').spec).toEqual({
      parentRefs: [{ namespace: 'gateways', name: 'public' }],
      hostnames: ['a.example.com'],
      rules: [{ backendRefs: [{ name: 'tpod-svc-web', port: 8_080 }] }],
    })
  })

  test('wake a pod, which KEDA then keeps: its interceptor gets them', () => {
    const objects = new Objects(web({ min: 0, max: 4, pendingRequests: 20 }), KEDA)
    expect(objects.named('HTTPScaledObject', 'tpod-hso').spec).toEqual({
      hosts: ['a.example.com'],
      scaleTargetRef: {
        apiVersion: 'apps/v1',
        kind: 'Deployment',
        name: objects.workload.metadata?.name,
        service: 'tpod-svc-web',
        port: 8_080,
      },
      replicas: { min: 0, max: 4 },
      targetPendingRequests: 20,
    })
    expect(backends(objects)).toEqual([['a.example.com', 'tpod-interceptor', 8_080]])
    expect(objects.named('Service', 'tpod-interceptor').spec).toMatchObject({
      type: 'ExternalName',
      externalName: 'keda-add-ons-http-interceptor-proxy.keda.svc.cluster.local',
    })
  })

  test('go to the interceptor by the operator’s own route where there is a gateway', () => {
    const objects = new Objects(web({ min: 0, max: 4 }), { ...GATEWAY, keda: KEDA.keda })
    expect(objects.ofKind('HTTPScaledObject')).toHaveLength(1)
    expect(objects.ofKind('HTTPRoute')).toEqual([])
    expect(objects.names).not.toContain('Service tpod-interceptor')
  })

  test('decide how many replicas there are, which is said once, and then left to KEDA', () => {
    const spec = web({ min: 0, max: 4 })
    expect(new Objects(spec, KEDA, true).workload.spec?.replicas).toBe(0)
    expect(new Objects(spec, KEDA, false).workload.spec).not.toHaveProperty('replicas')
  })

  test('decide nothing without KEDA, or where there is nothing to decide', () => {
    const replicas = (spec: PodSpec, settings: ClusterSettings): number | undefined => {
      const objects = new Objects(spec, settings, false)
      expect(objects.ofKind('HTTPScaledObject')).toEqual([])
      return objects.workload.spec?.replicas
    }
    expect(replicas(web({ min: 0, max: 4 }), SETTINGS)).toBe(1)
    expect(replicas(web({ min: 2, max: 4 }), SETTINGS)).toBe(2)
    expect(replicas(web({ min: 3, max: 3 }), KEDA)).toBe(3)
    expect(replicas(web({ min: 2, max: 4 }, [WIRE]), KEDA)).toBe(2)
  })

  test('of which not all can wake a pod keep it from sleeping', () => {
    const objects = new Objects(web({ min: 0, max: 4 }, [WEB, ADMIN]), KEDA)
    const [scaled] = objects.ofKind('HTTPScaledObject')
    expect(scaled?.spec).toMatchObject({ hosts: ['a.example.com'], replicas: { min: 1, max: 4 } })
    expect(objects.workload.spec?.replicas).toBe(1)
    expect(backends(objects)).toEqual([
      ['a.example.com', 'tpod-interceptor', 8_080],
      ['admin.example.com', 'tpod-svc-admin', 8_081],
    ])
  })
})

describe('a pod that may sleep can ask for it', () => {
  const sleepy = (given: Partial<ContainerSpec> = {}, more: Partial<PodSpec> = {}): PodSpec =>
    withContainer({ ports: [WEB], ...given }, { scaling: { min: 0, max: 2 }, ...more })
  const accessOf = ({ pod }: Objects): unknown[] =>
    pod.containers.map(({ env, volumeMounts }) => [
      env?.filter(({ name }) => name === 'IPDR_SCALE_DOWN_URL').map(({ value }) => value),
      volumeMounts?.filter(({ mountPath }) => mountPath.includes('ipdr.dev')),
    ])

  test('with a token for that alone, which it can read, at a place that it is told', () => {
    const spec = sleepy({
      env: new Map([['A', '$']]),
      mounts: [{ volume: 'tmp', path: '/tmp', readOnly: false }],
    })
    const objects = new Objects(
      {
        ...spec,
        containers: [...spec.containers, containerSpec({ name: 'second' })],
        volumes: [{ kind: 'scratch', name: 'tmp', bytes: 1 }],
      },
      ASKING,
    )
    expect(objects.pod.volumes?.slice(1)).toEqual([
      {
        name: 'tpod-scale-down-token',
        projected: {
          sources: [
            {
              serviceAccountToken: {
                audience: 'ipdr-scale-down',
                expirationSeconds: 3_600,
                path: 'token',
              },
            },
          ],
        },
      },
    ])
    expect(objects.container?.env).toEqual([
      { name: 'A', value: '$$' },
      { name: 'IPDR_SCALE_DOWN_URL', value: 'http://ipdr-scale-down.ipdr-system.svc:80' },
    ])
    const access = [
      ['http://ipdr-scale-down.ipdr-system.svc:80'],
      [
        {
          name: 'tpod-scale-down-token',
          mountPath: '/var/run/secrets/ipdr.dev/scale-down',
          readOnly: true,
        },
      ],
    ]
    expect(accessOf(objects)).toEqual([access, access])
  })

  test('at the control workers, on the port where they listen, and nowhere else of the cluster', () => {
    const { policies } = new Objects(sleepy(), { ...ASKING, namespace: 'agents' })
    expect(policies.get('tpod-scale-down')).toEqual({
      podSelector: {},
      policyTypes: ['Egress'],
      egress: [
        {
          to: [
            {
              namespaceSelector: {
                matchExpressions: [
                  { key: 'kubernetes.io/metadata.name', operator: 'In', values: ['agents'] },
                ],
              },
              podSelector: { matchLabels: { 'app.kubernetes.io/name': 'ipdr-deploy' } },
            },
          ],
          ports: [{ protocol: 'TCP', port: 5_084 }],
        },
      ],
    })
  })

  test.each<[string, PodSpec, ClusterSettings]>([
    ['in a cluster that takes no such calls', sleepy(), KEDA],
    ['where nothing would wake it', sleepy(), { ...ASKING, keda: undefined }],
    ['if it is always on', sleepy({}, { scaling: { min: 1, max: 2 } }), ASKING],
    ['if it is stateful', sleepy({}, { isStateful: true }), ASKING],
    ['if not every request would wake it', sleepy({ ports: [WEB, ADMIN] }), ASKING],
    ['without a host name', sleepy({ ports: [WIRE] }), ASKING],
  ])('but not %s', (_name, spec, settings) => {
    const objects = new Objects(spec, settings)
    expect(JSON.stringify(objects.all)).not.toMatch(/scale-down|SCALE_DOWN/)
  })

  test('but for containers where nothing can be mounted there: they start all the same', () => {
    const volumes = [
      { kind: 'secret', name: 'file', contents: new Uint8Array(1) },
      { kind: 'disk', name: 'disk', bytes: 1, isShared: false },
    ] as const
    const has = (volume: string, path: string, readOnly: boolean): boolean => {
      const spec = sleepy({ mounts: [{ volume, path, readOnly }] }, { volumes })
      return JSON.stringify(accessOf(new Objects(spec, ASKING))).includes('tpod-scale-down-token')
    }
    expect(has('file', '/var/run/secrets', false)).toBe(false)
    expect(has('file', '/run/./secrets', false)).toBe(false)
    expect(has('disk', '/var', true)).toBe(false)
    expect(has('disk', '/var', false)).toBe(true)
    expect(has('file', '/run/secrets/key.pem', true)).toBe(true)
  })
})

test('a port is a service of its own, and one of the nodes where that was asked for', () => {
  const asked: PortSpec = { ...WIRE, name: 'asked', exposure: { kind: 'tcp', nodePort: 30_001 } }
  const objects = new Objects(withContainer({ ports: [WEB, WIRE, asked, PLAIN] }))
  const services = objects.ofKind('Service').map(({ metadata, spec }) => {
    const [port] = spec?.ports ?? []
    return [metadata?.name, spec?.type, port?.port, port?.targetPort, port?.nodePort]
  })
  expect(services).toEqual([
    ['tpod-svc-web', 'ClusterIP', 8_080, 80, undefined],
    ['tpod-svc-wire', 'NodePort', 5_432, 5_432, undefined],
    ['tpod-svc-asked', 'NodePort', 5_432, 5_432, 30_001],
    ['tpod-svc-metrics', 'ClusterIP', 9_100, 9_090, undefined],
  ])
  for (const { spec } of objects.ofKind('Service')) {
    expect(spec?.selector).toEqual({ tpod: '1' })
  }
})

describe('the network', () => {
  test('is closed to everybody else, both ways, but for names and the internet', () => {
    const { policies } = new Objects(podSpec())
    expect([...policies.keys()]).toEqual([
      'tpod-isolated',
      'tpod-within',
      'tpod-names',
      'tpod-internet',
    ])
    expect(policies.get('tpod-isolated')).toEqual({
      podSelector: {},
      policyTypes: ['Ingress', 'Egress'],
    })
    expect(policies.get('tpod-within')).toMatchObject({
      ingress: [{ _from: [{ podSelector: {} }] }],
      egress: [{ to: [{ podSelector: {} }] }],
    })
    const [names] = policies.get('tpod-names')?.egress ?? []
    expect(names?.ports?.map(({ protocol, port }) => `${protocol} ${port}`)).toEqual([
      'UDP 53',
      'TCP 53',
    ])
  })

  test('leads to the internet, and not to the cluster, its nodes, or the metadata of its cloud', () => {
    const blocksOf = (clusterCidrs: readonly string[]): unknown[] =>
      (
        new Objects(podSpec(), { ...SETTINGS, clusterCidrs }).policies.get('tpod-internet')
          ?.egress ?? []
      ).flatMap(({ to = [] }) => to.map(({ ipBlock }) => ipBlock))
    expect(blocksOf(['10.0.0.0/8', '2001:db8::/32', 'fc00::/7'])).toEqual([
      {
        cidr: '0.0.0.0/0',
        except: ['169.254.0.0/16', '100.64.0.0/10', '168.63.129.16/32', '10.0.0.0/8'],
      },
      { cidr: '::/0', except: ['fe80::/10', 'fc00::/7', '2001:db8::/32'] },
    ])
    expect(blocksOf(['::/0'])).toMatchObject([{ cidr: '0.0.0.0/0' }])
    expect(blocksOf(['::/0', '0.0.0.0/0'])).toEqual([])
  })

  test('lets requests come from routers to HTTP ports, from anywhere to TCP ports, and to no other', () => {
    const ports = [WEB, ADMIN, WIRE, PLAIN]
    const spec = withContainer({ ports }, { scaling: { min: 1, max: 2 } })
    const sendersOf = (policy: V1NetworkPolicy['spec'] | undefined): unknown =>
      policy?.ingress?.[0]?._from?.[0]?.namespaceSelector?.matchExpressions
    const portsOf = (policy: V1NetworkPolicy['spec'] | undefined): unknown =>
      policy?.ingress?.[0]?.ports?.map(({ port }) => port)
    for (const [settings, values] of [
      [SETTINGS, ['ingress-nginx']],
      [KEDA, ['ingress-nginx', 'keda']],
    ] as const) {
      const { policies } = new Objects(spec, settings)
      const http = policies.get('tpod-http')
      expect(sendersOf(http)).toEqual([
        { key: 'kubernetes.io/metadata.name', operator: 'In', values },
      ])
      // Those of the containers, since policies count behind services.
      expect(portsOf(http)).toEqual([80, 8_081])
      const tcp = policies.get('tpod-tcp')
      expect(tcp?.ingress).toHaveLength(1)
      expect(tcp?.ingress?.[0]?._from).toBeUndefined()
      expect(portsOf(tcp)).toEqual([5_432])
    }
  })

  test('lets nobody in to HTTP ports where no router is known', () => {
    const spec = withContainer({ ports: [WEB] })
    const { policies } = new Objects(spec, { ...SETTINGS, ingressNamespaces: [] })
    expect(policies.has('tpod-http')).toBe(false)
  })
})

test('logins are a secret that the account pulls with', () => {
  const objects = new Objects(
    podSpec({ registryLogins: [{ server: 'ghcr.io', username: 'u', password: 'p:ü' }] }),
  )
  const { type, data } = objects.named('Secret', 'tpod-registry-logins')
  expect(type).toBe('kubernetes.io/dockerconfigjson')
  const text = Buffer.from(data?.['.dockerconfigjson'] ?? '', 'base64').toString()
  expect(JSON.parse(text)).toEqual({
    auths: {
      'ghcr.io': { username: 'u', password: 'p:ü', auth: Buffer.from('u:p:ü').toString('base64') },
    },
  })
  const account = objects.named('ServiceAccount', 'tpod-sa')
  expect(account.imagePullSecrets).toEqual([{ name: 'tpod-registry-logins' }])
})
