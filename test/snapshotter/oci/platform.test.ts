import { expect, test } from 'vitest'
import {
  choosePlatform,
  formatPlatform,
  nodePlatform,
  normalizePlatform,
} from '../../../snapshotter/oci/platform.ts'

// containerd platforms/platforms_test.go and database.go hold the same pairs.
test.each([
  [{ os: 'linux', architecture: 'x86_64' }, 'linux/amd64'],
  [{ os: 'Linux', architecture: 'AMD64', variant: 'v1' }, 'linux/amd64'],
  [{ os: 'linux', architecture: 'amd64', variant: 'v3' }, 'linux/amd64/v3'],
  [{ os: 'linux', architecture: 'aarch64' }, 'linux/arm64'],
  [{ os: 'linux', architecture: 'arm64', variant: '8' }, 'linux/arm64'],
  [{ os: 'linux', architecture: 'arm64', variant: 'v8' }, 'linux/arm64'],
  [{ os: 'linux', architecture: 'armhf' }, 'linux/arm/v7'],
  [{ os: 'linux', architecture: 'armel' }, 'linux/arm/v6'],
  [{ os: 'linux', architecture: 'arm' }, 'linux/arm/v7'],
  [{ os: 'linux', architecture: 'arm', variant: '6' }, 'linux/arm/v6'],
  [{ os: 'linux', architecture: 'i386' }, 'linux/386'],
  [{ os: 'macos', architecture: 'arm64' }, 'darwin/arm64'],
])('%j is %s', (written, spelled) => {
  expect(formatPlatform(normalizePlatform(written))).toBe(spelled)
})

const offered = (...platforms: string[]): { platform: ReturnType<typeof parse> }[] =>
  platforms.map((text) => ({ platform: parse(text) }))
function parse(text: string): { os: string; architecture: string; variant?: string } {
  const [os = '', architecture = '', variant] = text.split('/')
  return variant === undefined ? { os, architecture } : { os, architecture, variant }
}

test.each([
  ['linux/arm/v7', ['linux/arm/v5', 'linux/arm/v6', 'linux/amd64'], 'linux/arm/v6'],
  ['linux/arm64', ['linux/arm/v7', 'linux/arm64/v8'], 'linux/arm64/v8'],
  ['linux/arm64', ['linux/arm/v7', 'linux/amd64'], 'linux/arm/v7'],
  ['linux/amd64', ['linux/amd64/v2', 'linux/386'], 'linux/386'],
  ['linux/amd64/v3', ['linux/amd64', 'linux/amd64/v2'], 'linux/amd64/v2'],
  ['linux/arm/v6', ['linux/arm/v7'], undefined],
  ['linux/amd64', ['windows/amd64', 'unknown/unknown'], undefined],
])('on %s, %j offers %s', (node, platforms, chosen) => {
  const found = choosePlatform(offered(...platforms), parse(node))
  expect(found && Object.values(found.platform).join('/')).toBe(chosen)
})

test('an entry without platform is taken when nothing else fits, and only then', () => {
  const entries = [{ platform: undefined }, { platform: parse('linux/amd64') }]
  expect(choosePlatform(entries, parse('linux/amd64'))).toBe(entries[1])
  expect(choosePlatform(entries, parse('linux/s390x'))).toBe(entries[0])
})

test('this node has a platform in the words of Go', () => {
  expect(['amd64', 'arm64', 'arm', '386']).toContain(nodePlatform().architecture)
})
