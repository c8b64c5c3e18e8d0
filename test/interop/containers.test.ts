import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { parseManifest } from '../../snapshotter/oci/manifest.ts'
import { compareTrees, listTree } from '../support/compare-trees.ts'
import { Containerd, writeHostsFile } from '../support/containerd.ts'
import { buildDebianImage } from '../support/images/debian-image.ts'
import { PYTHON } from '../support/images/demo-image.ts'
import { LazyNode } from '../support/lazy-node.ts'
import { startOciRegistry } from '../support/oci-registry.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'
import { SuitePrograms } from '../support/suite-programs.ts'

// Goal: what `ipdr push` writes is an image for everybody. Method: skopeo, buildah, podman and containerd's own overlayfs read
// it, from the agent's registry or after skopeo carried it to docker-registry, and unpack the tree that containerd unpacks from
// what was pushed.

const opened = new AsyncDisposableStack()
let scratch: Scratch
let node: LazyNode
let programs: SuitePrograms
let root = ''
/** The agent's registry, and a docker-registry that has the same image. */
let [ours, theirs] = ['', '']
let reference = ''
/** The image that was pushed, in a docker-registry, as it was and as skopeo makes zstd:chunked of it. */
let [source, chunkedSource] = ['', '']

/** containerd ignores what a tar says of the root. */
const ANY_TIME_OF = ['']

/** Copies the tree of an image that podman pulled; what it says goes to standard error. */
const COPY_BY_PODMAN = `
  inside podman --log-level debug pull --tls-verify=false "docker://$1" >&2
  cp -a "$OWN_ROOT$(inside podman image mount "$1")" "$2"
  inside podman image umount "$1" >/dev/null`

beforeAll(async () => {
  scratch = opened.use(Scratch.open('interop'))
  programs = SuitePrograms.unpack('trixie', 'podman', 'podman', 'buildah', 'crun')
  // Not the odd image of other tests: containers/storage takes no tar that names a file twice.
  const layout = await buildDebianImage({
    name: 'python',
    root: { variant: 'minbase' },
    steps: [PYTHON],
  })
  node = opened.use(await LazyNode.start('interop-node'))
  root = await node.publisher.push(layout)
  ours = `${new URL(node.agent.registryUrl).host}/${root}`
  const registry = opened.use(await startOciRegistry(scratch))
  theirs = `${registry.host}/pushed:latest`
  await runCommand('skopeo', [
    'copy',
    '--insecure-policy',
    '--preserve-digests',
    '--src-tls-verify=false',
    '--dest-tls-verify=false',
    `docker://${ours}`,
    `docker://${theirs}`,
  ])
  source = await registry.push(layout, 'source')
  chunkedSource = `${registry.host}/chunked:latest`
  const [skopeo, ...loader] = SuitePrograms.unpack('trixie', 'skopeo', 'skopeo').command(
    'usr/bin/skopeo',
  )
  const plain = `dir:${join(scratch.dir, 'plain')}`
  const copy = [...loader, 'copy', '--insecure-policy']
  await runCommand(skopeo, [...copy, '--dest-decompress', `oci:${layout.dir}:${layout.tag}`, plain])
  const chunked = ['--dest-tls-verify=false', '--dest-compress-format=zstd:chunked']
  await runCommand(skopeo, [...copy, ...chunked, plain, `docker://${chunkedSource}`])
  const { containerd, pull } = await containerdOf('reference')
  reference = opened.use(await containerd.mountImage(await pull(source))).path
}, 300_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

/** A containerd with its own overlayfs snapshotter, that pulls from a registry under a name of its own. */
async function containerdOf(
  name: string,
): Promise<{ containerd: Containerd; pull: (image: string) => Promise<string> }> {
  const certsDir = join(scratch.dir, `certs-${name}`)
  const containerd = opened.use(
    await Containerd.start({ scratch, snapshotter: 'overlayfs', certsDir, name }),
  )
  return {
    containerd,
    pull: async (image) => {
      const [host = '', ...path] = image.split('/')
      writeHostsFile(certsDir, 'registry.test', `http://${host}`)
      const named = `registry.test/${path.join('/')}`
      const pulled = named.includes(':') ? named : `${named}:latest`
      await containerd.pull(pulled)
      return pulled
    },
  }
}

/** A store of containers/storage in the scratch, and the environment that leads there. */
function storageOf(
  name: string,
  { isPartial }: { isPartial: boolean },
): { env: NodeJS.ProcessEnv; copy: string } {
  const dir = join(scratch.dir, name)
  const path = `${dir}.conf`
  writeFileSync(
    path,
    [
      '[storage]',
      'driver = "overlay"',
      `graphroot = "${dir}/root"`,
      `runroot = "${join(scratch.run, name)}"`,
      '[storage.options]',
      `pull_options = {enable_partial_images = "${isPartial}", use_hard_links = "false", ostree_repos = ""}`,
    ].join('\n'),
  )
  const env = { PATH: process.env['PATH'], HOME: '/root', CONTAINERS_STORAGE_CONF: path }
  return { env, copy: join(dir, 'copy') }
}

const isTree = async (path: string): Promise<string[]> =>
  compareTrees(path, reference, { anyTimeOf: ANY_TIME_OF })

/** Copies the tree of an image that buildah pulled. */
const COPY_BY_BUILDAH = `
  container=$(inside buildah from --tls-verify=false "docker://$1")
  cp -a "$OWN_ROOT$(inside buildah mount "$container")" "$2"
  inside buildah umount "$container" >/dev/null
  inside buildah rm "$container" >/dev/null`

test("containerd's own overlayfs unpacks the image from the agent's registry to the same tree", async () => {
  const { containerd, pull } = await containerdOf('ours')
  await using mounted = await containerd.mountImage(await pull(ours))
  expect(await isTree(mounted.path)).toEqual([])
}, 120_000)

test("skopeo carries it from the agent's registry into an OCI layout, every digest checked, and from there back into ipdr push", async () => {
  const dir = join(scratch.dir, 'layout')
  const words = ['copy', '--insecure-policy', '--preserve-digests', '--src-tls-verify=false']
  await runCommand('skopeo', [...words, `docker://${ours}`, `oci:${dir}:v1`])
  const index = JSON.parse(readFileSync(join(dir, 'index.json'), 'utf8')) as {
    manifests: { digest: string }[]
  }
  const digest = index.manifests[0]?.digest ?? ''
  const bytes = readFileSync(join(dir, 'blobs/sha256', digest.slice(7)))
  const manifest = parseManifest(bytes, 'it')
  expect(manifest).toMatchObject({
    kind: 'manifest',
    layers: Array.from({ length: 2 }, () => ({
      mediaType: 'application/vnd.oci.image.layer.v1.tar+zstd',
    })),
  })
  expect(readdirSync(join(dir, 'blobs/sha256'))).toHaveLength(4)
  // The same frames come of the same tar: what others carried is deduplicated with what was there.
  expect(await node.publisher.push({ dir, tag: 'v1' })).toBe(root)
}, 120_000)

test("buildah pulls it from the agent's registry and unpacks what it unpacks of the image that was pushed", async () => {
  const [actual, expected] = ['buildah', 'buildah-source'].map((name) =>
    storageOf(name, { isPartial: false }),
  )
  if (actual === undefined || expected === undefined) throw new Error('there is no storage')
  for (const [image, { env, copy }] of [
    [ours, actual],
    [source, expected],
  ] as const) {
    const [file, ...args] = programs.snippet(COPY_BY_BUILDAH, image, copy)
    await runCommand(file, args, { env })
  }
  expect(await compareTrees(actual.copy, expected.copy, { anyTimeOf: ANY_TIME_OF })).toEqual([])
}, 180_000)

// In this way podman 5.4 leaves out devices, and links have the time of now, whoever made the table of contents.
test('podman pulls it file by file, by its zstd:chunked table of contents, to the tree that it makes of skopeo’s', async () => {
  const [actual, expected] = ['podman', 'podman-source'].map((name) =>
    storageOf(name, { isPartial: true }),
  )
  if (actual === undefined || expected === undefined) throw new Error('there is no storage')
  const lines: string[] = []
  for (const [image, { env, copy }] of [
    [theirs, actual],
    [chunkedSource, expected],
  ] as const) {
    const [file, ...args] = programs.snippet(COPY_BY_PODMAN, image, copy)
    await runCommand(file, args, { env, onLine: (line) => void lines.push(line) })
  }
  const [host = '', name = ''] = theirs.split(/\/|:latest/)
  const accept = 'application/vnd.oci.image.manifest.v1+json'
  const answer = await fetch(`http://${host}/v2/${name}/manifests/latest`, { headers: { accept } })
  const { layers } = (await answer.json()) as { layers: { digest: string }[] }
  for (const { digest } of layers) {
    const retrieved = lines.filter((line) => line.includes(`Retrieved partial blob ${digest}`))
    expect(retrieved).toHaveLength(1)
  }
  const trees = await Promise.all([listTree(actual.copy), listTree(expected.copy)])
  const links = [...trees[1]].flatMap(([path, { type }]) => (type === 'link' ? [path] : []))
  const folders = [...trees[1]].flatMap(([path, { type }]) => (type === 'folder' ? [path] : []))
  const options = { anyTimeOf: [...ANY_TIME_OF, ...links, ...folders] }
  expect(await compareTrees(actual.copy, expected.copy, options)).toEqual([])
  expect(trees[0].size).toBeGreaterThan(3000)
}, 180_000)
