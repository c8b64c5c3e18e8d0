import { execFileSync } from 'node:child_process'
import { mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { CheckedFinding } from '../../agent/cli/doctor/examine-node.ts'
import { parseConfig } from '../../agent/config.ts'
import { writeHostFiles } from '../../agent/kubernetes/host-setup.ts'
import { testContentStore } from '../every-containerd/content-store.ts'
import { testPods } from '../every-containerd/pods.ts'
import { testUserNamespaces } from '../every-containerd/user-namespaces.ts'
import { containerdPath } from '../support/containerd-programs.ts'
import { packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode, Publisher } from '../support/lazy-node.ts'
import { makeTar, type TarPart } from '../support/make-tar.ts'
import { startOciRegistry } from '../support/oci-registry.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'

// What the tests of `test/system` hold for the versions of containerd that Debian has, for one that Go builds.

const IPDR = join(import.meta.dirname, '../../agent/cli/bin/ipdr')

/** As an operator would set it whose machine has many cores; by default it is 1. */
const SIDE_BY_SIDE = `[plugins.'io.containerd.transfer.v1.local']\n  max_concurrent_unpacks = 4`

const opened = new AsyncDisposableStack()
let scratch: Scratch
let publisher: Publisher

beforeAll(async () => {
  scratch = opened.use(Scratch.open('containerd-2.4'))
  publisher = opened.use(await Publisher.start(scratch))
})
afterAll(async () => await opened.disposeAsync(), 60_000)

/** Findings of `ipdr doctor` on a node. */
function doctor(node: LazyNode): readonly CheckedFinding[] {
  const words = ['--config', node.agent.configPath, '--certs-dir', node.certsDir]
  const said = execFileSync(IPDR, ['doctor', ...words, '--output', 'json']).toString()
  return (JSON.parse(said) as { findings: CheckedFinding[] }).findings
}

testPods(['2.4'])
testUserNamespaces(['2.4'])
testContentStore(['2.4'])

test('ipdr doctor finds nothing to mend on a node with containerd 2.4', async () => {
  await using node = await LazyNode.start('doctor-2.4', { publisher, version: '2.4' })
  const findings = doctor(node)
  expect(findings.filter(({ advice }) => advice !== undefined)).toEqual([])
  const found = findings.find(({ check }) => check === 'containerd')?.found
  expect(found).toContain('containerd 2.4')
})

describe('where several layers may be unpacked side by side', () => {
  let byCid = ''
  let plain = ''

  beforeAll(async () => {
    const registry = opened.use(await startOciRegistry(scratch))
    const pack = (...files: readonly TarPart[]): ReturnType<typeof packLayer> =>
      packLayer(Readable.from([makeTar(...files)]), 'gzip', join(scratch.dir, 'layers'))
    // What needs the layer below: a directory that the upper tar does not name, and a whiteout.
    const layers = [
      await pack(
        { name: 'kept/', typeflag: '5', mode: 0o700, uid: 7, gid: 8 },
        { name: 'hidden', content: 'below\n' },
      ),
      await pack({ name: 'kept/new', content: 'above\n' }, { name: '.wh.hidden', content: '' }),
    ]
    const layout = writeOciLayout(join(scratch.dir, 'side-by-side'), { layers })
    byCid = `ipdr.internal/${await publisher.push(layout)}`
    plain = await registry.push(layout, 'side-by-side')
  })

  const startNode = (capabilities: string): Promise<LazyNode> =>
    LazyNode.start('side-by-side', {
      publisher,
      version: '2.4',
      editConfig: (toml) =>
        toml
          .replace('capabilities = ["remap-ids"]', `capabilities = ${capabilities}`)
          .replace("[[plugins.'io.containerd.transfer.v1.local'", `${SIDE_BY_SIDE}\n$&`),
    })

  test('those of our snapshotter are not, and images come out as they are meant', async () => {
    await using node = await startNode('["remap-ids"]')
    for (const image of [byCid, plain]) {
      await node.cri.pullImage(image)
      await using mounted = await node.mountImage(image)
      const { mode, uid, gid } = statSync(join(mounted.path, 'kept'))
      expect([mode & 0o7777, uid, gid]).toEqual([0o700, 7, 8])
      expect(readdirSync(mounted.path)).toEqual(['kept'])
    }
  })

  test('a plugin of which "rebase" is said unpacks nothing, and ipdr doctor names the word to take out', async () => {
    await using node = await startNode('["remap-ids", "rebase"]')
    for (const image of [byCid, plain]) {
      await expect(node.cri.pullImage(image)).rejects.toThrow('take "rebase" out')
    }
    const found = doctor(node).find(({ check }) => check === 'proxy plugin')
    expect(found).toMatchObject({ state: 'warning' })
    expect(found?.advice).toContain('Take "rebase" out')
  })
})

test('our lines do in a configuration of version 4 too', async () => {
  await using node = await LazyNode.start('version-4', {
    publisher,
    version: '2.4',
    // Version 4 has other names for the sockets, which are not ours.
    editConfig: (toml) =>
      toml
        .replace('version = 3', 'version = 4')
        .replace('[grpc]', '[plugins."io.containerd.server.v1.grpc"]')
        .replace('[ttrpc]', '[plugins."io.containerd.server.v1.ttrpc"]'),
  })
  const layer = await packLayer(
    Readable.from([makeTar({ name: 'small', content: 'read lazily\n' })]),
    'gzip',
    join(scratch.dir, 'layers'),
  )
  const layout = writeOciLayout(join(scratch.dir, 'layout'), { layers: [layer] })
  await node.cri.pullImage(`ipdr.internal/${await publisher.push(layout)}`)
  const snapshots = ['-n', 'k8s.io', 'snapshots', '--snapshotter', 'ipdr', 'ls']
  expect(await node.containerd.ctr(snapshots)).toContain(layer.diffId)
  expect(await node.downloadedBlobs()).not.toContain(layer.digest)
})

test('a configuration of version 4 takes the drop-in of host-setup, and keeps what its operator has set', async () => {
  const scratch = Scratch.open('host-setup-2.4')
  onTestFinished(() => scratch[Symbol.asyncDispose]())
  const dir = join(scratch.dir, 'containerd')
  mkdirSync(dir)
  const mine = `[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.mine]\n  runtime_type = "io.containerd.runc.v2"`
  const main = join(dir, 'config.toml')
  writeFileSync(main, `version = 4\nimports = ["${dir}/conf.d/*.toml"]\n${mine}\n`)
  writeHostFiles(parseConfig({ runDir: '/run/other' }), {
    containerdDir: dir,
    profile: 'runtime-class',
  })
  const env = { PATH: await containerdPath('2.4', scratch) }
  const dumped = await runCommand('containerd', ['--config', main, 'config', 'dump'], { env })
  expect(dumped).toMatch(/runtimes\.ipdr\]/)
  expect(dumped).toMatch(/runtimes\.mine\]/)
  expect(dumped).toContain('/run/other/snapshotter.sock')
})
