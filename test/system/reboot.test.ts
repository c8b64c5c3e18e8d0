import { hash } from 'node:crypto'
import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { expect, onTestFinished, test, vi } from 'vitest'
import { MNT_DETACH, UMOUNT_NOFOLLOW, umount } from '../../snapshotter/kernel/libc.ts'
import { listMounts } from '../../snapshotter/kernel/mountinfo.ts'
import { PAUSE_IMAGE } from '../support/containerd.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode, onceServed, Publisher } from '../support/lazy-node.ts'
import { makeTar } from '../support/make-tar.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

const IPDR = join(import.meta.dirname, '../../agent/cli/bin/ipdr')
const content = randomContent(seeded(1), 3_000_000)

/** What a reboot takes: every process, every mount, and all of /run. */
async function reboot(node: LazyNode): Promise<void> {
  const { agent, containerd } = node
  const record = readFileSync(join(agent.runDir, 'fuse-keeper.json'), 'utf8')
  const { pid } = JSON.parse(record) as { pid: number }
  await agent.stop('SIGKILL')
  process.kill(pid, 'SIGKILL')
  for (const { target } of listMounts(agent.root)) umount(target, MNT_DETACH | UMOUNT_NOFOLLOW)
  for (const { target } of listMounts(agent.runDir)) umount(target, MNT_DETACH | UMOUNT_NOFOLLOW)
  rmSync(agent.runDir, { recursive: true })
  await agent.start()
  await containerd.restart('SIGKILL')
}

test('after a reboot, with no network at all, an image starts that was complete', async () => {
  const opened = new AsyncDisposableStack()
  onTestFinished(() => opened.disposeAsync())
  const scratch = opened.use(Scratch.open('reboot'))
  const publisher = await Publisher.start(scratch)
  const layer = await packLayer(
    Readable.from([makeTar(...busyboxFiles('sleep', 'sha256sum'), { name: 'file', content })]),
    'gzip',
    join(scratch.dir, 'layers'),
  )
  const layout = writeOciLayout(join(scratch.dir, 'layout'), {
    layers: [layer],
    process: { Env: ['PATH=/bin'] },
  })
  const image = `ipdr.internal/${await publisher.push(layout)}`
  const node = opened.use(await LazyNode.start('reboot', { publisher }))
  await node.cri.pullImage(image)
  await runCommand(IPDR, ['pull', '--all', image, '--agent', node.agent.adminSocket])
  await publisher[Symbol.asyncDispose]()
  await reboot(node)
  for (const each of [image, PAUSE_IMAGE]) {
    await vi.waitFor(async () => expect(await node.cri.imageStatus(each)).toBeDefined(), 60_000)
  }
  await using container = await onceServed(() => node.startContainer(image, ['sleep', 'infinity']))
  const read = await node.cri.execSync(container.id, ['sha256sum', '/file'])
  expect(read.stdout).toContain(hash('sha256', content))
  // And its disk has all of it as it was written.
  const check = ['cache', 'check', '--agent', node.agent.adminSocket, '--output', 'json']
  expect(JSON.parse(await runCommand(IPDR, check))).toMatchObject({ healed: 0, damaged: 0 })
}, 180_000)
