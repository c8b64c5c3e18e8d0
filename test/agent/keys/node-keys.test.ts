import { createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { NodeKeys } from '../../../agent/keys/node-keys.ts'
import { encryptJwe } from '../../../snapshotter/encryption/jwe.ts'
import type { KeyUnwrapper } from '../../../snapshotter/encryption/key-unwrapper.ts'
import { LayerError } from '../../../snapshotter/errors.ts'
import { failureOf } from '../../support/failure-of.ts'

const signal = AbortSignal.timeout(60_000)
const log = { warn: () => {} }
const newKey = (): KeyObject => generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
const [ofNode, ofTeamA, ofTeamB] = [newKey(), newKey(), newKey()]

let keysDir: string
beforeEach(() => {
  keysDir = mkdtempSync(join(tmpdir(), 'node-keys-'))
  write('node.pem', ofNode)
  write('team-a/key.pem', ofTeamA)
  write('team-b/key.pem', ofTeamB)
})
afterEach(() => rmSync(keysDir, { recursive: true, force: true }))

function write(name: string, key: KeyObject): void {
  const path = join(keysDir, name)
  mkdirSync(join(path, '..'), { recursive: true })
  writeFileSync(path, key.export({ type: 'pkcs8', format: 'pem' }), { mode: 0o600 })
}

async function opens(keys: KeyUnwrapper, recipient: KeyObject): Promise<boolean> {
  const bytes = await encryptJwe(Buffer.from('options'), createPublicKey(recipient))
  return (await keys.unwrap({ kind: 'jwe', bytes }, 'sha256:1', signal)) !== undefined
}

const each = (keys: KeyUnwrapper): Promise<boolean[]> =>
  Promise.all([ofNode, ofTeamA, ofTeamB].map((key) => opens(keys, key)))

test('pods of a namespace may use the keys of the node and those in the directory of its name', async () => {
  const keys = new NodeKeys({ keysDir }, { providers: [], log })
  expect(await each(keys.all)).toEqual([true, true, true])
  expect(await each(keys.of('team-a'))).toEqual([true, true, false])
  expect(await each(keys.of('team-c'))).toEqual([true, false, false])
})

test.each(['..', '.', '', '../keys', 'team-a/../team-b', 'TEAM-A', 'x'.repeat(64)])(
  'a namespace %j has no keys of its own',
  async (namespace) => {
    const keys = new NodeKeys({ keysDir: join(keysDir, 'team-a') }, { providers: [], log })
    expect(await each(keys.of(namespace))).toEqual([false, true, false])
  },
)

test('a namespace whose directory comes or goes has keys, or none, from then on', async () => {
  const keys = new NodeKeys({ keysDir }, { providers: [], log })
  rmSync(join(keysDir, 'team-a'), { recursive: true })
  write('team-c/key.pem', ofTeamA)
  expect(await each(keys.of('team-a'))).toEqual([true, false, false])
  expect(await each(keys.of('team-c'))).toEqual([true, true, false])
})

test('without a directory of keys nothing is opened, and key providers are still asked', async () => {
  const down: KeyUnwrapper = {
    unwrap: () => Promise.reject(new LayerError('UNAVAILABLE', 'the provider is down')),
  }
  expect(await each(new NodeKeys({}, { providers: [], log }).all)).toEqual([false, false, false])
  const keys = new NodeKeys({ keysDir }, { providers: [down], log })
  expect(await opens(keys.of('team-a'), ofTeamA)).toBe(true)
  const failure = await failureOf(() => opens(keys.of('team-a'), ofTeamB))
  expect(failure.message).toBe('the provider is down')
})

test('keys for more than 256 namespaces are refused', async () => {
  for (let index = 0; index < 255; index++) mkdirSync(join(keysDir, `n${index}`))
  const keys = new NodeKeys({ keysDir }, { providers: [], log })
  expect(await failureOf(() => opens(keys.all, newKey()))).toMatchObject({
    code: 'RESOURCE_EXHAUSTED',
  })
})
