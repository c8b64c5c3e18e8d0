import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { Containerd, writeHostsFile } from '../support/containerd.ts'
import { Cri } from '../support/cri.ts'
import { runCritest, type SpecResult } from '../support/critest.ts'
import { CRITEST_HOSTS, pushCritestImages } from '../support/images/critest-images.ts'
import { LazyNode } from '../support/lazy-node.ts'
import { type OciRegistry, startOciRegistry } from '../support/oci-registry.ts'
import { Scratch } from '../support/scratch.ts'

// Goal: whatever a runtime does for a kubelet it does with us as well. Method: the specs of cri-tools, on containerd with overlayfs
// and on containerd with the agent, which mounts the same images at once; what passes with overlayfs has to pass with us.

/** Specs that cannot pass here, whatever the snapshotter. */
const CANNOT_RUN = [
  // Wants an image whose digest is that of one in a registry far away.
  'public image with digest',
  // Our pods are alone in their networks: they cannot be reached by their addresses.
  'should support port mapping',
  'should support portforward \\[Conformance\\]',
  'Multiple Containers .* should support network',
  // Takes /bin/ls away, which Debian's busybox has in its shell as well.
  'MaskedPaths',
].join('|')

const which = { focus: 'k8s\\.io', skip: CANNOT_RUN }

/** Of a suite, in ms; more than runCritest gives it. */
const SUITE_DEADLINE_MS = 1_600_000

const opened = new AsyncDisposableStack()
let scratch: Scratch
let registry: OciRegistry
let url = ''
let withOverlayfs: ReadonlyMap<string, SpecResult>

beforeAll(async () => {
  scratch = opened.use(Scratch.open('critest'))
  registry = opened.use(await startOciRegistry(scratch))
  url = `http://${registry.host}`
  await pushCritestImages(scratch, registry)
}, 1_200_000)
afterAll(async () => await opened.disposeAsync(), 60_000)

function namesOf(specs: ReadonlyMap<string, SpecResult>, state: 'passed' | 'failed'): string[] {
  return [...specs].filter(([, spec]) => spec.state === state).map(([name]) => name)
}

test(
  'the specs of cri-tools pass with overlayfs',
  async () => {
    const certsDir = join(scratch.dir, 'certs.d')
    writeHostsFile(certsDir, '_default', url)
    const snapshotter = 'overlayfs'
    const options = { scratch, snapshotter, version: '2', certsDir, hasPodNetwork: true } as const
    await using containerd = await Containerd.start(options)
    // Brings the pods' own image.
    using _cri = await Cri.connect(containerd)
    withOverlayfs = await runCritest(scratch, containerd, which)
    const passed = namesOf(withOverlayfs, 'passed')
    expect(passed.length).toBeGreaterThan(80)
    // Those of user namespaces skip themselves with a runc that has none.
    expect(passed).toContainEqual(expect.stringContaining('should support NamespaceMode_POD'))
  },
  SUITE_DEADLINE_MS,
)

test(
  'and with the agent those that pass are no fewer',
  async () => {
    const hosts = Object.fromEntries(CRITEST_HOSTS.map((host) => [host, { mirror: url }]))
    await using node = await LazyNode.start('critest-node', {
      version: '2',
      hasPodNetwork: true,
      hosts: { _default: url },
      registries: { hosts },
    })
    const results = await runCritest(node.scratch, node.containerd, which)
    const lost = namesOf(withOverlayfs, 'passed').map((name) => [name, results.get(name)])
    expect(lost.filter(([, spec]) => (spec as SpecResult | undefined)?.state !== 'passed')).toEqual(
      [],
    )
    // They ran on images that were read from the registry part by part.
    expect(await node.metric('ipdr_registry_received_bytes_total')).toBeGreaterThan(0)
  },
  SUITE_DEADLINE_MS,
)
