import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { listMounts } from '../../snapshotter/kernel/mountinfo.ts'
import { compareTrees } from '../support/compare-trees.ts'
import { Containerd, writeHostsFile } from '../support/containerd.ts'
import { ControlGroup } from '../support/control-group.ts'
import { Cri } from '../support/cri.ts'
import { buildDebianImage } from '../support/images/debian-image.ts'
import { buildOddImage } from '../support/images/odd-image.ts'
import { type OciRegistry, startOciRegistry } from '../support/oci-registry.ts'
import { runCommand } from '../support/run-command.ts'
import { removeLeftovers, Scratch } from '../support/scratch.ts'

// What the other system tests stand on, shown on containerd's own overlayfs.

const opened = new AsyncDisposableStack()
let scratch: Scratch
let registry: OciRegistry
let containerd: Containerd
let cri: Cri
let busybox: string

beforeAll(async () => {
  scratch = opened.use(Scratch.open('harness'))
  registry = opened.use(await startOciRegistry(scratch))
  const certsDir = join(scratch.dir, 'certs.d')
  writeHostsFile(certsDir, 'registry.test', `http://${registry.host}`)
  containerd = opened.use(await Containerd.start({ scratch, snapshotter: 'overlayfs', certsDir }))
  cri = opened.use(await Cri.connect(containerd))
  const root = { variant: 'extract', packages: ['busybox-static'] } as const
  busybox = await push(await buildDebianImage({ name: 'busybox', root }), 'busybox')
}, 120_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

test('ctr pulls from the registry that hosts.toml names, and runs a container', async () => {
  await containerd.pull(busybox)
  expect(await containerd.run(busybox, ['busybox', 'echo', 'hello'])).toBe('hello\n')
}, 60_000)

test('CRI pulls, runs a pod, executes in it, and removes everything', async () => {
  await cri.pullImage(busybox)
  expect((await cri.imageStatus(busybox))?.repoTags).toEqual([busybox])
  const pod = await cri.runPodSandbox()
  const sleeper = await cri.createContainer(pod, busybox, ['busybox', 'sleep', 'infinity'])
  await cri.startContainer(sleeper)
  const result = await cri.execSync(sleeper, [
    'busybox',
    'sh',
    '-c',
    'echo out; echo err >&2; exit 3',
  ])
  expect(result).toEqual({ stdout: 'out\n', stderr: 'err\n', exitCode: 3 })
  const speaker = await cri.createContainer(pod, busybox, ['busybox', 'echo', 'spoken'])
  await cri.startContainer(speaker)
  expect((await cri.whenExited(speaker, AbortSignal.timeout(20_000))).exitCode).toBe(0)
  expect(await cri.logOf(speaker)).toBe('spoken\n')
  await cri.removeContainer(sleeper)
  await cri.removePodSandbox(pod)
  await cri.removeImage(busybox)
  expect(await cri.imageStatus(busybox)).toBeUndefined()
  const [disk] = await cri.imageFsInfo()
  expect(disk?.fsId?.mountpoint).toContain(containerd.root)
}, 60_000)

test('a container goes on while containerd is killed and started again', async () => {
  await cri.pullImage(busybox)
  const pod = await cri.runPodSandbox()
  const container = await cri.createContainer(pod, busybox, ['busybox', 'sleep', 'infinity'])
  await cri.startContainer(container)
  await containerd.restart('SIGKILL')
  expect((await cri.containerStatus(container)).state).toBe('CONTAINER_RUNNING')
  await cri.removePodSandbox(pod)
}, 60_000)

test('two trees are compared in everything that tells them apart', async () => {
  const image = await push(await buildOddImage(), 'odd')
  await containerd.pull(image)
  await using expected = await containerd.mountImage(image)
  const copy = join(scratch.dir, 'copy')
  await runCommand('cp', ['--archive', expected.path, copy])
  expect(await compareTrees(copy, expected.path)).toEqual([])
  const changes = `
    chmod 0601 links/first
    chown 12 sizes/511
    touch -h -d 2001-01-01 posix/links/dangling
    printf x | dd of=sizes/65537 bs=1 seek=60000 conv=notrunc status=none
    touch -r sizes/65536 sizes/65537 # so that only the bytes differ
    setfattr -n user.plain -v other posix/xattrs/user
    setcap -r posix/xattrs/capable
    rm devices/null sizes/1 && mknod -m 644 devices/null c 1 5 && touch -r devices devices/null
    cp -p links/empty-2 new && mv new links/empty-2
    touch -d 2001-01-01 extra
    touch -d 2001-01-01 .
  `
  await runCommand('sh', ['-euc', changes], { cwd: copy })
  const found = await compareTrees(copy, expected.path)
  expect(found.map((line) => line.replace(/ is .*should be .*/, '')).toSorted()).toEqual([
    '/: mtimeNs',
    '/devices/null: device',
    '/devices/null: mtimeNs',
    '/devices: mtimeNs',
    '/extra: should not be there',
    '/links/empty-2: sameFileAs',
    '/links/first: mode',
    '/links: mtimeNs',
    '/modes/third: mode',
    '/posix/links/dangling: mtimeNs',
    '/posix/xattrs/capable: xattrs',
    '/posix/xattrs/user: xattrs',
    '/sizes/1: is missing',
    '/sizes/511: uid',
    '/sizes/65537: sha256',
    '/sizes: mtimeNs',
  ])
}, 120_000)

test('nothing is left of a containerd that is disposed of with a pod running', async () => {
  await using own = Scratch.open('disposed')
  await using another = await Containerd.start({ scratch: own, snapshotter: 'overlayfs' })
  using pods = await Cri.connect(another)
  await pods.runPodSandbox()
  const [group, sockets] = [new ControlGroup(another.cgroup), shimSockets(own)]
  expect(group.pids()).toHaveLength(1)
  expect(sockets).toHaveLength(1)
  expect(listMounts(own.run)).not.toEqual([])
  await another[Symbol.asyncDispose]()
  await own[Symbol.asyncDispose]()
  expectNothingLeft(own, sockets, group)
}, 60_000)

test('nothing is left of a test that was killed, once leftovers are removed', async () => {
  const script = `
    import { Containerd } from '${import.meta.dirname}/../support/containerd.ts'
    import { Cri } from '${import.meta.dirname}/../support/cri.ts'
    import { Scratch } from '${import.meta.dirname}/../support/scratch.ts'
    const scratch = Scratch.open('killed')
    const containerd = await Containerd.start({ scratch, snapshotter: 'overlayfs' })
    await (await Cri.connect(containerd)).runPodSandbox()
    console.log(JSON.stringify({ group: containerd.cgroup }))
  `
  const child = spawn(process.execPath, ['--input-type=module-typescript', '--eval', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const [line] = (await once(createInterface(child.stdout), 'line')) as [string]
  const group = new ControlGroup((JSON.parse(line) as { group: string }).group)
  const exited = once(child, 'exit')
  child.kill('SIGKILL')
  await exited
  const left = Scratch.leftovers().find(({ dir }) => dir.includes('killed'))
  if (left === undefined) throw new Error('the killed test left nothing behind')
  const sockets = shimSockets(left)
  expect(sockets).toHaveLength(1)
  expect(group.pids()).toHaveLength(1)
  await removeLeftovers()
  expectNothingLeft(left, sockets, group)
}, 60_000)

async function push(...[image, name]: Parameters<OciRegistry['push']>): Promise<string> {
  return (await registry.push(image, name)).replace(registry.host, 'registry.test')
}

function shimSockets({ run }: Scratch): string[] {
  const files = globSync(`${run}/containerd/state/io.containerd.runtime.v2.task/*/*/address`)
  return files.map((path) => readFileSync(path, 'utf8').replace('unix://', ''))
}

function expectNothingLeft(
  { dir, run }: Scratch,
  sockets: readonly string[],
  group: ControlGroup,
): void {
  expect([dir, run, ...sockets].filter((path) => existsSync(path))).toEqual([])
  expect([...listMounts(dir), ...listMounts(run)]).toEqual([])
  expect(group.pids()).toEqual([])
}
