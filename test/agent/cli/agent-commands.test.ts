import { writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { CodedError } from '../../../snapshotter/errors.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { type AgentMethods, FakeAgent } from './support/fake-agent.ts'
import { type Ended, ended, runIpdr, startIpdr } from './support/run-ipdr.ts'
import { scratchDir } from './support/scratch-dir.ts'

const CID = 'bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi'
const [DIGEST_A, DIGEST_B] = [digestOf(Buffer.from('a')), digestOf(Buffer.from('b'))]
const MIB = 1024 * 1024

async function runWith(methods: Partial<AgentMethods>, words: readonly string[]): Promise<Ended> {
  await using agent = await FakeAgent.start(methods)
  return await runIpdr([...words, '--agent', agent.socketPath])
}

function json(text: string): unknown {
  return JSON.parse(text)
}

const STATUS = {
  version: '0.1.0',
  pid: 4711,
  startedAt: { seconds: '1750000000', nanos: 500_000_000 },
  rung: 'EROFS on FUSE',
  rungReason: 'Linux 6.18 has it all',
  peerId: '12D3KooWTest',
  addresses: ['/ip4/10.0.0.7/tcp/4001'],
  mounts: [
    {
      target: '/var/lib/ipdr-agent/m/1',
      kind: 'MOUNT_KIND_FUSE' as const,
      layerDigest: DIGEST_A,
      layers: 1,
    },
    {
      target: '/var/lib/ipdr-agent/m/2',
      kind: 'MOUNT_KIND_MERGED' as const,
      layerDigest: DIGEST_B,
      layers: 30,
    },
  ],
  missesTotal: 1234,
  missP50Ms: 12.4,
  missP99Ms: 310,
  bytesBySource: [{ source: 'gateway', bytes: 300 * MIB }],
  sentToClusterBytes: 70 * MIB,
  servedFromCacheBytes: 5 * MIB,
  queueDepths: [
    { priority: 'foreground', waiting: 0 },
    { priority: 'background', waiting: 12 },
  ],
  verificationFailures: 2,
  storeBytes: 10 * MIB,
  storeLimitBytes: 1024 * MIB,
  prefetchedBytes: 40 * MIB,
  prefetchedUsedBytes: 30 * MIB,
}

describe('status', () => {
  test('tells a person the rung, the mounts, the misses, the sources and the store', async () => {
    const { exitCode, stdout, stderr } = await runWith({ Status: async () => STATUS }, [
      'status',
      '--mounts',
    ])
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
    expect(stdout).toContain('EROFS on FUSE (Linux 6.18 has it all)')
    expect(stdout).toContain('2 mounts: 1 lazy, 1 merged')
    expect(stdout).toContain('1,234; they waited 12 ms (p50), 310 ms (p99)')
    expect(stdout).toContain('300 MiB by gateway')
    expect(stdout).toContain('70.0 MiB to other nodes of the cluster')
    expect(stdout).toContain('10.0 MiB of 1.0 GiB')
    expect(stdout).toContain('40.0 MiB, 30.0 MiB of them read since')
    expect(stdout).toContain('2 failed verification')
    expect(stdout).toMatch(/^merged +30 +sha256:[0-9a-f]{12} +\/var\/lib\/ipdr-agent\/m\/2$/m)
  })

  test('is one JSON document with sizes in bytes', async () => {
    const { stdout, stderr } = await runWith({ Status: async () => STATUS }, [
      'status',
      '-o',
      'json',
    ])
    expect(stderr).toBe('')
    expect(json(stdout)).toMatchObject({
      startedAt: '2025-06-15T15:06:40.500Z',
      misses: { total: 1234, p50Ms: 12.4, p99Ms: 310 },
      fetchedBytes: { gateway: 300 * MIB },
      sentToClusterBytes: 70 * MIB,
      queued: { foreground: 0, background: 12 },
      mounts: [{ kind: 'lazy' }, { kind: 'merged', layers: 30 }],
      storeLimitBytes: 1024 * MIB,
    })
  })

  test('--watch prints a document a line until it is interrupted, which is success', async () => {
    let asked = 0
    await using agent = await FakeAgent.start({
      Status: async () => ({ ...STATUS, missesTotal: ++asked }),
    })
    const words = [
      'status',
      '--watch',
      '--interval',
      '0.1',
      '-o',
      'json',
      '--agent',
      agent.socketPath,
    ]
    const child = startIpdr(words)
    child.stdout.on('data', () => {
      if (asked >= 3) child.kill('SIGINT')
    })
    const { exitCode, stdout } = await ended(child)
    expect(exitCode).toBe(0)
    const totals = stdout
      .trim()
      .split('\n')
      .map((line) => (json(line) as typeof STATUS & { misses: { total: number } }).misses.total)
    expect(totals.slice(0, 3)).toEqual([1, 2, 3])
  })

  test('takes the socket from IPDR_AGENT, and --agent over it', async () => {
    await using agent = await FakeAgent.start({ Status: async () => STATUS })
    const fromEnv = await runIpdr(['status'], { env: { IPDR_AGENT: agent.socketPath } })
    expect(fromEnv.exitCode).toBe(0)
    const over = await runIpdr(['status', '--agent', '/nowhere'], {
      env: { IPDR_AGENT: agent.socketPath },
    })
    expect(over.exitCode).toBe(69)
  })
})

describe('an agent that cannot be asked', () => {
  test('is exit code 69 with what to do, when its socket is not there', async () => {
    const { exitCode, stdout, stderr } = await runIpdr(['status', '--agent', '/nowhere/admin.sock'])
    expect({ exitCode, stdout }).toEqual({ exitCode: 69, stdout: '' })
    expect(stderr).toBe(
      'ipdr: the agent cannot be reached at /nowhere/admin.sock: there is no such socket\n' +
        'Start it (systemctl start ipdr-agent), or name its socket with --agent.\n',
    )
  })

  test('is exit code 69 when nobody listens on the socket that it left', async () => {
    const path = join(await scratchDir(), 'admin.sock')
    await writeFile(path, '')
    const { exitCode, stderr } = await runIpdr(['cache', 'ls', '--agent', path])
    expect(exitCode).toBe(69)
    expect(stderr).toContain('nobody listens there')
  })

  test('is a failure in one sentence when it speaks something else', async () => {
    const path = join(await scratchDir(), 'admin.sock')
    const server = createServer((socket) => {
      socket.on('error', () => undefined)
      socket.end('220 mail.example ESMTP\r\n')
    })
    await new Promise<void>((resolve) => server.listen(path, resolve))
    onTestFinished(() => void server.close())
    const { exitCode, stderr } = await runIpdr(['status', '--agent', path])
    expect(exitCode).toBe(69)
    expect(stderr.trim().split('\n')).toHaveLength(1)
  })

  test('is a usage error when its path is longer than the kernel takes', async () => {
    const { exitCode, stderr } = await runIpdr(['status', '--agent', `/${'x'.repeat(107)}`])
    expect(exitCode).toBe(2)
    expect(stderr).toContain('107 bytes')
  })
})

test.each([
  { code: 'NOT_FOUND', exitCode: 66 },
  { code: 'UNAVAILABLE', exitCode: 69 },
  { code: 'DATA_LOSS', exitCode: 76 },
  { code: 'DEADLINE_EXCEEDED', exitCode: 75 },
  { code: 'PERMISSION_DENIED', exitCode: 77 },
  { code: 'INVALID_ARGUMENT', exitCode: 65 },
  { code: 'FAILED_PRECONDITION', exitCode: 1 },
  { code: 'UNIMPLEMENTED', exitCode: 1 },
] as const)(
  '$code from the agent is exit code $exitCode and its sentence',
  async ({ code, exitCode }) => {
    const Status = async () => {
      throw new CodedError(code, 'the layer went away\u001b[31m\nand more')
    }
    const result = await runWith({ Status }, ['status'])
    expect(result).toEqual({
      exitCode,
      stdout: '',
      stderr: 'ipdr: the layer went away [31m and more\n',
    })
  },
)

const LAYERS = [
  {
    digest: DIGEST_A,
    cid: CID,
    diffId: DIGEST_B,
    mediaType: 'application/vnd.oci.image.layer.v1.tar+zstd',
    format: 'tar+zstd',
    layerSize: 20 * MIB,
    blobSize: 8 * MIB,
    presentBytes: 2 * MIB,
    mounted: true,
    lazilyReadable: true,
  },
  {
    digest: DIGEST_B,
    format: 'tar+gzip',
    layerSize: 4 * MIB,
    blobSize: MIB,
    presentBytes: 4 * MIB,
    complete: true,
    whyNot: 'it is gzip without a table of contents',
  },
]

describe('cache ls', () => {
  test('lists layers, largest part on this node first, and why one is not lazy', async () => {
    const { stdout } = await runWith({ ListLayers: async () => ({ layers: LAYERS }) }, [
      'cache',
      'ls',
    ])
    const lines = stdout.trimEnd().split('\n')
    expect(lines[0]).toMatch(/^LAYER +FORMAT +ON THIS NODE +STATE +LAST USED +LAZY$/)
    expect(lines[1]).toMatch(
      /tar\+gzip +4\.0 MiB of 4\.0 MiB +complete +never +no: it is gzip without/,
    )
    expect(lines[2]).toMatch(/tar\+zstd +2\.0 MiB of 20\.0 MiB +mounted +never +yes$/)
    expect(lines[3]).toBe('2 layers, 1 mounted, 6.0 MiB on this node')
  })

  test('is one JSON document', async () => {
    const { stdout } = await runWith({ ListLayers: async () => ({ layers: LAYERS }) }, [
      'cache',
      'ls',
      '-o',
      'json',
    ])
    expect(json(stdout)).toMatchObject({
      layers: [
        {
          digest: DIGEST_B,
          lazilyReadable: false,
          whyNot: 'it is gzip without a table of contents',
          lastUsedAt: null,
        },
        {
          digest: DIGEST_A,
          presentBytes: 2 * MIB,
          layerBytes: 20 * MIB,
          blobBytes: 8 * MIB,
          whyNot: null,
        },
      ],
    })
  })

  test('--images lists images', async () => {
    const image = { rootCid: CID, manifestDigest: DIGEST_A, layers: [DIGEST_B], size: 8 * MIB }
    const { stdout } = await runWith({ ListImages: async () => ({ images: [image] }) }, [
      'cache',
      'ls',
      '--images',
    ])
    expect(stdout).toContain(CID)
    expect(stdout).toContain('8.0 MiB')
  })

  test('says so when there is nothing', async () => {
    const { stdout } = await runWith({ ListLayers: async () => ({}) }, ['cache', 'ls'])
    expect(stdout).toBe('This node keeps no layers.\n')
  })
})

describe('cache gc', () => {
  test.each([
    { words: [], targetBytes: '0' },
    { words: ['--keep', '10GiB'], targetBytes: String(10 * 1024 ** 3) },
    { words: ['--keep', '500MB'], targetBytes: '500000000' },
  ])('$words asks for a store of $targetBytes bytes', async ({ words, targetBytes }) => {
    let asked: string | undefined
    const CollectGarbage: AgentMethods['CollectGarbage'] = async (request) => {
      asked = request.targetBytes
      return { freedBytes: 3 * MIB, removedLayers: 2 }
    }
    const { stdout } = await runWith({ CollectGarbage }, ['cache', 'gc', ...words])
    expect(asked).toBe(targetBytes)
    expect(stdout).toBe('Freed 3.0 MiB of 2 layers.\n')
  })
})

describe('cache check', () => {
  const ListLayers = async () => ({ layers: LAYERS })

  test('checks all layers, and counts what it found', async () => {
    const asked: string[] = []
    const CheckLayer: AgentMethods['CheckLayer'] = async ({ digest }) => {
      asked.push(digest)
      return { whole: true, healedUnits: digest === DIGEST_B ? 2 : 0, healedTables: false }
    }
    const { stdout, exitCode } = await runWith({ ListLayers, CheckLayer }, ['cache', 'check'])
    expect(asked).toEqual(LAYERS.map(({ digest }) => digest))
    expect({ stdout, exitCode }).toEqual({
      stdout: `Checked ${LAYERS.length} layers: ${LAYERS.length - 1} intact, 1 healed.\n`,
      exitCode: 0,
    })
  })

  test('checks those that are named, and tells what could not be checked', async () => {
    const CheckLayer: AgentMethods['CheckLayer'] = async () => ({
      whole: false,
      healedUnits: 0,
      healedTables: false,
    })
    const words = ['cache', 'check', DIGEST_A.slice(0, 19), '-o', 'json']
    const { stdout } = await runWith({ ListLayers, CheckLayer }, words)
    const layer = {
      digest: DIGEST_A,
      state: 'incomplete',
      healedUnits: 0,
      healedTables: false,
      error: null,
    }
    expect(json(stdout)).toEqual({
      layers: [layer],
      intact: 0,
      healed: 0,
      incomplete: 1,
      damaged: 0,
    })
  })

  test('goes on after a layer that cannot be healed, and fails', async () => {
    const CheckLayer: AgentMethods['CheckLayer'] = async ({ digest }) => {
      if (digest === DIGEST_A) throw new CodedError('DATA_LOSS', 'replace the disk')
      return { whole: true, healedUnits: 0, healedTables: true }
    }
    const { stdout, stderr, exitCode } = await runWith({ ListLayers, CheckLayer }, [
      'cache',
      'check',
      DIGEST_A,
      DIGEST_B,
    ])
    expect(stdout).toBe('Checked 2 layers: 1 healed, 1 damaged.\n')
    expect(stderr).toContain('replace the disk')
    expect(exitCode).toBe(1)
  })

  test('an unknown digest checks nothing', async () => {
    const { exitCode, stderr } = await runWith({ ListLayers }, ['cache', 'check', 'sha256:0000'])
    expect(exitCode).toBe(66)
    expect(stderr).toContain('there is no layer sha256:0000 on this node')
  })
})

describe('cache rm', () => {
  function remembering(): { removed: string[]; methods: Partial<AgentMethods> } {
    const removed: string[] = []
    const RemoveLayer: AgentMethods['RemoveLayer'] = async ({ digest }) => {
      removed.push(digest)
      return { freedBytes: MIB }
    }
    return { removed, methods: { RemoveLayer, ListLayers: async () => ({ layers: LAYERS }) } }
  }

  test('takes shortened digests, with or without the algorithm', async () => {
    const { removed, methods } = remembering()
    const words = ['cache', 'rm', DIGEST_A.slice(0, 19), DIGEST_B.slice(7, 19), '-o', 'json']
    const { stdout } = await runWith(methods, words)
    expect(removed).toEqual([DIGEST_A, DIGEST_B])
    expect(json(stdout)).toEqual({ removed: [DIGEST_A, DIGEST_B], freedBytes: 2 * MIB })
  })

  test('removes nothing if one of them is unknown', async () => {
    const { removed, methods } = remembering()
    const { exitCode, stderr } = await runWith(methods, [
      'cache',
      'rm',
      DIGEST_A,
      'sha256:00000000',
    ])
    expect({ exitCode, removed }).toEqual({ exitCode: 66, removed: [] })
    expect(stderr).toContain('there is no layer sha256:00000000 on this node')
  })

  test('refuses a beginning that several layers have', async () => {
    const { removed, methods } = remembering()
    const { exitCode, stderr } = await runWith(methods, ['cache', 'rm', 'sha256:'])
    expect({ exitCode, removed }).toEqual({ exitCode: 2, removed: [] })
    expect(stderr).toContain('is the beginning of 2 layers')
  })
})

describe('waited', () => {
  const read = (path: string, waitedMs: number, second: number, error = '') => ({
    path,
    layerDigest: DIGEST_A,
    offset: 0,
    length: MIB,
    waitedMs,
    at: { seconds: String(1_750_000_000 + second), nanos: 0 },
    error,
  })
  const WaitedFor: AgentMethods['WaitedFor'] = async () => ({
    reads: [
      read('/lib/b.so', 30, 2),
      read('/bin/a', 10, 1),
      read('/lib/b.so', 40, 3, 'no provider'),
    ],
  })

  test('adds up the reads of a file, in the order of the first wait', async () => {
    const { stdout } = await runWith({ WaitedFor }, ['waited', CID])
    const lines = stdout.trimEnd().split('\n')
    expect(lines[1]).toMatch(/^ *10 ms +10 ms +1 +1\.0 MiB +\/bin\/a$/)
    expect(lines[2]).toMatch(/^ *70 ms +40 ms +2 +2\.0 MiB +\/lib\/b\.so \(1 read failed\)$/)
    expect(lines[3]).toBe('3 reads of 2 files waited 80 ms for 3.0 MiB')
  })

  test('counts the time once in which several reads of a file waited', async () => {
    const reads = [read('/lib/b.so', 1500, 1), read('/lib/b.so', 900, 2), read('/bin/a', 300, 2)]
    const { stdout } = await runWith({ WaitedFor: async () => ({ reads }) }, ['waited', CID])
    const lines = stdout.trimEnd().split('\n')
    expect(lines[1]).toMatch(/^ *1\.9 s +1\.5 s +2 .*\/lib\/b\.so$/)
    expect(lines[3]).toBe('3 reads of 2 files waited 1.9 s for 3.0 MiB')
  })

  test('--sort longest puts the most expensive file first, and --limit counts the rest', async () => {
    const { stdout } = await runWith({ WaitedFor }, ['waited', '--sort', 'longest', '--limit', '1'])
    expect(stdout).toContain('/lib/b.so')
    expect(stdout).not.toContain('/bin/a')
    expect(stdout).toContain('… and 1 more (--limit 0 shows all)')
  })

  test('--reads lists single reads', async () => {
    const { stdout } = await runWith({ WaitedFor }, ['waited', '--reads', '-o', 'json'])
    expect(json(stdout)).toMatchObject({
      image: null,
      reads: 3,
      waitedMs: 80,
      everyRead: [
        { path: '/bin/a', at: '2025-06-15T15:06:41.000Z', error: null },
        { path: '/lib/b.so', waitedMs: 30 },
        { path: '/lib/b.so', waitedMs: 40, error: 'no provider' },
      ],
    })
  })

  test('asks for the image that was named', async () => {
    let subject: string | undefined
    const remember: AgentMethods['WaitedFor'] = async (request) => {
      subject = request.subject
      return {}
    }
    const { stdout } = await runWith({ WaitedFor: remember }, ['waited', `ipdr.internal/${CID}`])
    expect(subject).toBe(`ipdr.internal/${CID}`)
    expect(stdout).toBe('No read had to wait.\n')
  })
})

describe('pull', () => {
  const progress = (layerDigest: string, presentBytes: number, done = false, error = '') => ({
    layerDigest,
    presentBytes,
    totalBytes: 4 * MIB,
    done,
    error,
  })

  test('says how much was fetched once every layer is done', async () => {
    let asked: { reference: string; all: boolean } | undefined
    const Pull: AgentMethods['Pull'] = async function* (request) {
      asked = request
      yield progress(DIGEST_A, MIB)
      yield progress(DIGEST_B, 4 * MIB, true)
      yield progress(DIGEST_A, 4 * MIB, true)
    }
    const { exitCode, stdout, stderr } = await runWith({ Pull }, ['pull', '--all', CID])
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
    expect(asked).toEqual({ reference: CID, all: true })
    expect(stdout).toContain('2 layers ready, 8.0 MiB of 8.0 MiB on this node; fetched 3.0 MiB in')
  })

  test('--progress json puts a line for each update on standard error, and one document on standard output', async () => {
    const Pull: AgentMethods['Pull'] = async function* () {
      yield progress(DIGEST_A, MIB)
      yield progress(DIGEST_A, 4 * MIB, true)
    }
    const { stdout, stderr } = await runWith({ Pull }, [
      'pull',
      CID,
      '-o',
      'json',
      '--progress',
      'json',
    ])
    expect(json(stdout)).toMatchObject({
      fetchedBytes: 3 * MIB,
      layers: [{ digest: DIGEST_A, done: true }],
    })
    expect(stderr.trim().split('\n').map(json)).toMatchObject([
      { doneBytes: MIB, totalBytes: 4 * MIB, step: 'fetching' },
      { doneBytes: 4 * MIB, step: 'done' },
    ])
  })

  test('--quiet says nothing on standard error', async () => {
    const Pull: AgentMethods['Pull'] = async function* () {
      yield progress(DIGEST_A, 4 * MIB, true)
    }
    const { stderr } = await runWith({ Pull }, ['pull', CID, '-q', '--progress', 'json'])
    expect(stderr).toBe('')
  })

  test('fails with the layer and its sentence when one failed, or was not finished', async () => {
    const Pull: AgentMethods['Pull'] = async function* () {
      yield progress(DIGEST_A, MIB, false, 'no provider has block bafy')
      yield progress(DIGEST_B, MIB)
    }
    const { exitCode, stdout, stderr } = await runWith({ Pull }, ['pull', CID])
    expect({ exitCode, stdout }).toEqual({ exitCode: 1, stdout: '' })
    expect(stderr).toContain(`layer ${DIGEST_A}: no provider has block bafy, and 1 more layer`)
  })

  test('is cancelled at the agent by SIGINT, and exits 130', async () => {
    const cancelled = Promise.withResolvers<void>()
    const started = Promise.withResolvers<void>()
    const Pull: AgentMethods['Pull'] = async function* (_request, { signal }) {
      yield progress(DIGEST_A, MIB)
      started.resolve()
      await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()))
      cancelled.resolve()
    }
    await using agent = await FakeAgent.start({ Pull })
    const child = startIpdr(['pull', CID, '--agent', agent.socketPath])
    const end = ended(child)
    await started.promise
    child.kill('SIGINT')
    await cancelled.promise
    expect(await end).toEqual({
      exitCode: 130,
      stdout: '',
      stderr: 'ipdr: stopped by SIGINT before it was done\n',
    })
  })
})

test('a reader of standard output that goes away is exit code 141, and no complaint', async () => {
  let asked = 0
  await using agent = await FakeAgent.start({ Status: async () => ({ ...STATUS, pid: ++asked }) })
  const words = [
    'status',
    '--watch',
    '--interval',
    '0.1',
    '-o',
    'json',
    '--agent',
    agent.socketPath,
  ]
  const child = startIpdr(words)
  child.stdout.once('data', () => child.stdout.destroy())
  const { exitCode, stderr } = await ended(child)
  expect({ exitCode, stderr }).toEqual({ exitCode: 141, stderr: '' })
})

test('IPDR_DEBUG=1 adds the stack trace', async () => {
  const { exitCode, stderr } = await runIpdr(['status', '--agent', '/nowhere'], {
    env: { IPDR_DEBUG: '1' },
  })
  expect(exitCode).toBe(69)
  expect(stderr).toMatch(/at .*agent-connection/)
})
