import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import type { ClusterConfig } from '../../../agent/registries/cluster-watch.ts'
import { authsOf as auths, type ClusterReader, readCluster } from '../../support/cluster-reader.ts'
import { KUBE_TOKEN, KubeApi } from '../../support/kube-api.ts'

/** A secret as `kubectl create secret docker-registry` makes it. */
const secret = (namespace: string, name: string, content: unknown) => ({
  metadata: { namespace, name },
  type: 'kubernetes.io/dockerconfigjson',
  data: { '.dockerconfigjson': Buffer.from(JSON.stringify(content)).toString('base64') },
})

async function watching(
  change: (api: KubeApi, dir: string) => Partial<ClusterConfig> | void = () => {},
): Promise<ClusterReader & { api: KubeApi; dir: string }> {
  const dir = mkdtempSync(join(tmpdir(), 'kube-'))
  onTestFinished(() => rmSync(dir, { recursive: true }))
  const api = await KubeApi.start()
  onTestFinished(() => api[Symbol.asyncDispose]())
  const kubeconfig = join(dir, 'kubeconfig')
  api.writeKubeconfig(kubeconfig)
  const reader = readCluster({ kubeconfig, ...change(api, dir) })
  onTestFinished(() => reader[Symbol.asyncDispose]())
  return { ...reader, api, dir }
}

const patience = { timeout: 20_000 }

test('pull secrets are those of their namespace, and of no other', async () => {
  const { shown } = await watching((api) => {
    api.put('secrets', secret('one', 'b', auths('2')))
    api.put('secrets', secret('one', 'a', auths('1')))
    api.put('secrets', secret('two', 'a', auths('3')))
    api.put('secrets', secret('two', 'x', auths('4', 'other.example')))
    api.put('secrets', { ...secret('two', 'opaque', auths('5')), type: 'Opaque' })
  })
  expect(await shown('one')).toEqual([
    'u:1 of pull secret one/a (r.example)',
    'u:2 of pull secret one/b (r.example)',
  ])
  expect(await shown('two')).toEqual(['u:3 of pull secret two/a (r.example)'])
  expect(await shown('three')).toEqual([])
  expect(await shown()).toEqual([])
})

test('the old type of secret is read too', async () => {
  const { shown } = await watching((api) => {
    const { auths: bare } = auths('old')
    const data = { '.dockercfg': Buffer.from(JSON.stringify(bare)).toString('base64') }
    const type = 'kubernetes.io/dockercfg'
    api.put('secrets', { metadata: { namespace: 'one', name: 'cfg' }, type, data })
  })
  expect(await shown('one')).toEqual(['u:old of pull secret one/cfg (r.example)'])
})

test('a secret that is made, changed or deleted counts at once', async () => {
  const { api, shown } = await watching()
  expect(await shown('one')).toEqual([])
  api.put('secrets', secret('one', 'a', auths('1')))
  await expect.poll(() => shown('one'), patience).toHaveLength(1)
  api.put('secrets', secret('one', 'a', auths('2')))
  await expect.poll(() => shown('one'), patience).toEqual(['u:2 of pull secret one/a (r.example)'])
  api.remove('secrets', 'one', 'a')
  await expect.poll(() => shown('one'), patience).toEqual([])
})

test('what happened while the API was away is found out, even if the API has forgotten how', async () => {
  const { api, shown } = await watching((api) => {
    api.put('secrets', secret('one', 'a', auths('1')))
    api.put('secrets', secret('one', 'gone', auths('9')))
  })
  expect(await shown('one')).toHaveLength(2)
  api.remove('secrets', 'one', 'gone')
  await api.disconnect()
  api.put('secrets', secret('one', 'a', auths('2')))
  await expect.poll(() => shown('one'), patience).toEqual(['u:2 of pull secret one/a (r.example)'])
  await api.disconnect(true)
  api.put('secrets', secret('one', 'a', auths('3')))
  await expect.poll(() => shown('one'), patience).toEqual(['u:3 of pull secret one/a (r.example)'])
})

test('an API that refuses is named once, and what was known stays; it is asked again', async () => {
  const { api, shown, log } = await watching((api) =>
    api.put('secrets', secret('one', 'a', auths('1'))),
  )
  expect(await shown('one')).toHaveLength(1)
  const refused = log.said('pull secrets cannot be read from the cluster (HTTP 403)')
  const back = log.said('pull secrets are read again')
  api.failing = 403
  await api.disconnect()
  await refused
  expect(await shown('one')).toHaveLength(1)
  api.failing = undefined
  api.put('secrets', secret('one', 'a', auths('2')))
  await back
  await expect.poll(() => shown('one'), patience).toEqual(['u:2 of pull secret one/a (r.example)'])
  expect(log.sentences.join()).not.toContain('kube-token')
})

test('a kubeconfig that is not there yet is waited for', async () => {
  let late = ''
  const { api, shown, log } = await watching((_api, dir) => {
    late = join(dir, 'later')
    return { kubeconfig: late }
  })
  api.put('secrets', secret('one', 'a', auths('1')))
  await expect.poll(() => log.sentences.join(), patience).toContain(`${late} (ENOENT)`)
  api.writeKubeconfig(late)
  await expect.poll(() => shown('one'), patience).toHaveLength(1)
})

test('a program that fails to tell who we are is asked again, and what was known stays', async () => {
  let broken = ''
  const { api, shown, log } = await watching((api, dir) => {
    broken = join(dir, 'broken')
    const [command, kubeconfig] = [join(dir, 'credentials'), join(dir, 'by-program')]
    // No longer good once it is told, so that it is asked for each time.
    const credential = {
      apiVersion: 'client.authentication.k8s.io/v1',
      kind: 'ExecCredential',
      status: { token: KUBE_TOKEN, expirationTimestamp: '2020-01-01T00:00:00Z' },
    }
    const lines = [
      '#!/bin/sh',
      `[ ! -e ${broken} ] || exit 1`,
      `echo '${JSON.stringify(credential)}'`,
    ]
    writeFileSync(command, lines.join('\n'), { mode: 0o755 })
    const { apiVersion } = credential
    api.writeKubeconfig(kubeconfig, { exec: { apiVersion, command, interactiveMode: 'Never' } })
    api.put('secrets', secret('one', 'a', auths('1')))
    return { kubeconfig }
  })
  expect(await shown('one')).toHaveLength(1)
  const failed = log.said('pull secrets cannot be read from the cluster')
  const back = log.said('pull secrets are read again')
  writeFileSync(broken, '')
  await api.disconnect()
  await failed
  expect(await shown('one')).toHaveLength(1)
  rmSync(broken)
  api.put('secrets', secret('one', 'a', auths('2')))
  await back
  await expect.poll(() => shown('one'), patience).toEqual(['u:2 of pull secret one/a (r.example)'])
})

test('only the namespaces that are named are asked for', async () => {
  const { api, shown } = await watching((api) => {
    api.put('secrets', secret('one', 'a', auths('1')))
    api.put('secrets', secret('two', 'a', auths('2')))
    return { namespaces: ['two'] }
  })
  expect(await shown('one', 'two')).toEqual(['u:2 of pull secret two/a (r.example)'])
  expect(api.asked.every((path) => path.startsWith('/api/v1/namespaces/two/secrets'))).toBe(true)
})

test.each([
  ['no JSON', { data: { '.dockerconfigjson': Buffer.from('s3cret').toString('base64') } }],
  ['no value', { data: {} }],
  ['a value of another type', { data: { '.dockerconfigjson': 7 } }],
])('a secret with %s is named, and what is in it is not', async (_, change) => {
  const { shown, log } = await watching((api) => {
    api.put('secrets', { ...secret('one', 'bad', {}), ...change })
    api.put('secrets', secret('one', 'good', auths('1')))
  })
  expect(await shown('one')).toHaveLength(1)
  const said = log.sentences.filter((sentence) => sentence.includes('pull secret one/bad'))
  expect(said).toHaveLength(1)
  expect(said[0]).not.toContain('s3cret')
})

test('programs that a secret names are not run', async () => {
  const { shown, dir } = await watching((api, dir) => {
    const marker = join(dir, 'ran')
    writeFileSync(join(dir, 'docker-credential-evil'), `#!/bin/sh\ntouch ${marker}\n`, {
      mode: 0o755,
    })
    api.put(
      'secrets',
      secret('one', 'a', { ...auths('1'), credsStore: `../..${dir}/docker-credential-evil` }),
    )
  })
  expect(await shown('one')).toEqual(['u:1 of pull secret one/a (r.example)'])
  expect(existsSync(join(dir, 'ran'))).toBe(false)
})

test('pods of the node tell for whom an image is pulled', async () => {
  const pod = (namespace: string, nodeName: string, ...images: string[]) => ({
    metadata: { namespace, name: `pod-${images.join('-').replaceAll(/\W/g, '')}` },
    spec: {
      nodeName,
      containers: images.map((image) => ({ image })),
      initContainers: [{ image: 'r.example/init' }],
    },
  })
  const { api, pods } = await watching((api) => {
    api.put('pods', pod('one', 'here', 'r.example/app:1', 'debian'))
    api.put('pods', pod('two', 'here', 'docker.io/library/debian:latest'))
    api.put('pods', pod('three', 'elsewhere', 'debian'))
    return { nodeName: 'here' }
  })
  const debian = 'docker.io/library/debian:latest'
  await expect.poll(() => pods.namespacesPulling(debian), patience).toEqual(['one', 'two'])
  expect(pods.namespacesPulling('r.example/app:1')).toEqual(['one'])
  expect(pods.namespacesPulling('r.example/init:latest')).toEqual(['one', 'two'])
  expect(pods.namespacesPulling('r.example/app:2')).toEqual([])
  api.remove('pods', 'two', 'pod-dockeriolibrarydebianlatest')
  await expect.poll(() => pods.namespacesPulling(debian), patience).toEqual(['one'])
})
