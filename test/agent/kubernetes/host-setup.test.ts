import { mkdirSync, readdirSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { parse } from 'smol-toml'
import { expect, onTestFinished, test } from 'vitest'
import { parseConfig } from '../../../agent/config.ts'
import { type HostProfile, writeHostFiles } from '../../../agent/kubernetes/host-setup.ts'
import { type ContainerdVersion, containerdPath } from '../../support/containerd-programs.ts'
import { runCommand } from '../../support/run-command.ts'
import { Scratch } from '../../support/scratch.ts'

const config = parseConfig({
  root: '/data/ipdr',
  runDir: '/run/other',
  registry: { listen: '127.0.0.1:6000' },
})

type Node = {
  readonly scratch: Scratch
  readonly dir: string
  readonly setUp: (profile: HostProfile) => readonly string[]
}

/** A node whose /etc/containerd has this in config.toml, below the import of our drop-in. */
function nodeWith(toml: string): Node {
  const scratch = Scratch.open('host-setup')
  onTestFinished(() => scratch[Symbol.asyncDispose]())
  const dir = join(scratch.dir, 'containerd')
  mkdirSync(dir)
  writeFileSync(
    join(dir, 'config.toml'),
    toml.replace('IMPORTS', `imports = ["${dir}/conf.d/*.toml"]`),
  )
  const setUp: Node['setUp'] = (profile) =>
    writeHostFiles(config, { containerdDir: dir, profile }).changed
  return { scratch, dir, setUp }
}

const filesBelow = (dir: string): string[] =>
  readdirSync(dir, { recursive: true, encoding: 'utf8' })
    .filter((path) => statSync(join(dir, path)).isFile())
    .toSorted()

const DROP_IN = 'conf.d/ipdr-agent.toml'
const HOSTS = 'certs.d/ipdr.internal/hosts.toml'

test.each([3, 4])(
  'containerd with a configuration of version %i gets a drop-in and a hosts.toml for this agent, once',
  (version) => {
    const { dir, setUp } = nodeWith(`version = ${version}\nIMPORTS\n`)
    expect(setUp('runtime-class')).toEqual([join(dir, DROP_IN), join(dir, HOSTS)])
    expect(filesBelow(dir)).toEqual([HOSTS, DROP_IN, 'config.toml'])
    expect(readFileSync(join(dir, HOSTS), 'utf8')).toContain('server = "http://127.0.0.1:6000"')
    expect(parse(readFileSync(join(dir, DROP_IN), 'utf8'))).toMatchObject({
      proxy_plugins: {
        ipdr: { address: '/run/other/snapshotter.sock', exports: { root: '/data/ipdr' } },
      },
      plugins: {
        'io.containerd.cri.v1.images': { registry: { config_path: join(dir, 'certs.d') } },
      },
    })
    expect(setUp('runtime-class')).toEqual([])
    expect(setUp('whole-node')).toEqual([join(dir, DROP_IN)])
  },
)

test('what an attempt wrote that ended before containerd was restarted is known by its age', () => {
  const { dir } = nodeWith('version = 3\nIMPORTS\n')
  const setUp = (profile: HostProfile): number =>
    writeHostFiles(config, { containerdDir: dir, profile }).changedMs
  const firstMs = setUp('runtime-class')
  const aged = new Date(firstMs - 60_000)
  for (const name of [DROP_IN, HOSTS]) utimesSync(join(dir, name), aged, aged)
  expect(setUp('runtime-class')).toBe(aged.getTime())
  expect(setUp('whole-node')).toBeGreaterThanOrEqual(firstMs)
})

test.each<[ContainerdVersion, string]>([
  [
    '1.7',
    'version = 2\nIMPORTS\n[plugins."io.containerd.gc.v1.scheduler"]\n  pause_threshold = 0.07',
  ],
  [
    '2',
    'version = 3\nIMPORTS\n[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.mine]\n  runtime_type = "io.containerd.runc.v2"',
  ],
])(
  'containerd %s takes the drop-in, and keeps what its operator has set',
  async (version, toml) => {
    const { scratch, dir, setUp } = nodeWith(toml)
    setUp('runtime-class')
    const words = ['--config', join(dir, 'config.toml'), 'config', 'dump']
    const env = { PATH: await containerdPath(version, scratch) }
    const dumped = await runCommand('containerd', words, { env })
    expect(dumped).toMatch(/runtimes\.ipdr\]/)
    expect(dumped).toMatch(/address = ["']\/run\/other\/snapshotter\.sock["']/)
    expect(dumped).toMatch(version === '2' ? /runtimes\.mine\]/ : /pause_threshold = 0\.07/)
  },
  120_000,
)

test.each([
  ['IMPORTS', 'is not of version 2, 3 or 4'],
  ['version = 3', 'does not read'],
  [
    'version = 3\nIMPORTS\n[plugins."io.containerd.cri.v1.images".registry]\n  config_path = "/etc/mine"',
    'sets plugins.io.containerd.cri.v1.images.registry.config_path',
  ],
  [
    'version = 3\nIMPORTS\n[[plugins."io.containerd.transfer.v1.local".unpack_config]]\n  platform = "linux"',
    'sets plugins.io.containerd.transfer.v1.local.unpack_config',
  ],
  [
    'version = 3\nIMPORTS\n[proxy_plugins.ipdr]\n  address = "/run/x.sock"',
    'sets proxy_plugins.ipdr.address',
  ],
  // containerd 1 would forget every setting of it: seen in what 1.6 and 1.7 dump.
  [
    'version = 2\nIMPORTS\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "mine"',
    'sets plugins."io.containerd.grpc.v1.cri"',
  ],
])(
  'where a setting of the operator would be lost, or ours not be read, nothing is written: %#',
  (toml, why) => {
    const { dir, setUp } = nodeWith(toml)
    expect(() => setUp('runtime-class')).toThrow(why)
    expect(filesBelow(dir)).toEqual(['config.toml'])
  },
)

test('a hosts.toml that somebody else wrote stays, and nothing else is written', () => {
  const { dir, setUp } = nodeWith('version = 3\nIMPORTS\n')
  mkdirSync(join(dir, 'certs.d/ipdr.internal'), { recursive: true })
  writeFileSync(join(dir, HOSTS), 'server = "http://mine"\n')
  expect(() => setUp('whole-node')).toThrow('hosts.toml is not ours')
  expect(filesBelow(dir)).toEqual([HOSTS, 'config.toml'])
  expect(readFileSync(join(dir, HOSTS), 'utf8')).toBe('server = "http://mine"\n')
})

test('a node without a config.toml is told how to get one', () => {
  const { dir } = nodeWith('')
  const containerdDir = join(dir, 'none')
  expect(() => writeHostFiles(config, { containerdDir, profile: 'whole-node' })).toThrow(
    "write 'containerd config default' to it",
  )
})
