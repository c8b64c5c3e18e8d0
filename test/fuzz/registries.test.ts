import { parseChallenges } from '../../agent/registries/challenge.ts'
import { DockerAuths } from '../../agent/registries/docker-auths.ts'
import { KubeletPulls } from '../../agent/registries/kubelet-pulls.ts'
import { PullSecrets } from '../../agent/registries/pull-secrets.ts'
import { criImageContract } from '../../proto/load.ts'
import { CodedError } from '../../snapshotter/errors.ts'
import {
  formatRegistryReference,
  parseRegistryReference,
} from '../../snapshotter/oci/registry-reference.ts'
import { fuzz, reportTotal } from './fuzz.ts'
import { mutateBytes, mutateJson, mutateText } from './mutate.ts'

// What registries answer, and what those write who give credentials: docker, a kubelet, whoever makes secrets in a namespace.

const place = { host: 'r.example', repository: 'team/app' }
const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value))
const SECRET = 's3cret'
const auth = Buffer.from(`user:${SECRET}`).toString('base64')

fuzz('a WWW-Authenticate header', {
  cases: 20_000,
  inputs: () => [
    'Bearer realm="https://auth.example/token",service="r",scope="repository:team/app:pull"',
    'Basic realm="Registry \\"x\\"", Bearer realm=a , service = b',
    'Negotiate YWJj==, Digest realm="x",qop="auth,auth-int",algorithm=MD5',
  ],
  mutate: mutateText,
  read: (header) => parseChallenges(header, 'registry'),
})

fuzz('a name of an image in a registry', {
  cases: 20_000,
  inputs: () => [
    'debian',
    'docker.io/library/debian:12',
    '[::1]:5000/team/app:v1',
    `r.example/team/app:v1@sha256:${'a'.repeat(64)}`,
  ],
  mutate: mutateText,
  read: (name) => {
    const written = formatRegistryReference(parseRegistryReference(name))
    // What was understood is written so that it is understood in the same way.
    if (formatRegistryReference(parseRegistryReference(written)) !== written) {
      throw new Error(`${written} is read as another image`)
    }
  },
})

const config = {
  auths: {
    'r.example': { auth },
    'r.example/team': { username: 'user', password: SECRET },
    'https://index.docker.io/v1/': { identitytoken: SECRET },
  },
  credsStore: 'store',
  credHelpers: { 'r.example': 'helper' },
}

fuzz("docker's config.json", {
  cases: 10_000,
  inputs: () => [json(config), json({ auths: { 'r.example': { registrytoken: SECRET } } })],
  mutate: mutateJson,
  read: (bytes) =>
    withoutSecrets(() => DockerAuths.ofConfig(bytes, 'file').auths.loginsFor(place, 'file')),
})

fuzz('a pull secret', {
  cases: 10_000,
  inputs: () => [
    json({
      metadata: { namespace: 'one', name: 'a' },
      type: 'kubernetes.io/dockerconfigjson',
      data: { '.dockerconfigjson': json(config).toString('base64') },
    }),
    json({
      metadata: { namespace: 'one', name: 'a' },
      type: 'kubernetes.io/dockercfg',
      data: { '.dockercfg': json(config.auths).toString('base64') },
    }),
  ],
  mutate: mutateJson,
  read: async (bytes) => {
    let secret: unknown
    try {
      secret = JSON.parse(bytes.toString())
    } catch {
      throw new CodedError('INVALID_ARGUMENT', 'no JSON')
    }
    const secrets = new PullSecrets({
      onProblem: (sentence) => {
        throw new CodedError('INVALID_ARGUMENT', sentence)
      },
    })
    secrets.listed()
    withoutSecrets(() => secrets.put(secret))
    const { signal } = new AbortController()
    await secrets.loginsFor(place, { namespaces: ['one'], signal })
  },
})

const { requestSerialize, requestDeserialize } = criImageContract().definition.PullImage

fuzz("a kubelet's pull", {
  cases: 10_000,
  inputs: () => [
    requestSerialize({
      image: { image: 'r.example/team/app:1' },
      auth: { username: 'user', password: SECRET, serverAddress: 'https://r.example/v1/' },
      sandboxConfig: { metadata: { namespace: 'one', name: 'pod' } },
    }),
    requestSerialize({ image: { image: 'debian' }, auth: { auth } }),
  ],
  mutate: mutateBytes,
  read: async (bytes) => {
    const pulls = new KubeletPulls()
    let request: ReturnType<typeof requestDeserialize>
    try {
      request = requestDeserialize(Buffer.from(bytes))
    } catch {
      throw new CodedError('INVALID_ARGUMENT', 'no message')
    }
    using pull = pulls.begin(request)
    pull?.succeeded()
    await pulls.loginsFor(place, { namespaces: ['one'] })
  },
})

/** Passes a failure on, unless it says what must not be said. */
function withoutSecrets(work: () => unknown): void {
  try {
    work()
  } catch (error) {
    if (error instanceof CodedError && `${error.message} ${error.stack}`.includes(SECRET)) {
      throw new Error('a secret is in a failure', { cause: error })
    }
    throw error
  }
}

reportTotal()
