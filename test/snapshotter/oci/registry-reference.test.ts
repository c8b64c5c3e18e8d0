import { describe, expect, test } from 'vitest'
import { ImageError } from '../../../snapshotter/errors.ts'
import {
  formatRegistryReference,
  parseRegistryReference,
} from '../../../snapshotter/oci/registry-reference.ts'

const digest = `sha256:${'a'.repeat(64)}`

describe('the name of an image in a registry', () => {
  test.each([
    ['debian', 'docker.io', 'library/debian', 'latest'],
    ['debian:12', 'docker.io', 'library/debian', '12'],
    ['org/app:v1', 'docker.io', 'org/app', 'v1'],
    ['docker.io/debian', 'docker.io', 'library/debian', 'latest'],
    ['index.docker.io/library/debian', 'docker.io', 'library/debian', 'latest'],
    ['127.0.0.1:5000/app', '127.0.0.1:5000', 'app', 'latest'],
    ['localhost/app:x', 'localhost', 'app', 'x'],
    ['Registry.Example/a/b/c:1', 'registry.example', 'a/b/c', '1'],
    ['[::1]:5000/app', '[::1]:5000', 'app', 'latest'],
    [`ghcr.io/org/app@${digest}`, 'ghcr.io', 'org/app', digest],
    [`ghcr.io/org/app:v1@${digest}`, 'ghcr.io', 'org/app', digest],
  ])('%s is found as containerd finds it', (text, host, repository, selector) => {
    expect(parseRegistryReference(text)).toEqual({ host, repository, selector })
  })

  test.each([
    ['', /not a repository name/],
    ['UPPER', /not a repository name|upper-case/],
    ['host.example/', /not a repository name/],
    ['a_b.example:5000:1/app', /not the host of a registry/],
    ['Registry/app', /'Registry' is not the host of a registry/],
    ['-x.example/app', /not the host of a registry/],
    ['host.example:99999999/app', /not the host of a registry/],
    ['evil.example@good.example/app', /digest/],
    ['host.example/app@md5:00', /digest/],
    ['host.example/app:bad tag', /tag/],
    [`host.example/${'a'.repeat(900)}`, /900|characters/],
  ])('%j is none', (text, problem) => {
    expect(() => parseRegistryReference(text)).toThrow(problem)
    expect(() => parseRegistryReference(text)).toThrow(ImageError)
  })

  test('is written with a colon before a tag and an @ before a digest', () => {
    for (const text of ['docker.io/library/debian:12', `ghcr.io/org/app@${digest}`]) {
      expect(formatRegistryReference(parseRegistryReference(text))).toBe(text)
    }
  })
})
