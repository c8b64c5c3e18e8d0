import { chmodSync, mkdirSync, mkdtempSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { inspect } from 'node:util'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { registryKey } from '../../../agent/registries/docker-auths.ts'
import { DockerConfig } from '../../../agent/registries/docker-config.ts'
import type { RegistryLogin } from '../../../agent/registries/registry-login.ts'

// Files are written as docker login and podman login write them, helpers are real programs.

let dir: string
let path: string
let problems: string[]
let config: DockerConfig

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'docker-config-'))
  path = join(dir, 'config.json')
  problems = []
  config = new DockerConfig(path, { onProblem: (sentence) => problems.push(sentence) })
})

afterEach(() => {
  vi.unstubAllEnvs()
  rmSync(dir, { recursive: true })
})

const base64 = (text: string): string => Buffer.from(text).toString('base64')

const logins = async (host: string, repository: string, fresh = false): Promise<RegistryLogin[]> =>
  config.loginsFor(
    { host, repository },
    { namespaces: [], fresh, signal: AbortSignal.timeout(20_000) },
  )

/** Users and passwords, as they would be shown to a registry. */
const shown = async (host: string, repository: string, fresh = false): Promise<string[]> =>
  (await logins(host, repository, fresh)).map((login) => {
    const basic = login.basicAuthorization()
    if (basic !== undefined) return Buffer.from(basic.slice(6), 'base64').toString()
    return login.refreshToken() ?? login.bearerToken() ?? ''
  })

const write = (value: unknown): void => writeFileSync(path, JSON.stringify(value))

/** A credential helper on the PATH. */
function installHelper(name: string, script: string): void {
  const bin = join(dir, 'bin')
  mkdirSync(bin, { recursive: true })
  writeFileSync(join(bin, `docker-credential-${name}`), `#!/bin/sh\n${script}\n`)
  chmodSync(join(bin, `docker-credential-${name}`), 0o755)
  vi.stubEnv('PATH', `${bin}:${process.env['PATH']}`)
}

describe('the credentials of docker', () => {
  test('of the longest path that fits come first', async () => {
    write({
      auths: {
        'reg.example': { auth: base64('all:1') },
        'reg.example/team': { auth: base64('team:2') },
        'reg.example/team/app': { username: 'app', password: '3' },
        'reg.example/tea': { auth: base64('tea:4') },
        'other.example': { auth: base64('other:5') },
      },
    })
    expect(await shown('reg.example', 'team/app')).toEqual(['app:3', 'team:2', 'all:1'])
    expect(await shown('reg.example', 'x')).toEqual(['all:1'])
    expect(await shown('reg.example:5000', 'x')).toEqual([])
  })

  test('of Docker Hub stand under its old address', async () => {
    write({ auths: { 'https://index.docker.io/v1/': { auth: base64('hub:with:colon') } } })
    expect(await shown('docker.io', 'library/debian')).toEqual(['hub:with:colon'])
  })

  test('may be identity and registry tokens', async () => {
    write({
      auths: {
        'a.example': { auth: base64('x:'), identitytoken: 'refresh' },
        'b.example': { registrytoken: 'bearer' },
      },
    })
    expect((await logins('a.example', 'x'))[0]?.refreshToken()).toBe('refresh')
    expect((await logins('b.example', 'x'))[0]?.bearerToken()).toBe('bearer')
  })

  test('are read again when the file changes', async () => {
    write({ auths: { 'reg.example': { auth: base64('u:old') } } })
    expect(await shown('reg.example', 'x')).toEqual(['u:old'])
    write({ auths: { 'reg.example': { auth: base64('u:new') } } })
    utimesSync(path, 1, 1)
    expect(await shown('reg.example', 'x')).toEqual(['u:new'])
  })

  test('of a file that is not there are none, and that is said once', async () => {
    expect(await shown('reg.example', 'x')).toEqual([])
    expect(await shown('reg.example', 'x')).toEqual([])
    expect(problems).toEqual([expect.stringContaining(`docker config ${path} cannot be read`)])
  })

  test.each([
    ['{"auths":{"reg.example":{"auth":"s3cret"', /it is no JSON/],
    ['{"auths":{"reg.example":{"auth":["s3cret"]}}}', /auths\.reg\.example\.auth/],
    [`{"auths":{"reg.example":{"auth":"${'s3cret'.repeat(6_000)}"}}}`, /auths\.reg\.example\.auth/],
    [`{"x":"${'s3cret'.repeat(200_000)}"}`, /it may have 1048576/],
    ['"s3cret"', /top level/],
  ])(
    'in a file that cannot be used are none, and its contents are not quoted (%#)',
    async (text, problem) => {
      writeFileSync(path, text)
      expect(await shown('reg.example', 'x')).toEqual([])
      expect(problems).toEqual([expect.stringMatching(problem)])
      expect(problems[0]).not.toContain('s3cret')
    },
  )

  test('are in no text that anybody makes of them', async () => {
    write({ auths: { 'reg.example': { auth: base64('user:s3cret') } } })
    const [login] = await logins('reg.example', 'x')
    const texts = [JSON.stringify({ login }), inspect(login, { depth: 9, showHidden: true })]
    expect(texts.join()).not.toMatch(new RegExp(`s3cret|${base64('user:s3cret')}`))
    expect(JSON.stringify({ login })).toContain(path)
  })

  test('are not different only because the file writes a scheme or a version', () => {
    for (const written of [
      'https://reg.example/v2/',
      'http://reg.example',
      'REG.example/v1/',
      'reg.example/',
    ]) {
      expect(registryKey(written)).toBe('reg.example')
    }
  })
})

describe('a credential helper', () => {
  test('is asked for its registry, before what the file says', async () => {
    installHelper('one', `read server; echo '{"Username":"helped","Secret":"'$1-$server'"}'`)
    write({
      auths: { 'reg.example': { auth: base64('u:file') } },
      credHelpers: { 'reg.example': 'one' },
    })
    expect(await shown('reg.example', 'x')).toEqual(['helped:get-reg.example', 'u:file'])
  })

  test('of all registries is asked for Docker Hub by its old address', async () => {
    installHelper('all', `read server; echo '{"Username":"<token>","Secret":"'$server'"}'`)
    write({ credsStore: 'all' })
    expect(await shown('docker.io', 'library/x')).toEqual(['https://index.docker.io/v1/'])
  })

  test('is not asked again for a while, unless what it said was not taken', async () => {
    const count = join(dir, 'count')
    installHelper('n', `echo x >>${count}; echo '{"Username":"u","Secret":"'$(wc -l <${count})'"}'`)
    write({ credsStore: 'n' })
    expect(await shown('reg.example', 'x')).toEqual(['u:1'])
    expect(await shown('reg.example', 'y')).toEqual(['u:1'])
    expect(await shown('reg.example', 'y', true)).toEqual(['u:2'])
  })

  test('that knows nothing of the registry is no problem', async () => {
    installHelper('none', 'echo credentials not found in native keychain; exit 1')
    write({ credsStore: 'none' })
    expect(await shown('reg.example', 'x')).toEqual([])
    expect(problems).toEqual([])
  })

  test.each([
    [
      'fails',
      'echo s3cret; exit 3',
      /docker-credential-bad get failed for reg\.example with exit code 3/,
    ],
    [
      'answers with something else',
      'echo s3cret',
      /did not answer for reg\.example with a user name/,
    ],
    ['says too much', 'while echo s3crets3crets3cret; do :; done', /get failed for reg\.example/],
  ])('that %s is named, and what it printed is not', async (_, script, problem) => {
    installHelper('bad', script)
    write({ auths: { 'reg.example': { auth: base64('u:file') } }, credsStore: 'bad' })
    expect(await shown('reg.example', 'x')).toEqual(['u:file'])
    expect(problems).toEqual([expect.stringMatching(problem)])
    expect(problems[0]).not.toContain('s3cret')
  })

  test.each([
    ['is not installed', 'missing', /docker-credential-missing is not in the PATH/],
    ['would lead elsewhere', '../../bin/sh', /is not the name of a credential helper/],
  ])('that %s is named', async (_, name, problem) => {
    write({ credsStore: name })
    expect(await shown('reg.example', 'x')).toEqual([])
    expect(problems).toEqual([expect.stringMatching(problem)])
  })
})
