import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { Publisher } from '../support/lazy-node.ts'
import { makeTar } from '../support/make-tar.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'
import { makeNodeDisk, type NodeDisk } from '../support/virtual-node/node-disk.ts'
import { HOST_ADDRESS, VirtualNode } from '../support/virtual-node/virtual-node.ts'

// Debian 13 with its systemd and containerd, set up as README says, in a machine of its own. The tests go from one to the next.

/** A test may take so long, in ms: three starts of an agent on a machine at a load of 20. */
const deadlineMs = 600_000

/** Files of which each is read once, by a test that does something to the agent meanwhile. */
const unread = new Map(
  ['reload', 'kill', 'stop', 'watchdog', 'group', 'older'].map((name, index) => [
    name,
    randomContent(seeded(70 + index), 2_500_000),
  ]),
)

const keeperRecord = 'cat /run/ipdr-agent/fuse-keeper.json'

const opened = new AsyncDisposableStack()
let scratch: Scratch
let disk: NodeDisk
let node: VirtualNode
let image = ''

beforeAll(async () => {
  scratch = opened.use(Scratch.open('node'))
  const publisher = opened.use(await Publisher.start(scratch))
  const pack = (tar: Buffer): ReturnType<typeof packLayer> =>
    packLayer(Readable.from([tar]), 'gzip', join(scratch.dir, 'layers'))
  // A layer each: of one that is read for the most part, the rest comes unasked.
  const layers = [await pack(makeTar(...busyboxFiles('sleep', 'sha256sum')))]
  for (const [name, content] of unread) layers.push(await pack(makeTar({ name, content })))
  const layout = writeOciLayout(join(scratch.dir, 'layout'), {
    layers,
    process: { Env: ['PATH=/bin'], Cmd: ['sleep', 'infinity'] },
  })
  image = `ipdr.internal/${await publisher.push(layout)}:latest`
  const gateway = `http://${HOST_ADDRESS}:${new URL(publisher.gatewayUrl).port}`
  disk = await makeNodeDisk(scratch, { ipfs: { gateways: [gateway] } }, console.log)
  node = opened.use(await VirtualNode.boot(scratch, disk))
}, 1_200_000)

afterAll(() => opened.disposeAsync(), 120_000)

/** A property of a unit, as systemctl(1) shows it. */
async function shown(property: string, unit = 'ipdr-agent'): Promise<string> {
  return await node.run(`systemctl show --value --property ${property} ${unit}`)
}

/** `systemctl is-active` of a unit is what says that it is ready. */
async function isUp(unit = 'ipdr-agent'): Promise<void> {
  await node.until(`systemctl is-active ${unit}`)
}

/** Has the container read a file of which nothing is here, and waits until that waits for the agent. Looks from inside: from here it takes longer than the read. */
async function startReading(name: string): Promise<void> {
  const read = `ctr -n k8s.io task exec --exec-id ${name} reader /bin/sha256sum /${name}`
  await node.run(`(${read}; echo "exit $?") >/run/${name}.read 2>&1 &
    for look in $(seq 1000); do
      grep -qs '(sha256sum) D' /proc/[0-9]*/stat && exit
      sleep 0.02
    done
    exit 1`)
}

/** What the container has read, once it has. */
async function hasRead(name: string): Promise<void> {
  const read = await node.until(`grep -q ^exit /run/${name}.read && cat /run/${name}.read`)
  const digest = digestOf(unread.get(name) ?? Buffer.of()).slice('sha256:'.length)
  expect(read).toBe(`${digest}  /${name}\nexit 0`)
}

test(
  'the unit has no line that systemd does not know',
  async () => {
    const unit = '/etc/systemd/system/ipdr-agent.service'
    expect(await node.try(`systemd-analyze verify --man=no ${unit}`)).toEqual({
      code: 0,
      output: '',
    })
  },
  deadlineMs,
)

test(
  'the agent is ready before containerd starts, and nothing has failed',
  async () => {
    await isUp()
    await isUp('containerd')
    const ready = Number(await shown('ActiveEnterTimestampMonotonic'))
    const started = Number(await shown('ExecMainStartTimestampMonotonic', 'containerd'))
    expect(ready).toBeGreaterThan(0)
    expect(started).toBeGreaterThan(ready)
    expect(await node.run('systemctl --failed --no-legend --plain')).toBe('')
    expect(await shown('NRestarts')).toBe('0')
  },
  deadlineMs,
)

test(
  'ipdr doctor finds nothing to change',
  async () => {
    const { code, output } = await node.try('ipdr doctor --timeout 300')
    console.log(output)
    expect(code).toBe(0)
    expect(output).toContain('it mounts layers straight from files (erofs-file)')
  },
  deadlineMs,
)

test(
  'an image is pulled by its CID, and a container of it runs before its bytes are here',
  async () => {
    await node.run(`node /opt/ipdr-agent/test/support/virtual-node/guest/pull-image.ts ${image}`)
    await node.run(`ctr -n k8s.io run --detach --snapshotter ipdr ${image} reader`)
    expect(await node.run('ctr -n k8s.io task ls')).toMatch(/reader +\d+ +RUNNING/)
    expect(
      await node.run('ctr -n k8s.io task exec --exec-id first reader /bin/sha256sum /bin/busybox'),
    ).toContain('/bin/busybox')
  },
  deadlineMs,
)

test(
  'udev looks for nothing on the loop devices of layers that are still arriving',
  async () => {
    const devices = await node.run(
      "losetup --noheadings --output NAME,BACK-FILE | sed -n 's,^\\([^ ]*\\) */run/ipdr-agent/files/.*,\\1,p'",
    )
    expect(devices).toMatch(/^\/dev\/loop\d+/)
    for (const device of devices.split('\n')) {
      const properties = await node.run(`udevadm info --query=property --name=${device}`)
      expect(properties).toContain('UDISKS_IGNORE=1')
      expect(properties).toContain('SYSTEMD_READY=0')
      expect(properties).not.toContain('ID_FS_TYPE')
    }
  },
  deadlineMs,
)

test(
  'systemctl reload has the version that its name leads to by then take over, in the same process, and a read that waits is answered',
  async () => {
    const pid = await shown('MainPID')
    await node.run(`
      cp -R /opt/ipdr-agent /opt/ipdr-agent-next
      sed -i 's/"version": "[^"]*"/"version": "9.9.9"/' /opt/ipdr-agent-next/package.json
      ln -sfn /opt/ipdr-agent-next/agent/cli/bin/ipdr-agent /usr/local/bin/ipdr-agent`)
    await startReading('reload')
    // It is `ipdr-agent upgrade`, which fails unless the other version answers.
    await node.run('systemctl reload ipdr-agent')
    await isUp()
    expect(await shown('MainPID')).toBe(pid)
    expect(await node.run('journalctl --unit ipdr-agent --boot --output cat')).toContain(
      `ipdr-agent 9.9.9, pid ${pid}, took the place of `,
    )
    await hasRead('reload')
  },
  deadlineMs,
)

test(
  'systemctl kill of every process loses nothing: systemd hands the connection to the next agent, and reads go on',
  async () => {
    expect(await shown('NFileDescriptorStore')).toBe('1')
    const keeper = await node.run(keeperRecord)
    await startReading('kill')
    await node.run('systemctl kill --signal KILL --kill-whom all ipdr-agent')
    await isUp()
    await hasRead('kill')
    expect(await node.run(keeperRecord)).not.toBe(keeper)
    expect(await shown('NFileDescriptorStore')).toBe('1')
    const log = await node.run('journalctl --unit ipdr-agent --boot --output cat')
    expect(log).toContain('took the FUSE connection back from the service manager')
    expect(log).not.toContain('mended a mount')
  },
  deadlineMs,
)

test(
  'what systemd stores outlives a stop: a keeper that is killed meanwhile is not missed',
  async () => {
    await startReading('stop')
    await node.run('systemctl stop ipdr-agent')
    expect(await shown('NFileDescriptorStore')).toBe('1')
    await node.run(
      'kill -KILL $(sed \'s/.*"pid":\\([0-9]*\\).*/\\1/\' /run/ipdr-agent/fuse-keeper.json)',
    )
    await node.run('systemctl start ipdr-agent')
    await hasRead('stop')
  },
  deadlineMs,
)

test(
  'a supervisor that hangs is ended by the watchdog and started again, and readers do not notice',
  async () => {
    const restarts = Number(await shown('NRestarts'))
    await node.run('kill -STOP $(systemctl show --value --property MainPID ipdr-agent)')
    await startReading('watchdog').catch(() => undefined)
    await node.until(
      `[ "$(systemctl show --value --property NRestarts ipdr-agent)" -gt ${restarts} ]`,
      240_000,
    )
    await isUp()
    await hasRead('watchdog')
    const log = await node.run('journalctl --unit ipdr-agent --boot --output cat')
    expect(log).toContain('Watchdog timeout')
  },
  deadlineMs,
)

test(
  'six deaths in a row do not make systemd give up, and a keeper with a control group of its own is in it from then on',
  async () => {
    const restarts = Number(await shown('NRestarts'))
    await node.run(
      `sed -i 's,^{,{"fuseKeeper":{"controlGroup":"/ipdr-fuse-keeper"}\\,,' /etc/ipdr-agent/config.json`,
    )
    await node.run(
      `for death in 1 2 3 4 5 6; do
         pid=0
         while [ "$pid" = 0 ]; do pid=$(systemctl show --value --property MainPID ipdr-agent); sleep 0.1; done
         systemctl kill --signal KILL --kill-whom all ipdr-agent
         while [ -e "/proc/$pid" ]; do sleep 0.1; done
       done`,
    )
    await isUp()
    expect(Number(await shown('NRestarts'))).toBe(restarts + 6)
    const pid = (JSON.parse(await node.run(keeperRecord)) as { pid: number }).pid
    expect(await node.run(`cat /proc/${pid}/cgroup`)).toBe('0::/ipdr-fuse-keeper')
  },
  deadlineMs,
)

test(
  'that keeper does not die with the unit',
  async () => {
    const keeper = await node.run(keeperRecord)
    await startReading('group')
    await node.run('systemctl kill --signal KILL --kill-whom all ipdr-agent')
    await isUp()
    expect(await node.run(keeperRecord)).toBe(keeper)
    await hasRead('group')
  },
  deadlineMs,
)

test(
  'after a reboot without a network an image that is here whole starts again',
  async () => {
    await node.run(`ipdr pull --all ${image}`)
    await node.run('rm /etc/systemd/network/50-virtual.network')
    await node.reboot()
    await isUp()
    await isUp('containerd')
    expect(await node.run('ip -oneline address show scope global')).toBe('')
    await node.run(
      `ctr -n k8s.io container rm reader; ctr -n k8s.io run --detach --snapshotter ipdr ${image} reader`,
    )
    await node.run(
      'ctr -n k8s.io task exec --exec-id older reader /bin/sha256sum /older >/run/older.read; echo "exit $?" >>/run/older.read',
    )
    await hasRead('older')
    expect(await node.run('systemctl --failed --no-legend --plain')).toBe('')
  },
  deadlineMs,
)

test(
  'host-setup in a container with the rights that our page names writes the drop-in and has systemd restart containerd',
  async () => {
    // A node that is set up for drop-ins, as it wants.
    await node.run(`
    printf 'version = 2\\nimports = ["/etc/containerd/conf.d/*.toml"]\\n' >/etc/containerd/config.toml
    rm -r /etc/containerd/certs.d
    systemctl restart containerd
    mkdir -p /run/agent-image && mount --bind / /run/agent-image`)
    const before = await shown('MainPID', 'containerd')
    const setUp = [
      'ctr run --rm --privileged --with-ns pid:/proc/1/ns/pid --rootfs',
      '--mount type=bind,src=/etc/containerd,dst=/etc/containerd,options=rbind:rw',
      '/run/agent-image host-setup',
      '/usr/bin/setpriv --bounding-set=-all,+sys_chroot,+sys_ptrace --inh-caps=-all',
      '/usr/local/bin/ipdr-agent host-setup --containerd-dir /etc/containerd --profile runtime-class --restart-containerd',
    ].join(' ')
    // It loses containerd, which is restarted under it.
    await node.try(setUp)
    await isUp('containerd')
    expect(await shown('MainPID', 'containerd')).not.toBe(before)
    expect(await node.run('ctr plugins ls')).toMatch(/snapshotter\.v1 +ipdr +\S+ +ok/)
    expect(await node.run('ctr -n k8s.io task ls')).toMatch(/reader +\d+ +RUNNING/)
    await node.run('ctr task rm --force host-setup; ctr container rm host-setup')
    expect(await node.run(setUp)).toContain('containerd has what it needs')
  },
  deadlineMs,
)
