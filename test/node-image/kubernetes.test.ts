import { existsSync, globSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import {
  type KubernetesObject,
  loadAllYaml,
  loadYaml,
  type V1ClusterRole,
  type V1Container,
  type V1DaemonSet,
  type V1Deployment,
  type V1PodSpec,
  type V1Role,
  type V1RuntimeClass,
  type V1Service,
  type V1StatefulSet,
} from '@kubernetes/client-node'
import { parse } from 'smol-toml'
import { expect, test } from 'vitest'
import { CLUSTER_PORT_NAME } from '../../agent/cluster/endpoint-slices.ts'
import { parseConfig } from '../../agent/config.ts'
import { NOT_READY_TAINT } from '../../agent/kubernetes/node-taint.ts'
import { version } from '../../agent/version.ts'
import { kubectl } from '../support/kubectl.ts'
import {
  agentCapabilities,
  agentConfig,
  agentDaemonSet,
  KUBERNETES,
  objectsIn,
} from '../support/kubernetes-manifests.ts'
import { Scratch } from '../support/scratch.ts'

const readme = readFileSync(join(KUBERNETES, 'README.md'), 'utf8')
const config = parseConfig(agentConfig())
const spec = agentDaemonSet().spec?.template.spec as V1PodSpec
const [agent, taint] = spec.containers as [V1Container, V1Container]

/** The first column of each row of a table of the README, without its quotes. */
function rowsOf(heading: string): string[] {
  const table = readme.slice(readme.indexOf(`| ${heading}`)).split('\n\n')[0] ?? ''
  return [...table.matchAll(/^\| `([^`]+)`/gm)].map(([, name = '']) => name)
}

function mountOf(
  container: V1Container,
  mountPath: string,
): { hostPath: string | undefined; mountPropagation: string | undefined } {
  const mount = container.volumeMounts?.find((mount) => mount.mountPath === mountPath)
  const volume = spec.volumes?.find(({ name }) => name === mount?.name)
  return { hostPath: volume?.hostPath?.path, mountPropagation: mount?.mountPropagation }
}

test('every path of the host has its reason in the README, and no other does', () => {
  const setup = objectsIn('components/host-setup/host-setup.yaml')[0] as V1DaemonSet
  const volumes = [...(spec.volumes ?? []), ...(setup.spec?.template.spec?.volumes ?? [])]
  const paths = volumes.flatMap(({ hostPath }) => hostPath?.path ?? [])
  expect(rowsOf('Host path').toSorted()).toEqual(paths.toSorted())
})

test('the capabilities that are left have their reasons in the README, and no others are left', () => {
  expect(agent.command?.slice(0, 2)).toEqual(['setpriv', '--inh-caps=-all'])
  expect(rowsOf('Capability').toSorted()).toEqual(agentCapabilities().toSorted())
})

test('paths and ports are those of the configuration, and of what containerd is told', () => {
  for (const path of [config.root, config.runDir]) {
    expect(mountOf(agent, path)).toMatchObject({
      hostPath: path,
      mountPropagation: 'Bidirectional',
    })
  }
  expect(mountOf(agent, dirname(config.containerd.socketPath))).toMatchObject({
    hostPath: dirname(config.containerd.socketPath),
    mountPropagation: 'HostToContainer',
  })
  for (const path of ['/dev', '/sys/fs/cgroup']) expect(mountOf(agent, path).hostPath).toBe(path)
  const { host, port } = config.monitoring.listen
  for (const probe of [agent.startupProbe, agent.livenessProbe, agent.readinessProbe]) {
    expect(probe?.httpGet).toMatchObject({ host, port })
  }
  const hosts = join(KUBERNETES, '../containerd/certs.d/ipdr.internal/hosts.toml')
  const { registry } = config
  expect(parse(readFileSync(hosts, 'utf8'))).toMatchObject({
    server: `http://${registry.listen.host}:${registry.listen.port}`,
  })
  expect(registry.listen.host).toBe('127.0.0.1')
  for (const { args } of [agent, taint]) expect(args).toContain('/etc/ipdr-agent/config.json')
})

test('it shares with the node its network and its processes, and the keeper leaves the pod', () => {
  const { hostNetwork, hostPID, hostIPC = false, dnsPolicy } = spec
  expect({ hostNetwork, hostPID, hostIPC, dnsPolicy }).toEqual({
    hostNetwork: true,
    hostPID: true,
    hostIPC: false,
    dnsPolicy: 'Default',
  })
  expect(config.fuseKeeper.controlGroup).toBe('/ipdr-fuse-keeper')
  expect(agent.terminationMessagePath).not.toMatch(/^\/dev\//)
})

test('it runs on every node, before others, and is replaced on one at a time', () => {
  expect(spec).toMatchObject({
    priorityClassName: 'system-node-critical',
    tolerations: [{ operator: 'Exists' }],
    terminationGracePeriodSeconds: 40,
  })
  expect(agentDaemonSet().spec?.updateStrategy?.rollingUpdate).toEqual({ maxUnavailable: 1 })
})

test('only the container of the agent is privileged, and only that of the taint may ask the API', () => {
  expect(agent.securityContext).toEqual({ privileged: true, readOnlyRootFilesystem: true })
  const setup = objectsIn('components/host-setup/host-setup.yaml')[0] as V1DaemonSet
  for (const container of [taint, ...(setup.spec?.template.spec?.initContainers ?? [])]) {
    expect(container.securityContext).toMatchObject({
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ['ALL'] },
      seccompProfile: { type: 'RuntimeDefault' },
    })
  }
  expect(taint.securityContext).toMatchObject({ runAsNonRoot: true, runAsUser: 65_534 })
  expect(spec.automountServiceAccountToken).toBe(false)
  const withToken = spec.containers.filter(({ volumeMounts }) =>
    volumeMounts?.some(({ name }) => name === 'token'),
  )
  expect(withToken).toEqual([taint])
  const roles = objectsIn('base/access.yaml').filter(({ kind = '' }) => kind.endsWith('Role'))
  expect(roles.map((role) => (role as V1ClusterRole).rules)).toEqual([
    [{ apiGroups: [''], resources: ['nodes'], verbs: ['get', 'patch'] }],
  ])
  expect(readme).toContain(`${NOT_READY_TAINT.key}=:${NOT_READY_TAINT.effect}`)
})

test('with cluster-peers the container of the agent may see addresses, in its own namespace, and nothing else is added', () => {
  const [role, binding, ...more] = objectsIn('components/cluster-peers/access.yaml')
  expect(more).toEqual([])
  expect(role).toMatchObject({ kind: 'Role', metadata: { namespace: 'ipdr-system' } })
  expect((role as V1Role).rules).toEqual([
    { apiGroups: ['discovery.k8s.io'], resources: ['endpointslices'], verbs: ['list', 'watch'] },
  ])
  expect(binding).toMatchObject({
    kind: 'RoleBinding',
    roleRef: { kind: 'Role', name: role?.metadata?.name },
    subjects: [{ kind: 'ServiceAccount', name: spec.serviceAccountName, namespace: 'ipdr-system' }],
  })
})

test.each(['runtime-class', 'whole-node'])(
  'over %s, cluster-peers has the Service find the port that the README has the agent listen on, and the key is for it alone',
  async (overlay) => {
    await using scratch = Scratch.open('kustomize')
    const kustomization = {
      apiVersion: 'kustomize.config.k8s.io/v1beta1',
      kind: 'Kustomization',
      resources: [relative(scratch.dir, join(KUBERNETES, 'overlays', overlay))],
      components: [relative(scratch.dir, join(KUBERNETES, 'components/cluster-peers'))],
    }
    // YAML is a superset of JSON.
    writeFileSync(join(scratch.dir, 'kustomization.yaml'), JSON.stringify(kustomization))
    const objects = loadAllYaml(await kubectl(['kustomize', scratch.dir])) as KubernetesObject[]
    const { cluster } = parseConfig({ cluster: documentedCluster() })
    const set = objects.find(({ kind }) => kind === 'DaemonSet') as V1DaemonSet
    const service = objects.find(({ kind }) => kind === 'Service') as V1Service
    expect(service.metadata).toMatchObject({
      name: cluster.kubernetes?.service,
      namespace: cluster.kubernetes?.namespace,
    })
    expect(service.spec?.clusterIP).toBe('None')
    expect(service.spec?.ipFamilyPolicy).toBe('SingleStack')
    expect(service.spec?.selector).toEqual(set.spec?.selector.matchLabels)
    const pod = set.spec?.template.spec
    const container = pod?.containers.find(({ name }) => name === 'agent')
    const port = container?.ports?.find(({ name }) => name === CLUSTER_PORT_NAME)
    expect(port?.containerPort).toBe(cluster.listen?.port)
    expect(service.spec?.ports).toEqual([
      { name: CLUSTER_PORT_NAME, port: cluster.listen?.port, targetPort: CLUSTER_PORT_NAME },
    ])
    const tls = container?.volumeMounts?.find(({ name }) => name === 'cluster-tls')
    for (const file of Object.values(cluster.tls ?? {})) expect(dirname(file)).toBe(tls?.mountPath)
    // What the agent refuses: a key that a group may read, as a pod with an fsGroup has it (agent/keys/read-secret-file.ts).
    expect(pod?.securityContext?.fsGroup).toBeUndefined()
    expect(pod?.volumes?.find(({ name }) => name === 'cluster-tls')?.secret).toMatchObject({
      defaultMode: 0o400,
    })
    expect(readme).toContain(
      `create secret generic ${pod?.volumes?.find(({ name }) => name === 'cluster-tls')?.secret?.secretName} `,
    )
    const withKey = pod?.containers.filter(({ volumeMounts }) =>
      volumeMounts?.some(({ name }) => name === 'cluster-tls'),
    )
    expect(withKey).toEqual([container])
    // Where clients of the API look for it, and what was there before is there still.
    const token = '/var/run/secrets/kubernetes.io/serviceaccount'
    for (const { volumeMounts } of pod?.containers ?? []) {
      expect(volumeMounts).toContainEqual({ name: 'token', mountPath: token, readOnly: true })
    }
    expect(container?.volumeMounts).toEqual(expect.arrayContaining(agent.volumeMounts ?? []))
    expect(container?.ports).toEqual(expect.arrayContaining(agent.ports ?? []))
  },
)

/** What the README has operators add to config.json. */
function documentedCluster(): unknown {
  const [, json = ''] = /^ {4}"cluster": (\{\n(?: {4}.*\n)*? {4}\})$/m.exec(readme) ?? []
  return JSON.parse(json)
}

test.each([
  ['runtime-class', 'runtime-class-2.toml', 'ipdr', 'ipdr'],
  ['whole-node', 'daemonset-2.toml', 'ipdr-bootstrap', 'overlayfs'],
])('the runtime class of %s is one that containerd has', (overlay, file, handler, snapshotter) => {
  const [found] = objectsIn(`overlays/${overlay}/runtime-class.yaml`) as V1RuntimeClass[]
  expect(found).toMatchObject({ handler, metadata: { name: handler } })
  const toml = readFileSync(join(KUBERNETES, '../containerd', file), 'utf8')
  expect(parse(toml)).toMatchObject({
    plugins: {
      'io.containerd.cri.v1.runtime': {
        containerd: { runtimes: { [handler]: { snapshotter } } },
      },
    },
  })
})

test('what kustomizations name is there, the image in the version of the sources', () => {
  const paths = globSync(`${KUBERNETES}/**/kustomization.yaml`)
  expect(paths).toHaveLength(6)
  for (const path of paths) {
    const {
      resources = [],
      components = [],
      patches = [],
      images = [],
    } = loadYaml<{
      resources?: string[]
      components?: string[]
      patches?: { path: string }[]
      images?: { newTag: string }[]
    }>(readFileSync(path, 'utf8'))
    for (const named of [...resources, ...components, ...patches.map(({ path }) => path)]) {
      expect(existsSync(join(dirname(path), named)), `${path}: ${named}`).toBe(true)
    }
    for (const { newTag } of images) expect(newTag).toBe(version)
  }
})

test.each(['runtime-class', 'whole-node'])(
  'kubectl makes of %s one DaemonSet that reads the configuration that is there',
  async (overlay) => {
    const made = await kubectl(['kustomize', join(KUBERNETES, 'overlays', overlay)])
    const objects = loadAllYaml(made) as KubernetesObject[]
    const named = (kind: string): KubernetesObject[] =>
      objects.filter((object) => object.kind === kind)
    const [configMap] = named('ConfigMap')
    const sets = named('DaemonSet') as V1Deployment[]
    expect(sets).toHaveLength(1)
    const pod = sets[0]?.spec?.template.spec
    const volume = pod?.volumes?.find(({ name }) => name === 'config')
    expect(volume?.configMap?.name).toBe(configMap?.metadata?.name)
    const containers = [...(pod?.containers ?? []), ...(pod?.initContainers ?? [])]
    for (const { image } of containers) expect(image).toBe(`ipdr.dev/agent:${version}`)
    expect(pod?.runtimeClassName).toBe(overlay === 'whole-node' ? 'ipdr-bootstrap' : undefined)
  },
)

test('the deploy endpoint is reached where its configuration listens, has the account that was given rights, and no root', async () => {
  await using scratch = Scratch.open('kustomize-deploy')
  const overlay = join(KUBERNETES, 'overlays/runtime-class')
  const up = relative(scratch.dir, KUBERNETES)
  writeFileSync(join(scratch.dir, 'deploy.json'), '{}')
  writeFileSync(
    join(scratch.dir, 'kustomization.yaml'),
    [
      `resources: ['${relative(scratch.dir, overlay)}']`,
      `components: ['${up}/components/deploy-endpoint']`,
      'configMapGenerator: [{ name: ipdr-deploy-config, namespace: ipdr-system, files: [deploy.json] }]',
    ].join('\n'),
  )
  const objects = loadAllYaml(
    await kubectl(['kustomize', '--load-restrictor=LoadRestrictionsNone', scratch.dir]),
  ) as KubernetesObject[]
  const named = objects.filter(({ metadata }) => metadata?.name === 'ipdr-deploy')
  const set: V1StatefulSet | undefined = named.find(({ kind }) => kind === 'StatefulSet')
  const pod = set?.spec?.template.spec
  const [container] = pod?.containers ?? []
  const offer = { contract: `0x${'1'.repeat(40)}`, token: `0x${'2'.repeat(40)}` }
  const { deploy } = parseConfig({
    deploy: {
      operator: offer.token,
      chain: { id: 1, rpc: ['http://127.0.0.1:8545'] },
      offers: [offer],
    },
  })
  const ports = container?.ports?.map(({ containerPort }) => containerPort) ?? []
  for (const address of deploy?.listen ?? []) {
    expect(ports).toContain(Number(/\/tcp\/(\d+)/.exec(address)?.[1]))
  }
  expect(ports).toContain(deploy?.monitoring.listen.port)
  const service: V1Service | undefined = named.find(({ kind }) => kind === 'Service')
  expect(service?.spec?.selector).toEqual(set?.spec?.selector.matchLabels)
  // Pods ask from inside: what is a port of the nodes, the whole internet reaches.
  const asked = objects.find(({ metadata }) => metadata?.name === 'ipdr-scale-down') as V1Service
  expect(asked.spec?.type).toBeUndefined()
  expect(asked.spec?.selector).toEqual(set?.spec?.selector.matchLabels)
  expect(asked.spec?.ports?.map(({ targetPort }) => targetPort)).toEqual(['scale-down'])
  expect(service?.spec?.ports?.map(({ name }) => name)).toEqual(['libp2p', 'libp2p-ws'])
  expect(pod?.serviceAccountName).toBe(
    named.find(({ kind }) => kind === 'ServiceAccount')?.metadata?.name,
  )
  expect(named.map(({ kind }) => kind)).toContain('ClusterRole')
  expect(pod?.securityContext?.runAsNonRoot).toBe(true)
  expect(container?.securityContext).toMatchObject({
    allowPrivilegeEscalation: false,
    readOnlyRootFilesystem: true,
    capabilities: { drop: ['ALL'] },
  })
  const config = objects.find(
    ({ kind, metadata }) =>
      kind === 'ConfigMap' && metadata?.name?.startsWith('ipdr-deploy-config'),
  )
  expect(pod?.volumes?.find(({ name }) => name === 'config')?.configMap?.name).toBe(
    config?.metadata?.name,
  )
})
