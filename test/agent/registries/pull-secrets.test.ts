import { setImmediate } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { PullSecrets } from '../../../agent/registries/pull-secrets.ts'
import { authsOf } from '../../support/cluster-reader.ts'

const place = { host: 'r.example', repository: 'team/app' }

function secretsOf(): { secrets: PullSecrets; origins: () => Promise<string[]> } {
  const secrets = new PullSecrets({ onProblem: () => {} })
  const origins = async (): Promise<string[]> => {
    const asked = { namespaces: ['one'], signal: AbortSignal.timeout(20_000) }
    return (await secrets.loginsFor(place, asked)).map(({ origin }) => origin)
  }
  return { secrets, origins }
}

const metadata = { namespace: 'one', name: 'a' }
const base64 = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64')
const config = {
  metadata,
  type: 'kubernetes.io/dockerconfigjson',
  data: { '.dockerconfigjson': base64(authsOf('1')) },
}
const dockercfg = {
  metadata,
  type: 'kubernetes.io/dockercfg',
  data: { '.dockercfg': base64(authsOf('2').auths) },
}

test.each([
  ['the end of the old one is told first', ['remove', 'put']],
  ['the new one is told first', ['put', 'remove']],
] as const)('a secret that is made anew with the other type counts, where %s', async (_, order) => {
  const { secrets, origins } = secretsOf()
  secrets.listed()
  secrets.put(config)
  for (const what of order) secrets[what](what === 'put' ? dockercfg : config)
  expect(await origins()).toEqual(['pull secret one/a (r.example)'])
  secrets.remove(dockercfg)
  expect(await origins()).toEqual([])
})

test('a cluster that never answers holds up who asks first, and nobody after', async () => {
  const { secrets, origins } = secretsOf()
  expect(await origins()).toEqual([])
  secrets.put(config)
  const late = setImmediate('it waits')
  expect(await Promise.race([origins(), late])).toEqual(['pull secret one/a (r.example)'])
})
