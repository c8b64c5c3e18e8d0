import { create, equals, toBinary } from '@bufbuild/protobuf'
import { describe, expect, test } from 'vitest'
import { readDeploymentFile } from '../../../agent/client/deployment-file.ts'
import { DeploymentFileError } from '../../../agent/client/deployment-file-error.ts'
import { DEPLOYMENT_LIMITS } from '../../../agent/client/deployment-limits.ts'
import type { DescribedPod } from '../../../agent/client/described-pod.ts'
import { PodSchema } from '../../../proto/messages/ipdr/deploy_pb.js'
import { failureOf } from '../../support/failure-of.ts'

const CID = 'bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi'
const PROVIDER =
  '/dns4/node.example.com/tcp/4011/p2p/12D3KooWHFNTxc5RZSSe5ygPPYSE8V9hvUkNV5nWhMVqQkQJkNxT'
const utf8 = new TextEncoder()

type Files = Readonly<Record<string, string | Uint8Array>>

function read(
  text: string | Uint8Array,
  files: Files = {},
  environment: Readonly<Record<string, string>> = {},
): Promise<DescribedPod> {
  return readDeploymentFile('app/ipdr.yaml', text, {
    async readFile(path) {
      const contents = files[path]
      if (contents === undefined) throw new Error(`ENOENT: there is no ${path}`)
      return typeof contents === 'string' ? utf8.encode(contents) : contents
    },
    environment,
  })
}

/** Everything that is said of a file, without its name. */
async function problemsOf(text: string | Uint8Array, files: Files = {}): Promise<string[]> {
  try {
    await read(text, files)
  } catch (error) {
    if (!(error instanceof DeploymentFileError)) throw error
    return error.problems.map(
      ({ line, column, field, message }) => `${line}:${column} ${field}: ${message}`,
    )
  }
  throw new Error('expected problems, got a pod')
}

/** A container with `lines` in it. */
function container(...lines: readonly string[]): string {
  const all = ['image: nginx', 'cpu: 1', 'memory: 64MiB', ...lines]
  return `name: a\ncontainers:\n  web:\n${all.map((line) => `    ${line}\n`).join('')}`
}

describe('a deployment file', () => {
  test('says everything that a pod can be asked for', async () => {
    const { pod, provider, localImages, localSecrets } = await read(
      `name: guestbook
provider: ${PROVIDER}
containers:
  web:
    image: ${CID}:v1
    cpu: 250m
    memory: 128MiB
    entrypoint: [/bin/app]
    command: [--port, 8080, true]
    working_dir: /app
    environment: { REDIS_HOST: localhost }
    ports:
      - { name: http, container: 80, host: Guestbook.example.com }
      - { name: admin, container: 81, service: 8081, host: admin.example.com }
      - { name: game, container: 7777, tcp: auto }
      - { name: wire, container: 7778, tcp: 30080 }
    volumes:
      - data:/var/lib/data
      - key:/run/key.pem:ro
      - { volume: tmp, path: /tmp, read_only: true }
    devices: { nvidia.com/gpu: 1 }
  cache: { image: ./cache.tar, cpu: 0.5, memory: 1GB, environment: [A=b=c, D=] }
volumes:
  data: { disk: 1GiB, shared: true }
  tmp: { scratch: 100MiB }
  key: { secret: { file: ./key.pem } }
  word: { secret: { text: "open sesame" } }
  bits: { secret: { base64: AAEC/w== } }
  given: { secret: { env: TOKEN } }
scaling: { min: 0, max: 3, pending_requests: 20 }
logins:
  ghcr.io: { username: me, password_file: token }
  "localhost:5000": { username: me, password_env: TOKEN }
runtime_class: kata
`,
      { 'app/key.pem': 'PEM', 'app/token': 'ghp_x\r\n' },
      { TOKEN: 's3cret' },
    )
    const expected = create(PodSchema, {
      name: 'guestbook',
      containers: [
        {
          name: 'web',
          image: `ipdr.internal/${CID}:v1`,
          entrypoint: ['/bin/app'],
          arguments: ['--port', '8080', 'true'],
          workingDir: '/app',
          env: { REDIS_HOST: 'localhost' },
          ports: [
            {
              name: 'http',
              containerPort: 80,
              servicePort: 80,
              exposure: { case: 'httpHost', value: 'guestbook.example.com' },
            },
            {
              name: 'admin',
              containerPort: 81,
              servicePort: 8081,
              exposure: { case: 'httpHost', value: 'admin.example.com' },
            },
            {
              name: 'game',
              containerPort: 7777,
              servicePort: 7777,
              exposure: { case: 'tcpPort', value: 0 },
            },
            {
              name: 'wire',
              containerPort: 7778,
              servicePort: 7778,
              exposure: { case: 'tcpPort', value: 30_080 },
            },
          ],
          mounts: [
            { volume: 'data', path: '/var/lib/data' },
            { volume: 'key', path: '/run/key.pem', readOnly: true },
            { volume: 'tmp', path: '/tmp', readOnly: true },
          ],
          cpuMillis: 250,
          memoryBytes: 134_217_728n,
          devices: { 'nvidia.com/gpu': 1 },
        },
        {
          name: 'cache',
          cpuMillis: 500,
          memoryBytes: 1_000_000_000n,
          env: { A: 'b=c', D: '' },
        },
      ],
      volumes: [
        { name: 'data', source: { case: 'disk', value: { bytes: 1_073_741_824n, shared: true } } },
        { name: 'tmp', source: { case: 'scratch', value: { bytes: 104_857_600n } } },
        { name: 'key', source: { case: 'secret', value: { contents: utf8.encode('PEM') } } },
        {
          name: 'word',
          source: { case: 'secret', value: { contents: utf8.encode('open sesame') } },
        },
        {
          name: 'bits',
          source: { case: 'secret', value: { contents: Uint8Array.of(0, 1, 2, 255) } },
        },
        { name: 'given', source: { case: 'secret', value: { contents: utf8.encode('s3cret') } } },
      ],
      scaling: { min: 0, max: 3, pendingRequests: 20 },
      registryLogins: [
        { server: 'ghcr.io', username: 'me', password: 'ghp_x' },
        { server: 'localhost:5000', username: 'me', password: 's3cret' },
      ],
      runtimeClass: 'kata',
    })
    expect(pod).toEqual(expected)
    expect(equals(PodSchema, pod, expected)).toBe(true)
    expect(provider).toBe(PROVIDER)
    expect(localImages).toEqual([{ container: 'cache', path: 'app/cache.tar' }])
    expect(localSecrets).toEqual([{ volume: 'key', path: 'app/key.pem' }])
  })

  test('asks for one replica unless it says more, and for no fewer at most than at least', async () => {
    expect((await read(container())).pod.scaling).toMatchObject({ min: 1, max: 1 })
    const scaled = `${container()}scaling: { min: 4 }\n`
    expect((await read(scaled)).pod.scaling).toMatchObject({ min: 4, max: 4 })
  })

  test('keeps words as they are written, where YAML sees numbers and truth', async () => {
    const text = container(
      'environment: { V: 1.10, N: 0x10, B: true, Y: yes, E: "" }',
      'command: [1.0, 1e3]',
    )
    const [web] = (await read(text)).pod.containers
    expect(web?.env).toEqual({ V: '1.10', N: '0x10', B: 'true', Y: 'yes', E: '' })
    expect(web?.arguments).toEqual(['1.0', '1e3'])
  })

  test('may be JSON, and may use an anchor for what is there twice', async () => {
    const json = JSON.stringify({
      name: 'a',
      containers: { web: { image: 'nginx', cpu: 1, memory: '64MiB' } },
    })
    expect((await read(json)).pod.containers[0]?.cpuMillis).toBe(1000)
    const aliased = `name: a
containers:
  one: &one { image: nginx, cpu: 1, memory: 64MiB }
  two: *one
`
    expect((await read(aliased)).pod.containers.map(({ image }) => image)).toEqual([
      'nginx',
      'nginx',
    ])
  })

  test('is remarked upon where it is allowed and perhaps not meant', async () => {
    const text = `${container('volumes: [data:/data]')}volumes:
  data: { disk: 1GiB }
  unused: { scratch: 1GiB }
scaling: { max: 2 }
`
    const { remarks } = await read(text)
    expect(remarks.map(({ line, field }) => [line, field])).toEqual([
      [9, 'volumes.data'],
      [10, 'volumes.unused'],
    ])
  })

  test.each([
    ['/abs/app.tar', '/abs/app.tar'],
    ['../app', 'app/../app'],
    ['././app.tar', 'app/app.tar'],
  ])('means a file by an image of %s', async (image, path) => {
    const { pod, localImages } = await read(container().replace('nginx', image))
    expect(localImages).toEqual([{ container: 'web', path }])
    expect(pod.containers[0]?.image).toBe('')
  })

  test.each([
    [
      'QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKPbdG',
      'ipdr.internal/bafybeie5nqv6kd3qnfjupgvz34woh3oksc3iau6abmyajn7qvtf47mvof4',
    ],
    [`ipfs://${CID}`, `ipdr.internal/${CID}`],
    [`/ipfs/${CID}`, `ipdr.internal/${CID}`],
    [`ipdr.internal/app:${CID}`, `ipdr.internal/${CID}`],
    ['docker://ghcr.io/a/b:1', 'ghcr.io/a/b:1'],
    [`r.example:5000/a/b@sha256:${'a'.repeat(64)}`, `r.example:5000/a/b@sha256:${'a'.repeat(64)}`],
  ])('takes %s for an image', async (image, name) => {
    const text = container().replace('nginx', JSON.stringify(image))
    expect((await read(text)).pod.containers[0]?.image).toBe(name)
  })
})

describe('what is wrong with a deployment file', () => {
  test('is said all at once, by place, with what to write instead', async () => {
    const text = `nam: x
containers:
  Web_1:
    imagee: nginx
    cpu: 250M
    memory: 128m
    command: run me
    environment: { A: , B: [1] }
    ports:
      - 8080:80
      - { name: a, container: 99999, host: "http://x", tcp: 1 }
      - { name: a, container: 80, servic: 3 }
    volumes:
      - dat:/x
      - ./foo:/y
      - { volume: data, path: /x, readonly: true }
  b:
    image: Nginx
    mem_limit: 5
volumes:
  data: { disk: 10, scratch: 5GB }
scaling: { min: 5, max: 2 }
`
    const { message, code, name } = await failureOf(() => read(text))
    expect([name, code]).toEqual(['DeploymentFileError', 'INVALID_ARGUMENT'])
    const [heading, ...lines] = message.split('\n')
    expect(heading).toBe('app/ipdr.yaml has 27 problems')
    expect(lines.map((line) => line.replace('app/ipdr.yaml:', ''))).toEqual([
      '1:1: name: is missing; write a name, as guestbook',
      '1:1: nam: there is no such field; did you mean name?',
      '3:3: containers.Web_1.image: is missing; write ipdr.internal/<CID>, or an image of a registry',
      "3:3: containers.Web_1: 'Web_1' is no name for an object of the cluster; write lower-case letters, digits and hyphens between them, 40 at most",
      '4:5: containers.Web_1.imagee: there is no such field; did you mean image?',
      "5:10: containers.Web_1.cpu: '250M' is no number of cores; write cores, as 0.5, or thousandths of one, as 500m",
      "6:13: containers.Web_1.memory: '128m' can be read in two ways; write 128MiB for powers of 1024, or 128MB for powers of 1000",
      '7:14: containers.Web_1.command: must be a list; for a line that a shell reads, write ["sh", "-c", "run me"]',
      '8:20: containers.Web_1.environment.A: is empty; write text',
      '8:28: containers.Web_1.environment.B: must be text',
      '10:9: containers.Web_1.ports[0]: must be a map, as { name: http, container: 80 }',
      '11:31: containers.Web_1.ports[1].container: must be between 1 and 65535',
      '11:44: containers.Web_1.ports[1].host: must be a host name alone, as guestbook.example.com, without http:// and port',
      '11:56: containers.Web_1.ports[1].tcp: a port has host or tcp; write a second port with another name',
      "12:17: containers.Web_1.ports[2].name: 'a' is the name of another port too; names of ports are unique in the pod",
      '12:35: containers.Web_1.ports[2].servic: there is no such field; did you mean service?',
      "14:9: containers.Web_1.volumes[0]: there is no volume 'dat'; did you mean data?",
      '15:9: containers.Web_1.volumes[1]: folders of this machine are not there on the node; write the name of a volume, and for a file a volume with secret',
      '16:9: containers.Web_1.volumes[2]: something else is mounted at /x already',
      '16:35: containers.Web_1.volumes[2].readonly: there is no such field; did you mean read_only?',
      '17:3: containers.b.cpu: is missing; write cores, as 0.5, or thousandths of one, as 500m',
      '17:3: containers.b.memory: is missing; write a number of bytes with its unit, as 128MiB',
      '18:12: containers.b.image: has upper-case letters; write nginx',
      '19:5: containers.b.mem_limit: there is no such field; write memory',
      '21:17: volumes.data.disk: 10 without a unit means bytes, and the least is 1MiB; write as in 128MiB',
      '21:21: volumes.data.scratch: disk is there already; there may be one of disk, scratch or secret',
      '22:25: scaling.max: is less than min; write 5 or more',
    ])
  })

  test.each([
    ['', '1:1 : is empty; write a map with name and containers'],
    ['services: {}', '1:1 services: there is no such field; write containers'],
    [
      'name: x\ncontainers: []',
      '2:13 containers: must be a map of containers by name, not a list of containers',
    ],
    ['name: x\ncontainers: {}', '2:13 containers: is empty; a pod needs one container at least'],
    [
      container('prots: []'),
      '7:5 containers.web.prots: there is no such field; did you mean ports?',
    ],
    [
      container('environment: [A]'),
      '7:19 containers.web.environment[0]: has no value; write A=value',
    ],
    [
      container('environment: [A=1, A=2]'),
      '7:24 containers.web.environment[1]: A is here twice; remove one of them',
    ],
    [
      container('environment: { "a b": c }'),
      '7:20 containers.web.environment."a b": \'a b\' is no name of a variable; write letters, digits and _',
    ],
    [
      container('working_dir: app'),
      '7:18 containers.web.working_dir: must be an absolute path without colons, as /var/lib/data',
    ],
    [
      container('ports: [{ name: a, container: 80 }, { name: b, container: 80 }]'),
      '7:63 containers.web.ports[1].container: 80 is the port of another entry too; a port of a container has one entry',
    ],
    [
      container(
        'ports: [{ name: a, container: 1, host: a.b }, { name: b, container: 2, host: A.b }]',
      ),
      "7:82 containers.web.ports[1].host: 'A.b' is the host of another port too; requests can go to one",
    ],
    [
      container('ports: [{ name: a, container: 1, tcp: 0 }]'),
      '7:43 containers.web.ports[0].tcp: must be between 1 and 65535, or auto',
    ],
    [
      container('devices: { gpu: 1 }'),
      '7:16 containers.web.devices.gpu: is no name of a device; write it as Kubernetes does, as nvidia.com/gpu',
    ],
    [
      container('volumes: [data]'),
      '7:15 containers.web.volumes[0]: must be volume:/path, volume:/path:ro, or a map with volume and path',
    ],
    [container('volumes: [key:/]'), '7:15 containers.web.volumes[0]: must have a path below /'],
    [
      `${container()}volumes: { k: { secret: { text: 5 } } }`,
      '7:33 volumes.k.secret.text: must be text; put numbers into quotes',
    ],
    [
      `${container()}volumes: { k: { secret: {} } }`,
      '7:25 volumes.k.secret: must have file, text, base64 or env',
    ],
    [
      `${container()}volumes: { s: { scratch: 1GB, shared: true } }`,
      '7:31 volumes.s.shared: only a disk can be shared; remove it',
    ],
    [
      `${container()}volumes: { s: { secret: { file: x } } }`,
      '7:33 volumes.s.secret.file: cannot be read: ENOENT: there is no app/x',
    ],
    [
      `${container()}volumes: { s: { secret: { env: X } } }`,
      '7:32 volumes.s.secret.env: there is no variable X in the environment; export it first',
    ],
    [
      `${container()}scaling: { min: 0 }`,
      '7:17 scaling.min: nothing would wake it: it sleeps until an HTTP request comes, and no port has a host; write 1, or give a port a host',
    ],
    [`${container()}scaling: { max: 101 }`, '7:17 scaling.max: must be 100 at most'],
    [
      `${container()}logins: { ghcr.io: { username: a, password: b } }`,
      '7:35 logins."ghcr.io".password: there is no such field; passwords do not belong into this file; write password_file or password_env',
    ],
    [
      `${container()}provider: 1.2.3.4`,
      '7:11 provider: must be a multiaddr that ends in a peer ID, as /dns4/node.example.com/tcp/4011/p2p/12D3KooW…',
    ],
    [
      container().replace('nginx', 'ipdr.internal/app:1'),
      '4:12 containers.web.image: holds no CID; write ipdr.internal/<CID>, as ipdr push prints it',
    ],
    [
      container().replace('nginx', 'https://ghcr.io/a'),
      '4:12 containers.web.image: is an address; write the name alone, as ghcr.io/a',
    ],
    [
      container().replace('cpu: 1', 'cpu: 0.0001'),
      "5:10 containers.web.cpu: '0.0001' is no whole number of thousandths of a core; the least is 1m",
    ],
    [
      container().replace('64MiB', '64 megs'),
      '6:13 containers.web.memory: megs is no unit of bytes; write KiB, MiB, GiB or TiB, or kB, MB, GB or TB',
    ],
    [
      container().replace('64MiB', '64'),
      '6:13 containers.web.memory: 64 without a unit means bytes, and the least is 4MiB; write as in 128MiB',
    ],
    [
      container().replace('web:', `${'a'.repeat(41)}:`),
      `3:3 containers.${'a'.repeat(41)}: '${'a'.repeat(41)}' is no name for an object of the cluster; write lower-case letters, digits and hyphens between them, 40 at most`,
    ],
  ])('names its place: case %#', async (text, problem) => {
    expect((await problemsOf(text)).join('\n')).toContain(problem)
  })
})

describe('a hostile file', () => {
  test.each([
    ['tags', 'a: !!js/function x', 'tags are not used here; write the value alone'],
    ['binary tags', 'a: !!binary AAEC', 'tags are not used here; write the value alone'],
    ['the same key twice', 'name: a\nname: b', 'this key is here twice; remove one of them'],
    [
      'two documents',
      'name: a\n---\nname: b',
      'holds more than one document; write each pod into a file of its own',
    ],
    [
      'merge keys',
      '<<: { a: b }',
      'there is no such field; merge keys are not known here; write the values out',
    ],
    ['an alias to nowhere', 'name: *b', 'there is no &b before this alias'],
    ['a prototype', '__proto__: {}', '__proto__ cannot be used; choose another word'],
    [
      'half a character',
      'name: "\\uD800"',
      'has a character that no program can be given: NUL, or half of a surrogate pair',
    ],
    [
      'a NUL',
      'name: "\\0"',
      'has a character that no program can be given: NUL, or half of a surrogate pair',
    ],
    [
      'lists within lists',
      '- '.repeat(200_000),
      'has more than 16 maps and lists within each other',
    ],
    ['flow within flow', '['.repeat(200_000), 'has more than 16 maps and lists within each other'],
    [
      'many keys',
      Array.from({ length: 50_000 }, (_, i) => `k${i}: 1\n`).join(''),
      'has a map or list of more than 1000 entries',
    ],
    [
      'many lists of many',
      `a: &a [${'x,'.repeat(900)}]\n`
        .repeat(1)
        .concat(Array.from({ length: 30 }, (_, i) => `k${i}: [${'x,'.repeat(900)}]\n`).join('')),
      'has more than 20000 entries',
    ],
    ['many aliases', `a: &a x\nb: [${'*a,'.repeat(200)}]`, 'has more than 100 aliases'],
    [
      'aliases of aliases',
      `a: &a [${'x,'.repeat(9)}]\nb: &b [${'*a,'.repeat(9)}]\nc: &c [${'*b,'.repeat(9)}]\nd: [${'*c,'.repeat(9)}]`,
      'its aliases cannot be resolved: Excessive alias count indicates a resource exhaustion attack',
    ],
    [
      'an alias of itself',
      'name: a\ncontainers: &a { web: *a }',
      'there is no such field; there are image',
    ],
  ])('with %s is refused', async (_, text, message) => {
    const started = performance.now()
    expect((await problemsOf(text)).join('\n')).toContain(message)
    // Reading 400 KB takes a second at most; anything quadratic takes minutes.
    expect(performance.now() - started).toBeLessThan(10_000)
  })

  test('that is no text, or too long, is refused', async () => {
    expect(await problemsOf(Uint8Array.of(0xff, 0xfe))).toEqual([
      'undefined:undefined : is no text in UTF-8',
    ])
    const long = '#'.repeat(DEPLOYMENT_LIMITS.fileBytesMax + 1)
    for (const text of [long, utf8.encode(long)]) {
      expect(await problemsOf(text)).toEqual([
        'undefined:undefined : has 1048577 bytes, it may have 1048576',
      ])
    }
  })
})

describe('a limit', () => {
  const many = <T>(count: number, make: (index: number) => T): T[] =>
    Array.from({ length: count }, (_, index) => make(index))
  const one = { image: 'nginx', cpu: 1, memory: '64MiB' }
  const only = (fields: object): object => ({ containers: { web: { ...one, ...fields } } })
  const named = (count: number, value: unknown): object =>
    Object.fromEntries(many(count, (index) => [`n${index}`, value]))
  const text = (length: number): string => 'x'.repeat(length)

  test.each<[string, (count: number) => object, number, RegExp]>([
    [
      'containers',
      (count) => ({ containers: named(count, one) }),
      16,
      /has 17 containers, there may be 16/,
    ],
    [
      'volumes',
      (count) => ({ ...only({}), volumes: named(count, { scratch: '1GiB' }) }),
      32,
      /has 33 volumes, there may be 32/,
    ],
    [
      'ports',
      (count) => only({ ports: many(count, (i) => ({ name: `p${i}`, container: i + 1 })) }),
      32,
      /may have 32 ports at most/,
    ],
    [
      'mounts',
      (count) => ({
        ...only({ volumes: many(count, (i) => `v:/m${i}`) }),
        volumes: { v: { scratch: '1GiB' } },
      }),
      64,
      /may have 64 volumes at most/,
    ],
    [
      'variables',
      (count) => only({ environment: named(count, 'x') }),
      256,
      /has 257 variables, there may be 256/,
    ],
    [
      'words',
      (count) => only({ command: many(count - 1, () => 'x'), entrypoint: ['x'] }),
      256,
      /have 257 words, there may be 256/,
    ],
    [
      'bytes of words',
      (count) => only({ environment: { A: text(count - 3) }, command: ['ä'] }),
      65_536,
      /have 65537 bytes, there may be 65536/,
    ],
    ['replicas', (count) => ({ ...only({}), scaling: { max: count } }), 100, /must be 100 at most/],
    [
      'kinds of devices',
      (count) => only({ devices: Object.fromEntries(many(count, (i) => [`a.example/d${i}`, 1])) }),
      8,
      /has 9 kinds of devices, there may be 8/,
    ],
    [
      'bytes of a secret',
      (count) => ({ ...only({}), volumes: { s: { secret: { text: text(count) } } } }),
      524_288,
      /has 524289 bytes, it may have 524288/,
    ],
    [
      'bytes of secrets',
      (count) => ({
        ...only({}),
        volumes: { s: { secret: { text: text(count - 9) } }, t: { secret: { text: text(9) } } },
      }),
      524_288,
      /secrets have 524289 bytes, they may have 524288 together/,
    ],
    ['letters of a name', (count) => ({ containers: { [text(count)]: one } }), 40, /40 at most/],
  ])('of %s holds at its number, and not beyond', async (_, make, max, message) => {
    const file = (count: number): string => JSON.stringify({ name: 'a', ...make(count) })
    expect(toBinary(PodSchema, (await read(file(max))).pod).length).toBeGreaterThan(0)
    expect((await problemsOf(file(max + 1))).join('\n')).toMatch(message)
  })

  test('of base64 is that of its bytes', async () => {
    const file = (bytes: number): string =>
      JSON.stringify({
        name: 'a',
        ...only({}),
        volumes: { s: { secret: { base64: Buffer.alloc(bytes).toString('base64') } } },
      })
    await read(file(524_288))
    expect((await problemsOf(file(524_289))).join()).toContain('it may have 524288')
  })
})
