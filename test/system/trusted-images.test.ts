import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { runIpdr } from '../agent/cli/support/run-ipdr.ts'
import { failureOf } from '../support/failure-of.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { type OciLayout, packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode } from '../support/lazy-node.ts'
import { makeTar } from '../support/make-tar.ts'
import { startOciRegistry } from '../support/oci-registry.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'
import { SuitePrograms } from '../support/suite-programs.ts'

// A node on which only what the publisher signed may run, with skopeo of Debian trixie as the other party: its keys, its signatures,
// and its own verification of ours.

const opened = new AsyncDisposableStack()
let scratch: Scratch
let node: LazyNode
let layout: OciLayout
let repository: string[]

async function skopeo(...words: string[]): Promise<string> {
  const programs = SuitePrograms.unpack('trixie', 'skopeo', 'skopeo')
  const [file, ...loader] = programs.command('usr/bin/skopeo')
  return runCommand(file, [...loader, ...words])
}

beforeAll(async () => {
  scratch = opened.use(Scratch.open('trusted'))
  const password = join(scratch.dir, 'password')
  writeFileSync(password, 'correct horse\n')
  for (const name of ['publisher', 'stranger']) {
    const prefix = join(scratch.dir, name)
    const words = ['--output-prefix', prefix, '--passphrase-file', password]
    await skopeo('generate-sigstore-key', ...words)
  }
  const tar = makeTar(...busyboxFiles('cat', 'sleep'), { name: 'word', content: 'signed\n' })
  const layer = await packLayer(Readable.from([tar]), 'gzip', join(scratch.dir, 'layers'))
  layout = writeOciLayout(join(scratch.dir, 'layout'), {
    layers: [layer],
    process: { Env: ['PATH=/bin'] },
  })
  const policies = [
    { name: 'production', images: ['ipdr.internal/*'], keys: [join(scratch.dir, 'publisher.pub')] },
  ]
  node = opened.use(await LazyNode.start('trusted', { policies }))
  repository = ['--repository', node.publisher.repository]
}, 300_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

/** Signs an image of the publisher's repository, and gives back the new root CID. */
async function signBy(name: string, root: string, ...words: string[]): Promise<string> {
  const key = ['--key', join(scratch.dir, `${name}.private`)]
  const password = ['--password-file', join(scratch.dir, 'password')]
  const ended = await runIpdr([
    'sign',
    root,
    ...key,
    ...password,
    ...repository,
    ...words,
    '-o',
    'json',
  ])
  expect(ended).toMatchObject({ exitCode: 0 })
  return (JSON.parse(ended.stdout) as { root: string }).root
}

/** What a container of the image reads. */
async function wordIn(root: string): Promise<string> {
  const name = `ipdr.internal/${root}`
  await node.cri.pullImage(name)
  await using container = await node.startContainer(name, ['/bin/sleep', '1000'])
  return (await node.cri.execSync(container.id, ['/bin/cat', '/word'])).stdout
}

test('an unsigned image fails the pull, and containerd names the policy; nothing of it is on the node', async () => {
  const root = await node.publisher.push(layout)
  const failure = await failureOf(() => node.cri.pullImage(`ipdr.internal/${root}`))
  expect(failure.message).toMatch(
    /is refused by policy 'production': manifest .* has no signature by any of/,
  )
  using admin = node.agent.admin()
  const call = { signal: AbortSignal.timeout(10_000) }
  expect(await admin.calls.ListImages({}, call)).toMatchObject({ images: [] })
  expect(await admin.calls.ListLayers({}, call)).toMatchObject({ layers: [] })
  expect(await node.metric('ipdr_images_refused_total')).toBeGreaterThan(0)
  const pulled = await runIpdr(['pull', root, '--agent', node.agent.adminSocket])
  expect(pulled.exitCode).toBe(77)
  expect(pulled.stderr).toContain("policy 'production'")
}, 120_000)

test('one that somebody else signed fails too, and ipdr verify says the same of it', async () => {
  const root = await signBy('stranger', await node.publisher.push(layout))
  await expect(node.cri.pullImage(`ipdr.internal/${root}`)).rejects.toThrow(/policy 'production'/)
  const verified = await runIpdr([
    'verify',
    root,
    '--key',
    join(scratch.dir, 'publisher.pub'),
    ...repository,
  ])
  expect(verified.exitCode).toBe(76)
  expect(verified.stderr).toMatch(
    /is signed by 0 of 1 keys, 1 are needed; beside it lies? 1 signature/,
  )
}, 120_000)

test('one that ipdr sign signed runs', async () => {
  const root = await signBy('publisher', await node.publisher.push(layout))
  const words = ['--key', join(scratch.dir, 'publisher.pub'), ...repository]
  expect((await runIpdr(['verify', root, ...words])).exitCode).toBe(0)
  expect(await wordIn(root)).toBe('signed\n')
}, 120_000)

test('one that skopeo signed runs, its signature beside it as in the registry', async () => {
  await using registry = await startOciRegistry(scratch)
  const registries = join(scratch.dir, 'registries.d')
  await runCommand('mkdir', ['-p', registries])
  writeFileSync(
    join(registries, 'default.yaml'),
    'default-docker:\n  use-sigstore-attachments: true\n',
  )
  const target = `${registry.host}/app:latest`
  await skopeo(
    'copy',
    '--insecure-policy',
    '--registries.d',
    registries,
    '--dest-tls-verify=false',
    '--sign-by-sigstore-private-key',
    join(scratch.dir, 'publisher.private'),
    '--sign-passphrase-file',
    join(scratch.dir, 'password'),
    `oci:${layout.dir}:${layout.tag}`,
    `docker://${target}`,
  )
  const tag = `${layout.manifestDigest.replace(':', '-')}.sig`
  const base = `http://${registry.host}/v2/app`
  const manifest = Buffer.from(
    await (
      await fetch(`${base}/manifests/${tag}`, {
        headers: { accept: 'application/vnd.oci.image.manifest.v1+json' },
      })
    ).arrayBuffer(),
  )
  const { config, layers } = JSON.parse(manifest.toString()) as {
    config: { digest: string }
    layers: { digest: string }[]
  }
  const blobs = await Promise.all(
    [config, ...layers].map(async ({ digest }) =>
      Buffer.from(await (await fetch(`${base}/blobs/${digest}`)).arrayBuffer()),
    ),
  )
  const root = await node.publisher.addBeside(await node.publisher.importAsIs(layout), {
    manifests: new Map([[tag, manifest]]),
    blobs,
  })
  expect(await wordIn(root)).toBe('signed\n')
}, 120_000)

test('skopeo verifies through our registry what ipdr sign signed, under the name that it demands', async () => {
  const pushed = await node.publisher.push(layout)
  const root = await signBy('publisher', pushed)
  const { host } = new URL(node.agent.registryUrl)
  const identity = `${host}/${root}`
  const policyOf = (key: string, name: string): object => ({
    default: [{ type: 'reject' }],
    transports: {
      docker: {
        [host]: [
          {
            type: 'sigstoreSigned',
            keyPath: join(scratch.dir, `${key}.pub`),
            signedIdentity: { type: 'exactRepository', dockerRepository: name },
          },
        ],
      },
    },
  })
  const registries = join(scratch.dir, 'registries-ours.d')
  await runCommand('mkdir', ['-p', registries])
  writeFileSync(
    join(registries, 'default.yaml'),
    'default-docker:\n  use-sigstore-attachments: true\n',
  )
  const copy = async (key: string, name: string): Promise<string> => {
    const policy = join(scratch.dir, 'policy.json')
    writeFileSync(policy, JSON.stringify(policyOf(key, name)))
    const to = `dir:${join(scratch.dir, `copy-${key}-${name.length}`)}`
    return skopeo(
      '--policy',
      policy,
      '--registries.d',
      registries,
      'copy',
      '--src-tls-verify=false',
      `docker://${identity}`,
      to,
    )
  }
  await expect(copy('publisher', `ipdr.internal/${pushed}`)).resolves.toContain('Writing manifest')
  await expect(copy('publisher', 'ipdr.internal/other')).rejects.toThrow(
    /identity .* is not accepted/,
  )
  await expect(copy('stranger', `ipdr.internal/${pushed}`)).rejects.toThrow(/signature/i)
}, 120_000)
