import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { buildImage } from '../../node-image/build-image.ts'
import { unpackLayout } from '../support/agent-image.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'

// The image of the agent as `make image` builds it, without any other part of this machine beside the kernel.

const opened = new AsyncDisposableStack()
let scratch: Scratch
let image: Awaited<ReturnType<typeof buildImage>>
let rootfs: string

beforeAll(async () => {
  scratch = opened.use(Scratch.open('agent-image'))
  image = await buildImage(join(scratch.dir, 'image'))
  rootfs = join(scratch.dir, 'rootfs')
  await unpackLayout(image.dir, rootfs)
}, 300_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

/** Runs a program of the image in its root, which has neither /proc nor devices. */
async function inside(...words: string[]): Promise<string> {
  return await runCommand('chroot', [rootfs, ...words], {
    env: { PATH: '/usr/local/bin:/usr/sbin:/usr/bin:/bin' },
  })
}

test('built again, it has the same digest, and is of a size that is worth pulling', async () => {
  const again = await buildImage(join(scratch.dir, 'again'))
  expect(again).toMatchObject({ digest: image.digest, layers: image.layers })
  expect(image.size).toBeLessThan(100_000_000)
  expect(image.packages).toContainEqual(expect.stringMatching(/^glibc /))
}, 120_000)

test('its programs run', async () => {
  expect(await inside('ipdr-agent', '--check-config')).toBe('configuration is fine\n')
  expect(await inside('ipdr', '--version')).toBe('0.1.0\n')
})

test('every part of its programs finds all that it imports', async () => {
  const home = '/opt/ipdr-agent/build/program'
  const parts = readdirSync(join(rootfs, home)).filter((name) => name.endsWith('.js'))
  const imported = parts.filter((name) => !/^ipdr|-entry\.js$/.test(name))
  expect(imported.length).toBeGreaterThan(50)
  const script = imported.map((name) => `await import('${home}/${name}')`).join('\n')
  writeFileSync(
    join(rootfs, home, 'all.mjs'),
    `${script}\nconsole.log('all there')\nprocess.exit()\n`,
  )
  const node = '/opt/ipdr-agent/node_modules/node/bin/node'
  expect(await inside(node, '--no-warnings', `${home}/all.mjs`)).toBe('all there\n')
}, 60_000)

test('it holds the licences of the packages that are in its programs', () => {
  const licences = readFileSync(
    join(rootfs, 'opt/ipdr-agent/build/program/THIRD-PARTY-LICENSES'),
    'utf8',
  )
  for (const [name, licence] of [
    ['@grpc/grpc-js', 'Apache License'],
    ['undici', 'Permission is hereby granted'],
    ['zod', 'Permission is hereby granted'],
  ] as const) {
    const own = licences
      .split(`${'-'.repeat(80)}\n`)
      .find((part) => part.trim().startsWith(`${name} `))
    expect(own).toContain(licence)
  }
})
