import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { type ClusterConfig, ClusterWatch } from '../../../agent/registries/cluster-watch.ts'
import { NodePods } from '../../../agent/registries/node-pods.ts'
import { PullSecrets } from '../../../agent/registries/pull-secrets.ts'
import { listeningLog } from '../../support/fuse-mount.ts'
import { KubeApi } from '../../support/kube-api.ts'

const auths = (password: string, host = 'r.example'): object => ({
  auths: { [host]: { auth: Buffer.from(`u:${password}`).toString('base64') } },
})

/** A secret as `kubectl create secret docker-registry` makes it. */
const secret = (namespace: string, name: string, content: unknown) => ({
  metadata: { namespace, name },
  type: 'kubernetes.io/dockerconfigjson',
  data: { '.dockerconfigjson': Buffer.from(JSON.stringify(content)).toString('base64') },
})

async function watching(
  change: (api: KubeApi, dir: string) => Partial<ClusterConfig> | void = () => {},
): Promise<{
  api: KubeApi
  dir: string
  pods: NodePods
  log: ReturnType<typeof listeningLog>
  shown: (...namespaces: string[]) => Promise<string[]>
}> {
  const dir = mkdtempSync(join(tmpdir(), 'kube-'))
  onTestFinished(() => rmSync(dir, { recursive: true }))
  const api = await KubeApi.start()
  onTestFinished(() => api[Symbol.asyncDispose]())
  const kubeconfig = join(dir, 'kubeconfig')
  api.writeKubeconfig(kubeconfig)
  const config = { kubeconfig, ...change(api, dir) }
  const log = listeningLog()
  const secrets = new PullSecrets({ onProblem: (sentence) => log.warn({}, sentence) })
  const pods = new NodePods()
  const watch = new ClusterWatch(config, { secrets, pods, log })
  onTestFinished(() => watch[Symbol.asyncDispose]())
  const shown = async (...namespaces: string[]): Promise<string[]> => {
    const place = { host: 'r.example', repository: 'team/app' }
    const signal = AbortSignal.timeout(20_000)
    const found = await secrets.loginsFor(place, { namespaces, signal })
    return found.map((login) => {
      const basic = login.basicAuthorization() ?? ''
      return `${Buffer.from(basic.slice(6), 'base64').toString()} of ${login.origin}`
    })
  }
  return { api, dir, pods, log, shown }
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
    const { auths: bare } = auths('old') as { auths: object }
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
