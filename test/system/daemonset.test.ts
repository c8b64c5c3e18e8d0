import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { Readable } from 'node:stream'
import { setTimeout } from 'node:timers/promises'
import type { V1DaemonSet, V1PodSpec } from '@kubernetes/client-node'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { buildImage } from '../../node-image/build-image.ts'
import { isMounted } from '../../snapshotter/kernel/mountinfo.ts'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import { freePort } from '../support/agent.ts'
import {
  BOOTSTRAP_CLASS,
  Containerd,
  RUNTIME_CLASS,
  writeHostsFile,
} from '../support/containerd.ts'
import { ControlGroup } from '../support/control-group.ts'
import { Cri, type Pod } from '../support/cri.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import {
  agentCapabilities,
  agentConfig,
  agentDaemonSet,
  objectsIn,
} from '../support/kubernetes-manifests.ts'
import { onceServed, Publisher } from '../support/lazy-node.ts'
import { makeTar } from '../support/make-tar.ts'
import { containerAsCri, podAsCri } from '../support/pod-as-cri.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

// The DaemonSet on a real containerd: the image that `make image` builds, from overlayfs, with the mounts and rights of the manifest and
// no others. What a kubelet would do with it is done by test/support/pod-as-cri.ts; paths and ports of the node are the test's.

const SUPPORT = join(import.meta.dirname, '../support')
const MiB = 1024 ** 2
const IMAGE = 'ipdr.dev/agent:0.1.0'
const pollMs = { timeout: 60_000, interval: 50 }

/** As an operator has the choice: the class of the agent's own pod, and that of pods that it serves. */
const PROFILES = {
  'runtime-class': { version: '1.7', isPerRuntime: true, agent: undefined, user: RUNTIME_CLASS },
  'whole-node': { version: '2', hasBootstrap: true, agent: BOOTSTRAP_CLASS, user: undefined },
  'whole-node, with version 2 of control groups': {
    version: '2',
    hasBootstrap: true,
    agent: BOOTSTRAP_CLASS,
    user: undefined,
    within: [join(SUPPORT, 'unified-groups.sh')],
    // Where there are no controllers nothing can be limited.
    editConfig: (toml: string) =>
      toml
        .replace('disable_apparmor', 'disable_cgroup = true\n$&')
        .replaceAll(/^ +Root = .*$/gm, `$&\nBinaryName = "${SUPPORT}/runc-without-limits.py"`),
  },
} as const

const shared = new AsyncDisposableStack()
/** What `make image` makes, as an archive. */
let agentArchive: string

beforeAll(async () => {
  const scratch = shared.use(Scratch.open('daemonset-image'))
  const { dir } = await buildImage(join(scratch.dir, 'image'))
  agentArchive = `${dir}.tar`
  await runCommand('tar', ['-C', dir, '-cf', agentArchive, '.'])
}, 600_000)
afterAll(async () => await shared.disposeAsync(), 60_000)

describe.each(Object.entries(PROFILES))('%s', (_, profile) => {
  const opened = new AsyncDisposableStack()
  let scratch: Scratch
  let containerd: Containerd
  let cri: Cri
  let publisher: Publisher
  let spec: V1PodSpec
  let monitoringUrl: string
  let registryUrl: string
  let configDir: string
  let keeperGroup: string
  let pods = 0

  beforeAll(async () => {
    scratch = opened.use(Scratch.open('daemonset'))
    for (const path of [scratch.dir, scratch.run]) await share(path)
    publisher = opened.use(await Publisher.start(scratch))
    const [registry, monitoring] = [await freePort(), await freePort()]
    monitoringUrl = `http://127.0.0.1:${monitoring}`
    registryUrl = `http://127.0.0.1:${registry}`
    const certsDir = join(scratch.dir, 'certs.d')
    writeHostsFile(certsDir, 'ipdr.internal', registryUrl)
    const [root, runDir] = [join(scratch.dir, 'agent'), join(scratch.run, 'agent')]
    // Before there is an agent, as on a node that joins.
    containerd = opened.use(
      await Containerd.start({
        scratch,
        snapshotter: { name: 'ipdr', socketPath: join(runDir, 'snapshotter.sock'), root },
        ...profile,
        certsDir,
      }),
    )
    // Containers that CRI puts into no group are in one beside containerd's.
    new ControlGroup(join(containerd.cgroup, 'containerd')).take(containerd.pid ?? 0)
    cri = opened.use(await Cri.connect(containerd))
    keeperGroup = `${dirname(containerd.cgroup)}/fuse-keeper`
    const places: readonly [ofNode: string, ofTest: string][] = [
      ['/var/lib/ipdr-agent', root],
      ['/run/ipdr-agent', runDir],
      ['/run/containerd', dirname(containerd.socketPath)],
      ['127.0.0.1:5080', `127.0.0.1:${registry}`],
      ['127.0.0.1:5081', `127.0.0.1:${monitoring}`],
      ['/ipdr-fuse-keeper', keeperGroup],
    ]
    const here = <Value>(value: Value): Value =>
      JSON.parse(
        places.reduce((text, [from, to]) => text.replaceAll(from, to), JSON.stringify(value)),
      ) as Value
    spec = here(agentDaemonSet().spec?.template.spec ?? { containers: [] })
    for (const { hostPath } of spec.volumes ?? []) {
      if (hostPath?.type === 'DirectoryOrCreate') mkdirSync(hostPath.path, { recursive: true })
    }
    configDir = join(scratch.dir, 'config')
    mkdirSync(configDir)
    const config = { ...here(agentConfig()), ipfs: { gateways: [publisher.gatewayUrl] } }
    writeFileSync(join(configDir, 'config.json'), JSON.stringify(config))
    await importAgent()
  }, 600_000)

  afterAll(async () => await opened.disposeAsync(), 120_000)

  /** A place whose mounts others see, as systemd has it for all of a node. */
  async function share(path: string): Promise<void> {
    await runCommand('mount', ['--bind', path, path])
    await runCommand('mount', ['--make-shared', path])
  }

  /** Gives the image to containerd as node-image/kubernetes/README.md says, without a registry. */
  async function importAgent(): Promise<void> {
    const words = ['images', 'import', '--base-name', 'ipdr.dev/agent', agentArchive]
    await containerd.ctr(['-n', 'k8s.io', ...words])
    // CRI hears of it by an event.
    while ((await cri.imageStatus(IMAGE)) === undefined) await setTimeout(10)
  }

  /** Publishes an image with busybox, and a large file of its own. */
  async function publishImage(seed: number): Promise<{ name: string; large: string }> {
    const large = randomContent(seeded(seed), 24 * MiB)
    const tar = makeTar(
      ...busyboxFiles('cat', 'echo', 'sh', 'sha256sum', 'sleep'),
      { name: 'hello', content: 'from IPFS\n' },
      { name: 'large', content: large },
    )
    const layer = await packLayer(Readable.from([tar]), 'gzip', join(scratch.dir, `layers-${seed}`))
    const process = { Env: ['PATH=/bin'] }
    const layout = writeOciLayout(join(scratch.dir, `layout-${seed}`), { layers: [layer], process })
    const name = `ipdr.internal/${await publisher.push(layout)}`
    return { name, large: `${digestOf(large).slice(7)}  /large\n` }
  }

  type AgentPod = { readonly pod: Pod; readonly containers: ReadonlyMap<string, string> }

  /** Starts a pod of the DaemonSet, and waits until its readiness probe is answered. */
  async function startAgentPod(): Promise<AgentPod> {
    const uid = `agent-${pods++}`
    const place = { namespace: 'ipdr-system', name: uid, uid }
    const pod = await cri.runPod(podAsCri(spec, place), profile.agent)
    const token = join(scratch.dir, 'token')
    mkdirSync(token, { recursive: true })
    const containers = new Map<string, string>()
    for (const container of spec.containers) {
      const folders = { config: configDir, token }
      const fields = { 'spec.nodeName': 'node-1' }
      const config = containerAsCri(spec, container, { image: IMAGE, folders, fields })
      const id = await cri.createContainerOf(pod, config)
      await cri.startContainer(id)
      containers.set(container.name, id)
    }
    const agent = containers.get('agent') ?? ''
    const deadline = Date.now() + 60_000
    while (!(await isReady())) {
      if (Date.now() > deadline) throw new Error(`not ready:\n${await cri.logOf(agent)}`)
      await setTimeout(50)
    }
    return { pod, containers }
  }

  async function isReady(): Promise<boolean> {
    return await fetch(`${monitoringUrl}/readyz`).then(
      ({ ok }) => ok,
      () => false,
    )
  }

  /** Starts a pod of an image on IPFS, and gives back its container. */
  async function startUserPod(image: string): Promise<{ pod: Pod; id: string }> {
    const { user } = profile
    await onceServed(async () => {
      if (user === undefined) await cri.pullImage(image)
      else await cri.pullImageForHandler(user, image)
    })
    const pod = await cri.runPodSandbox('default', profile.user)
    const id = await cri.createContainer(pod, image, ['sh', '-c', 'cat /hello; sleep infinity'])
    await cri.startContainer(id)
    await expect.poll(() => cri.logOf(id), pollMs).toBe('from IPFS\n')
    return { pod, id }
  }

  /** Whether a process of the containers waits, and cannot be killed: field 3 of proc_pid_stat(5). */
  function isAnyBlocked(): boolean {
    return new ControlGroup(containerd.cgroup).pids().some((pid) => {
      try {
        const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
        return stat.charAt(stat.lastIndexOf(')') + 2) === 'D'
      } catch {
        return false
      }
    })
  }

  test('the agent from its image serves a pod from IPFS, with the capabilities of the manifest and no others', async () => {
    const image = await publishImage(1)
    const agent = await startAgentPod()
    expect(capabilitiesOf('ipdr-agent.js\0--config')).toEqual(agentCapabilities().toSorted())
    expect(capabilitiesOf('ipdr-agent.js\0untaint')).toEqual([])
    const user = await startUserPod(image.name)
    expect(isMounted(join(scratch.run, 'agent/files'))).toBe(true)
    await cri.removePodSandbox(user.pod)
    await cri.removePodSandbox(agent.pod)
  }, 180_000)

  test('before it starts, what containerd needs is written, by a container with no capability at all', async () => {
    const [setup] = objectsIn('components/host-setup/host-setup.yaml') as V1DaemonSet[]
    const [container] = setup?.spec?.template.spec?.initContainers ?? []
    if (container === undefined) throw new Error('there is no host-setup')
    const folders = { config: configDir, 'etc-containerd': join(scratch.dir, 'etc-containerd') }
    mkdirSync(folders['etc-containerd'])
    const main = 'version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n'
    writeFileSync(join(folders['etc-containerd'], 'config.toml'), main)
    const uid = `setup-${pods++}`
    const pod = await cri.runPod(
      podAsCri({ hostNetwork: true, containers: [] }, { namespace: 'ipdr-system', name: uid, uid }),
      profile.agent,
    )
    const given = { image: IMAGE, folders }
    const id = await cri.createContainerOf(pod, containerAsCri(spec, container, given))
    await cri.startContainer(id)
    const { exitCode } = await cri.whenExited(id, AbortSignal.timeout(60_000))
    expect({ exitCode, log: await cri.logOf(id) }).toMatchObject({
      exitCode: 0,
      log: expect.stringContaining('restart containerd on this node'),
    })
    const hosts = join(folders['etc-containerd'], 'certs.d/ipdr.internal/hosts.toml')
    expect(readFileSync(hosts, 'utf8')).toContain(registryUrl)
    await cri.removePodSandbox(pod)
  }, 120_000)

  test('a rollout: reads wait while there is no pod of the agent, and the next one answers them', async () => {
    const image = await publishImage(2)
    const first = await startAgentPod()
    const user = await startUserPod(image.name)
    await cri.removePodSandbox(first.pod)
    expect(await isReady()).toBe(false)
    expect(new ControlGroup(keeperGroup).pids()).toHaveLength(1)
    const read = cri.execSync(user.id, ['sha256sum', '/large'])
    await expect.poll(isAnyBlocked, pollMs).toBe(true)
    const second = await startAgentPod()
    const log = (): Promise<string> => cri.logOf(second.containers.get('agent') ?? '')
    await expect.poll(log, pollMs).toContain('"adopted":true')
    expect((await read).stdout).toBe(image.large)
    await cri.removePodSandbox(user.pod)
    await cri.removePodSandbox(second.pod)
  }, 180_000)

  test('a keeper that has no control group of its own ends with the pod: reads fail, never lie, until the next one has mended the mounts', async () => {
    // Of the pods before.
    await new ControlGroup(keeperGroup).end()
    const { fuseKeeper: _, ...config } = JSON.parse(
      readFileSync(join(configDir, 'config.json'), 'utf8'),
    ) as Record<string, unknown>
    writeFileSync(join(configDir, 'config.json'), JSON.stringify(config))
    const image = await publishImage(3)
    const first = await startAgentPod()
    const user = await startUserPod(image.name)
    await cri.removePodSandbox(first.pod)
    const hash = ['sha256sum', '/large']
    const failed = await cri.execSync(user.id, hash)
    // It says so, or ends itself by a page of its own program.
    expect(failed.exitCode).not.toBe(0)
    expect(failed.stdout).toBe('')
    const second = await startAgentPod()
    await expect
      .poll(() => cri.execSync(user.id, hash), pollMs)
      .toMatchObject({ stdout: image.large })
    await cri.removePodSandbox(user.pod)
    await cri.removePodSandbox(second.pod)
  }, 180_000)

  /** Those that a process of the containers with this in its command line may use. */
  function capabilitiesOf(command: string): string[] {
    const found = new ControlGroup(containerd.cgroup)
      .pids()
      .find((pid) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(command))
    const status = readFileSync(`/proc/${found}/status`, 'utf8')
    const mask = BigInt(`0x${/^CapEff:\t(\w+)$/m.exec(status)?.[1]}`)
    const bits = Array.from({ length: 64 }, (_, bit) => bit).filter(
      (bit) => (mask >> BigInt(bit)) & 1n,
    )
    return bits.map((bit) => CAPABILITIES[bit] ?? String(bit)).toSorted()
  }
})

/** linux/capability.h, as far as the manifest goes; others by number. */
const CAPABILITIES: Readonly<Record<number, string>> = {
  0: 'CAP_CHOWN',
  1: 'CAP_DAC_OVERRIDE',
  3: 'CAP_FOWNER',
  4: 'CAP_FSETID',
  6: 'CAP_SETGID',
  7: 'CAP_SETUID',
  19: 'CAP_SYS_PTRACE',
  21: 'CAP_SYS_ADMIN',
  23: 'CAP_SYS_NICE',
}
