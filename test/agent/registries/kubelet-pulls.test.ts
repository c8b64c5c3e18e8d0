import { describe, expect, test } from 'vitest'
import { KubeletPulls } from '../../../agent/registries/kubelet-pulls.ts'
import type { AuthConfig__Output } from '../../../proto/types/runtime/v1/AuthConfig.ts'
import type { PullImageRequest__Output } from '../../../proto/types/runtime/v1/PullImageRequest.ts'

const noAuth: AuthConfig__Output = {
  username: '',
  password: '',
  auth: '',
  serverAddress: '',
  identityToken: '',
  registryToken: '',
}

/** As the kubelet asks: an image, credentials, and the pod that it is for. */
function request(
  image: string,
  namespace?: string,
  auth?: Partial<AuthConfig__Output>,
): PullImageRequest__Output {
  return {
    image: { image, annotations: {} },
    auth: auth === undefined ? null : { ...noAuth, ...auth },
    sandboxConfig: namespace === undefined ? null : ({ metadata: { namespace } } as never),
  } as PullImageRequest__Output
}

async function shown(
  pulls: KubeletPulls,
  image: string,
  ...namespaces: readonly string[]
): Promise<(string | undefined)[]> {
  const [host = '', ...repository] = image.split('/')
  const logins = await pulls.loginsFor({ host, repository: repository.join('/') }, { namespaces })
  return logins.map((login) => {
    const basic = login.basicAuthorization()
    if (basic === undefined) return login.refreshToken() ?? login.bearerToken()
    return Buffer.from(basic.slice(6), 'base64').toString()
  })
}

const alice = { username: 'alice', password: 'a' }

describe('what the kubelet pulls with', () => {
  test('is used for the namespace that gave it and for its repository alone', async () => {
    const pulls = new KubeletPulls()
    {
      using pull = pulls.begin(request('r.example/team/app:1', 'one', alice))
      pull?.succeeded()
    }
    expect(await shown(pulls, 'r.example/team/app', 'one')).toEqual(['alice:a'])
    expect(await shown(pulls, 'r.example/team/app', 'two', 'one')).toEqual(['alice:a'])
    expect(await shown(pulls, 'r.example/team/app', 'two')).toEqual([])
    expect(await shown(pulls, 'r.example/team/app')).toEqual([])
    expect(await shown(pulls, 'r.example/team/other', 'one')).toEqual([])
    expect(await shown(pulls, 'other.example/team/app', 'one')).toEqual([])
  })

  test('is used while the pull is under way, and forgotten if it fails', async () => {
    const pulls = new KubeletPulls()
    const pull = pulls.begin(request('r.example/app', 'one', alice))
    expect(await shown(pulls, 'r.example/app', 'one')).toEqual(['alice:a'])
    pull?.[Symbol.dispose]()
    expect(await shown(pulls, 'r.example/app', 'one')).toEqual([])
  })

  test('gives way to what is newer, and is used again if that fails', async () => {
    const pulls = new KubeletPulls()
    {
      using first = pulls.begin(request('r.example/app', 'one', alice))
      first?.succeeded()
    }
    {
      using _failing = pulls.begin(request('r.example/app', 'one', { ...alice, password: 'b' }))
      expect(await shown(pulls, 'r.example/app', 'one')).toEqual(['alice:b'])
    }
    expect(await shown(pulls, 'r.example/app', 'one')).toEqual(['alice:a'])
    {
      using second = pulls.begin(request('r.example/app', 'one', { ...alice, password: 'c' }))
      second?.succeeded()
    }
    expect(await shown(pulls, 'r.example/app', 'one')).toEqual(['alice:c'])
  })

  test.each([
    [alice, 'alice:a'],
    [{ auth: Buffer.from('bob:b').toString('base64') }, 'bob:b'],
    [{ identityToken: 'refresh' }, 'refresh'],
    [{ registryToken: 'bearer' }, 'bearer'],
    [{ ...alice, serverAddress: 'https://r.example/v1/' }, 'alice:a'],
    [{ ...alice, serverAddress: 'other.example' }, undefined],
    [{}, undefined],
  ])('is read as containerd reads it: %j', async (auth, wanted) => {
    const pulls = new KubeletPulls()
    using _pull = pulls.begin(request('r.example/app', 'one', auth))
    expect(await shown(pulls, 'r.example/app', 'one')).toEqual(wanted === undefined ? [] : [wanted])
  })

  test('without a pod, as by crictl, is of no namespace', async () => {
    const pulls = new KubeletPulls()
    using _pull = pulls.begin(request('r.example/app', undefined, alice))
    const namespaces = pulls.namespacesPulling('r.example/app:latest')
    expect(namespaces).toEqual(['(no pod)'])
    expect(await shown(pulls, 'r.example/app', ...namespaces)).toEqual(['alice:a'])
    expect(await shown(pulls, 'r.example/app', 'default')).toEqual([])
  })

  test.each([
    ['no image', request('', 'one', alice)],
    ['an image that is none', request('r.example/UPPER', 'one', alice)],
    ['a namespace that is none', request('r.example/app', 'n'.repeat(64), alice)],
  ])('is not kept of a pull with %s', (_, pull) => {
    expect(new KubeletPulls().begin(pull)).toBeUndefined()
  })

  test('is kept of the latest 10,000 repositories', async () => {
    const pulls = new KubeletPulls()
    for (let index = 0; index <= 10_000; index++) {
      using pull = pulls.begin(request(`r.example/app-${index}`, 'one', alice))
      pull?.succeeded()
    }
    expect(await shown(pulls, 'r.example/app-0', 'one')).toEqual([])
    expect(await shown(pulls, 'r.example/app-1', 'one')).toEqual(['alice:a'])
  })
})

describe('a pull under way', () => {
  test('is found by any spelling of its name, with every namespace that waits for it', () => {
    const pulls = new KubeletPulls()
    using _one = pulls.begin(request('debian', 'one'))
    using _two = pulls.begin(request('docker.io/library/debian:latest', 'two'))
    using _other = pulls.begin(request('debian:12', 'three'))
    expect(pulls.namespacesPulling('docker.io/library/debian:latest')).toEqual(['one', 'two'])
    expect(pulls.namespacesPulling('docker.io/library/debian:13')).toEqual([])
    expect(pulls.namespacesPulling('no image//')).toEqual([])
  })

  test('is one no more when it has ended, well or not', () => {
    const pulls = new KubeletPulls()
    const begun = [true, false].map((isGood) => {
      const pull = pulls.begin(request('r.example/app', String(isGood), alice))
      if (isGood) pull?.succeeded()
      return pull
    })
    for (const pull of begun) pull?.[Symbol.dispose]()
    expect(pulls.namespacesPulling('r.example/app:latest')).toEqual([])
  })
})
