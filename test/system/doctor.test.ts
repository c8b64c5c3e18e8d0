import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { CheckedFinding } from '../../agent/cli/doctor/examine-node.ts'
import { freePort } from '../support/agent.ts'
import { makeCertificates } from '../support/cluster-certificates.ts'
import { Containerd, RUNTIME_CLASS, writeHostsFile } from '../support/containerd.ts'
import { LazyNode, Publisher } from '../support/lazy-node.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'

// What `ipdr doctor` says of nodes on which one thing is wrong.

const IPDR = join(import.meta.dirname, '../../agent/cli/bin/ipdr')

type Report = { readonly exitCode: number; readonly findings: readonly CheckedFinding[] }

/** Runs it with these words. */
function doctor(words: readonly string[]): Report {
  const { status, stdout } = spawnSync(IPDR, ['doctor', ...words, '--output', 'json'])
  const { findings } = JSON.parse(stdout.toString()) as Omit<Report, 'exitCode'>
  return { exitCode: status ?? -1, findings }
}

/** Runs it on a node; `change` of its configuration is what doctor reads, not what the agent was started with. */
function examine(node: LazyNode, change: object = {}, words: readonly string[] = []): Report {
  const config = JSON.parse(readFileSync(node.agent.configPath, 'utf8')) as object
  const path = join(node.scratch.dir, 'examined.json')
  writeFileSync(path, JSON.stringify({ ...config, ...change }))
  return doctor(['--config', path, '--certs-dir', node.certsDir, ...words])
}

/** States other than ok and not checked, by check, each with what was found and the advice. */
function wrong({ findings }: Report): Record<string, string> {
  return Object.fromEntries(
    findings.flatMap(({ check, state, found, advice }) =>
      advice === undefined ? [] : [[check, `${state}: ${found} → ${advice}`]],
    ),
  )
}

function of({ findings }: Report, name: string): CheckedFinding | undefined {
  return findings.find(({ check }) => check === name)
}

const opened = new AsyncDisposableStack()
let scratch: Scratch
let publisher: Publisher

beforeAll(async () => {
  scratch = opened.use(Scratch.open('doctor'))
  publisher = opened.use(await Publisher.start(scratch))
})

afterAll(() => opened.disposeAsync())

describe.each(['1.6', '1.7', '2'] as const)('on containerd %s', (version) => {
  let node: LazyNode

  beforeAll(async () => {
    node = await LazyNode.start('doctor', { publisher, version, imageService: true })
  })

  afterAll(() => node[Symbol.asyncDispose]())

  test('a node that is as we ship it has nothing to mend', () => {
    const report = examine(node)
    expect(wrong(report)).toEqual({})
    expect(report.exitCode).toBe(0)
    expect(of(report, 'containerd')?.found).toContain(`containerd ${version}`)
    expect(of(report, 'proxy plugin')?.found).toContain(node.agent.snapshotterSocket)
    expect(of(report, 'default snapshotter')?.found).toContain('all pods')
    expect(of(report, 'hosts.toml')?.found).toContain(node.agent.registryUrl)
    expect(of(report, 'gateway')?.found).toContain(publisher.gatewayUrl)
    expect(of(report, 'image service')?.state).toBe('ok')
  })

  test('a containerd whose plugin leads elsewhere is told from one that leads to the agent', () => {
    const socketPath = '/run/elsewhere/snapshotter.sock'
    const report = examine(node, { snapshotter: { socketPath } })
    expect(wrong(report)['proxy plugin']).toContain(
      `has no snapshotter at ${socketPath}: ipdr leads to ${node.agent.snapshotterSocket}`,
    )
    expect(of(report, 'default snapshotter')?.state).toBe('not checked')
    expect(report.exitCode).toBe(1)
  })

  test('a containerd without the agent is told', async () => {
    await using containerd = await Containerd.start({
      scratch: node.scratch,
      snapshotter: 'overlayfs',
      version,
      name: 'plain',
    })
    const report = examine(node, { containerd: { socketPath: containerd.socketPath } })
    expect(wrong(report)['proxy plugin']).toContain('node-image/containerd')
    expect(report.exitCode).toBe(1)
  })
})

test.each(['1.6', '1.7', '2'] as const)(
  'a containerd %s whose content store is not the one that the agent serves',
  async (version) => {
    const options = { publisher, version, contentProxy: true }
    await using node = await LazyNode.start('doctor-content', options)
    const sound = examine(node)
    expect(of(sound, 'content store')?.found).toContain(node.agent.contentSocket)
    expect(wrong(sound)).toEqual({})
    const unserved = wrong(examine(node, { content: undefined }))
    expect(unserved['content store']).toMatch(/leads to .* serves none → Set `content`/)
    const elsewhere = wrong(examine(node, { content: { socketPath: '/run/elsewhere.sock' } }))
    expect(elsewhere['content store']).toContain('Have the plugin lead to /run/elsewhere.sock')
    node.containerd.useContentStore(undefined)
    await node.containerd.restart()
    expect(wrong(examine(node))['content store']).toContain('content-proxy.toml')
    expect(of(examine(node, { content: undefined }), 'content store')?.state).toBe('ok')
  },
)

test('a containerd with two content stores', async () => {
  await using node = await LazyNode.start('doctor-content', { publisher, contentProxy: true })
  await using containerd = await Containerd.start({
    scratch: node.scratch,
    snapshotter: 'overlayfs',
    contentSocket: node.agent.contentSocket,
    name: 'both',
    editConfig: (toml) => toml.replace(/^disabled_plugins.*/m, ''),
  })
  const report = examine(node, { containerd: { socketPath: containerd.socketPath } })
  expect(wrong(report)['content store']).toContain('disabled_plugins')
})

test.each([
  ['1.6', 'disable_snapshot_annotations = false', 'disable_snapshot_annotations = true'],
  ['1.7', 'disable_snapshot_annotations = false', 'disable_snapshot_annotations = true'],
  ['2', 'enable_remote_snapshot_annotations = "true"', ''],
] as const)(
  'a containerd %s that does not tell images apart, or looks for no hosts.toml',
  async (version, line, instead) => {
    await using node = await LazyNode.start('doctor-config', { publisher, version })
    await using containerd = await Containerd.start({
      scratch: node.scratch,
      snapshotter: {
        name: 'ipdr',
        socketPath: node.agent.snapshotterSocket,
        root: node.agent.root,
      },
      version,
      name: 'edited',
      editConfig: (toml) => toml.replace(line, instead).replace(/config_path = .*/, ''),
    })
    const report = examine(node, { containerd: { socketPath: containerd.socketPath } })
    const found = wrong(report)
    expect(found['annotations']).toMatch(/^warning: .* downloaded whole/)
    // 2 does not tell where it looks.
    expect(found['hosts.toml']?.includes('config_path') ?? false).toBe(version !== '2')
  },
)

test.each(['1.7', '2'] as const)(
  'on containerd %s a node that gives pods of a runtime class to the agent is fine, and told as such',
  async (version) => {
    await using node = await LazyNode.start('doctor-class', {
      publisher,
      version,
      isPerRuntime: true,
    })
    const report = examine(node)
    expect(wrong(report)).toEqual({})
    expect(of(report, 'default snapshotter')?.found).toContain(`handler ${RUNTIME_CLASS}`)
  },
)

describe('of a node on which one thing is wrong', () => {
  let node: LazyNode

  beforeAll(async () => {
    node = await LazyNode.start('doctor-wrong', { publisher })
  })

  afterAll(() => node[Symbol.asyncDispose]())

  test('a gateway that nobody answers for', async () => {
    const dead = `http://127.0.0.1:${await freePort()}`
    const report = examine(node, { ipfs: { gateways: [publisher.gatewayUrl, dead] } })
    expect(Object.keys(wrong(report))).toEqual(['gateway'])
    expect(wrong(report)['gateway']).toContain(dead)
  })

  test('a gateway that takes calls and never answers, by a deadline', async () => {
    const server = createServer(() => undefined).listen(0, '127.0.0.1')
    await once(server, 'listening')
    const address = server.address()
    const port = typeof address === 'object' ? address?.port : undefined
    const report = examine(node, { ipfs: { gateways: [`http://127.0.0.1:${port}`] } }, [
      '--timeout',
      '4',
    ])
    server.close()
    expect(wrong(report)['gateway']).toMatch(/^failure: there was no answer in 4 s/)
  })

  test.each(['0', '-1', 'soon', '3601'])('a deadline of %s seconds is refused', (seconds) => {
    const words = ['doctor', '--timeout', seconds]
    const { status, stderr } = spawnSync(IPDR, words, { encoding: 'utf8' })
    expect({ status, stderr }).toMatchObject({
      status: 2,
      stderr: expect.stringMatching(/timeout/),
    })
  })

  test('no gateway and no peer at all', () => {
    expect(wrong(examine(node, { ipfs: {} }))['sources']).toContain('no image can be read')
  })

  test('a peer that cannot be dialled', async () => {
    const peer = `/ip4/127.0.0.1/tcp/${await freePort()}/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5`
    const report = examine(node, { ipfs: { gateways: [publisher.gatewayUrl], peers: [peer] } })
    expect(wrong(report)['peers']).toContain(`1 of 1 cannot be dialled: ${peer}`)
  })

  test('a hosts.toml that is missing, is no TOML, leads elsewhere, may not resolve, or falls back on a real host', () => {
    const { registryUrl } = node.agent
    const path = join(node.certsDir, 'ipdr.internal/hosts.toml')
    const said = (text: string | undefined): string | undefined => {
      if (text === undefined) rmSync(path)
      else writeFileSync(path, text)
      return wrong(examine(node))['hosts.toml']
    }
    expect(said(undefined)).toContain(`failure: there is no ${path}`)
    expect(said('server = ')).toContain('is not TOML')
    expect(said('server = "http://127.0.0.1:1"\n')).toContain(
      `leads to http://127.0.0.1:1, and the agent is at ${registryUrl}`,
    )
    const host = `[host."${registryUrl}"]\n`
    expect(said(`server = "${registryUrl}"\n${host}capabilities = ["pull"]\n`)).toContain(
      'only pull',
    )
    expect(said(host)).toContain('warning')
    writeHostsFile(node.certsDir, 'ipdr.internal', registryUrl)
    expect(wrong(examine(node))).toEqual({})
  })

  test('a store that may grow larger than its disk', () => {
    const report = examine(node, { store: { bytesMax: 2 ** 50 } })
    expect(wrong(report)['space']).toMatch(
      /^warning: .*disk is full before.* → Set `store.bytesMax` to \d+/,
    )
    expect(report.exitCode).toBe(0)
  })

  test('a root on a file system that EROFS does not mount from', () => {
    expect(wrong(examine(node, { root: '/dev/shm/ipdr' }))['file system']).toContain('on tmpfs')
  })

  test('private keys that others may read', () => {
    const keysDir = join(node.scratch.dir, 'keys')
    mkdirSync(keysDir, { recursive: true })
    writeFileSync(join(keysDir, 'a.pem'), 'secret')
    chmodSync(join(keysDir, 'a.pem'), 0o644)
    const report = examine(node, { decryption: { keysDir } })
    expect(wrong(report)['private keys']).toContain('chmod 600')
    expect(wrong(report)['container hook']).toContain('runtime runc start unchecked')
  })

  test('a trust policy whose key is gone', () => {
    const policies = [{ name: 'ours', keys: ['/nonexistent/key.pub'] }]
    expect(wrong(examine(node, { trust: { policies } }))['trust policies']).toContain(
      '/nonexistent/key.pub',
    )
  })

  test('a cluster certificate that ends soon, and a peer that does not answer', async () => {
    const { node: tls } = await makeCertificates(join(node.scratch.dir, 'tls'), ['node'])
    const peer = `https://127.0.0.1:${await freePort()}`
    const report = examine(node, { cluster: { tls, peers: [peer] } })
    expect(wrong(report)['cluster certificate']).toContain('warning')
    expect(wrong(report)['cluster peer']).toContain(`warning: ${peer} cannot be asked`)
    expect(report.exitCode).toBe(0)
  })

  test('credentials of registries that are no docker configuration', () => {
    const path = join(node.scratch.dir, 'docker.json')
    writeFileSync(path, '{')
    const registries = { credentials: { dockerConfigs: [path] } }
    expect(wrong(examine(node, { registries }))['registry logins']).toContain(path)
  })

  test('a containerd that does not run', () => {
    const report = examine(node, { containerd: { socketPath: '/run/nonexistent.sock' } })
    expect(wrong(report)['containerd']).toContain('connect ENOENT /run/nonexistent.sock')
    expect(of(report, 'annotations')?.state).toBe('not checked')
  })

  test('an agent that does not run: everything else is still looked at', async () => {
    await node.agent.stop()
    const report = examine(node)
    expect(report.exitCode).toBe(1)
    expect(Object.keys(wrong(report))).toEqual([
      'agent',
      'snapshotter socket',
      'registry endpoint',
      'health',
    ])
    expect(of(report, 'kernel')?.state).toBe('ok')
    await node.agent.start()
  })
})

test('a configuration that is wrong ends it with the field that is', async () => {
  const path = join(scratch.dir, 'wrong.json')
  writeFileSync(path, JSON.stringify({ storr: {} }))
  await expect(runCommand(IPDR, ['doctor', '--config', path])).rejects.toThrow(/storr/)
})

test('people get a line a check, advice below it, and a sum', () => {
  const path = join(scratch.dir, 'none.json')
  const runDir = join(scratch.run, 'none')
  writeFileSync(
    path,
    JSON.stringify({ root: scratch.dir, runDir, containerd: { socketPath: `${runDir}/c.sock` } }),
  )
  const { stdout, stderr, status } = spawnSync(IPDR, ['doctor', '--config', path])
  const lines = stdout.toString().split('\n')
  const at = lines.findIndex((line) => line.startsWith('failure      agent  '))
  expect(lines[at + 1]).toMatch(/^ {34}Start it/)
  expect(stdout.toString()).toMatch(/\n\d+ ok, \d+ warnings?, \d+ failures, \d+ not checked\n$/)
  expect(stderr.toString()).toMatch(/^ipdr: \d+ checks failed\n/)
  expect(status).toBe(1)
})
