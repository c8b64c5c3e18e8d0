import { create, fromBinary, type MessageInitShape, toBinary } from '@bufbuild/protobuf'
import { describe, expect, test } from 'vitest'
import { PodError, type PodLimits, parsePod } from '../../../agent/deploy/parse-pod.ts'
import { type Container, type Pod, PodSchema } from '../../../proto/messages/ipdr/deploy_pb.js'
import { seeded } from '../../support/seeded.ts'

const limits: PodLimits = {
  runtimeClasses: ['kata'],
  hostSuffixes: ['.apps.test'],
  hasRoutes: true,
}
const CID = 'bafybeifsgierqdgmnlaawzggr4glgew5wnyzxwx3sqbx2bexjizsgp4aay'

type Init = Omit<Exclude<MessageInitShape<typeof PodSchema>, Pod>, '$typeName'>
type ContainerInit = Exclude<NonNullable<Init['containers']>[number], Container>

const container: ContainerInit = {
  name: 'web',
  image: `ipdr.internal/${CID}`,
  cpuMillis: 100,
  memoryBytes: 2n ** 26n,
}

function parse(pod: Init): ReturnType<typeof parsePod> {
  return parsePod(create(PodSchema, { containers: [container], ...pod }), limits)
}

function withContainer(changes: ContainerInit): ReturnType<typeof parsePod> {
  return parse({ containers: [{ ...container, ...changes }] })
}

test('a pod of one container runs once, and nothing of it is reached from outside', () => {
  expect(parse({ name: 'shop' })).toEqual({
    name: 'shop',
    containers: [
      {
        name: 'web',
        image: `ipdr.internal/${CID}:latest`,
        entrypoint: [],
        arguments: [],
        env: new Map(),
        ports: [],
        mounts: [],
        cpuMillis: 100,
        memoryBytes: 67_108_864,
        devices: new Map(),
      },
    ],
    volumes: [],
    scaling: { min: 1, max: 1 },
    registryLogins: [],
    isStateful: false,
  })
})

test.each([
  [CID, `ipdr.internal/${CID}:latest`],
  [`ipfs://${CID}`, `ipdr.internal/${CID}:latest`],
  [`/ipfs/${CID}`, `ipdr.internal/${CID}:latest`],
  [
    'QmRyQvNzZSk7N8ugZmvo5LApVtY2m6ns754E6yMkuCpU9K',
    'ipdr.internal/bafybeibv7x24wn2ft6c3skcxztge2433ngzfeyaxllk5zilpkiy7y76k6y:latest',
  ],
  [
    `ipdr.internal/${CID}@sha256:${'a'.repeat(64)}`,
    `ipdr.internal/${CID}@sha256:${'a'.repeat(64)}`,
  ],
  ['debian', 'docker.io/library/debian:latest'],
  ['ghcr.io/a/b:1', 'ghcr.io/a/b:1'],
])('the image %s is %s', (image, full) => {
  expect(withContainer({ image }).containers[0]?.image).toBe(full)
})

describe('a mistake is named with its field:', () => {
  test.each<[string, Init]>([
    ['containers: a pod needs at least one', { containers: [] }],
    [
      'containers: are 17, they may be 16',
      { containers: Array.from({ length: 17 }, (_, n) => ({ ...container, name: `c${n}` })) },
    ],
    ["containers[1].name: 'web' is there twice", { containers: [container, container] }],
    ['containers[0].name:', { containers: [{ ...container, name: 'Web' }] }],
    ['containers[0].name:', { containers: [{ ...container, name: 'a'.repeat(41) }] }],
    ['containers[0].name:', { containers: [{ ...container, name: '../../etc' }] }],
    ['containers[0].image: is missing', { containers: [{ ...container, image: '' }] }],
    ['containers[0].image:', { containers: [{ ...container, image: 'ghcr.io/UPPER/case' }] }],
    [
      'containers[0].cpu_millis: is 0, it must be 1 to 512000',
      { containers: [{ ...container, cpuMillis: 0 }] },
    ],
    ['containers[0].cpu_millis:', { containers: [{ ...container, cpuMillis: 4_000_000_000 }] }],
    ['containers[0].memory_bytes: is 1,', { containers: [{ ...container, memoryBytes: 1n }] }],
    ['containers[0].memory_bytes:', { containers: [{ ...container, memoryBytes: 2n ** 63n }] }],
    ["containers[0].env: '1A'", { containers: [{ ...container, env: { '1A': '' } }] }],
    ['containers[0].env.A: has a NUL byte', { containers: [{ ...container, env: { A: 'a\0b' } }] }],
    [
      'containers[0].env: command and variables have',
      { containers: [{ ...container, env: { A: 'x'.repeat(70_000) } }] },
    ],
    [
      'containers[0].entrypoint: may have 256 words',
      { containers: [{ ...container, entrypoint: Array.from({ length: 257 }, () => 'a') }] },
    ],
    ['containers[0].working_dir:', { containers: [{ ...container, workingDir: 'relative' }] }],
    [
      "containers[0].devices: 'hugepages'",
      { containers: [{ ...container, devices: { hugepages: 1 } }] },
    ],
    [
      'containers[0].devices:',
      { containers: [{ ...container, devices: { 'node.kubernetes.io/gpu': 1 } }] },
    ],
    [
      'containers[0].devices.a.com/gpu: must be 1 to 64',
      { containers: [{ ...container, devices: { 'a.com/gpu': 65 } }] },
    ],
    [
      'containers[0].ports[0].container_port: is 0',
      { containers: [{ ...container, ports: [{ name: 'a' }] }] },
    ],
    [
      'containers[0].ports[0].container_port: is 70000',
      { containers: [{ ...container, ports: [{ name: 'a', containerPort: 70_000 }] }] },
    ],
    [
      "containers[0].ports[1].name: 'a' is another port's",
      {
        containers: [
          {
            ...container,
            ports: [
              { name: 'a', containerPort: 1 },
              { name: 'a', containerPort: 2 },
            ],
          },
        ],
      },
    ],
    [
      "containers[0].ports[0].http_host: 'shop.example.com' must end with '.apps.test'",
      {
        containers: [
          {
            ...container,
            ports: [
              {
                name: 'a',
                containerPort: 1,
                exposure: { case: 'httpHost', value: 'shop.example.com' },
              },
            ],
          },
        ],
      },
    ],
    [
      "containers[0].ports[0].http_host: 'a b'",
      {
        containers: [
          {
            ...container,
            ports: [{ name: 'a', containerPort: 1, exposure: { case: 'httpHost', value: 'a b' } }],
          },
        ],
      },
    ],
    [
      "containers[0].ports[0].http_host: '.apps.test'",
      {
        containers: [
          {
            ...container,
            ports: [
              { name: 'a', containerPort: 1, exposure: { case: 'httpHost', value: '.apps.test' } },
            ],
          },
        ],
      },
    ],
    [
      "containers[0].mounts[0].volume: there is no volume 'x'",
      { containers: [{ ...container, mounts: [{ volume: 'x', path: '/x' }] }] },
    ],
    [
      'containers[0].mounts[0].path:',
      { containers: [{ ...container, mounts: [{ volume: 'x', path: '/x/../../etc' }] }] },
    ],
    [
      'containers[0].mounts[0].path:',
      { containers: [{ ...container, mounts: [{ volume: 'x', path: '/' }] }] },
    ],
    [
      'containers[0].mounts[0].path:',
      { containers: [{ ...container, mounts: [{ volume: 'x', path: '/a:ro' }] }] },
    ],
    ...['/var/run/secrets/ipdr.dev', '/run/secrets//./ipdr.dev/scale-down/token/'].map(
      (path): [string, Init] => [
        `containers[0].mounts[0].path: '${path}' is for what the cluster mounts`,
        { containers: [{ ...container, mounts: [{ volume: 'x', path }] }] },
      ],
    ),
    [
      'containers[0].env.IPDR_SCALE_DOWN_URL: is for the cluster to set',
      { containers: [{ ...container, env: { IPDR_SCALE_DOWN_URL: 'http://mine' } }] },
    ],
    ['volumes[0]: must be scratch, disk or secret', { volumes: [{ name: 'x' }] }],
    [
      'volumes[0].disk.bytes: is 0',
      { volumes: [{ name: 'x', source: { case: 'disk', value: {} } }] },
    ],
    [
      'volumes: secrets have 524289 bytes',
      {
        volumes: [
          { name: 'x', source: { case: 'secret', value: { contents: new Uint8Array(524_289) } } },
        ],
      },
    ],
    ['scaling.max: is 1000000000, it may be 100', { scaling: { min: 1, max: 1_000_000_000 } }],
    ['scaling.min: is 3, more than the most, 2', { scaling: { min: 3, max: 2 } }],
    [
      'scaling.min: a pod that no host name leads to would never wake',
      { scaling: { min: 0, max: 2 } },
    ],
    ['scaling.min: a stateful pod cannot sleep', { scaling: { min: 0, max: 2 }, stateful: true }],
    ["runtime_class: this cluster has 'kata', not 'runc'", { runtimeClass: 'runc' }],
    [
      'registry_logins[0].username:',
      { registryLogins: [{ server: 'ghcr.io', username: 'a:b', password: 'x' }] },
    ],
    [
      'registry_logins[0].server:',
      { registryLogins: [{ server: 'a/b', username: 'a', password: 'x' }] },
    ],
  ])('%s', (sentence, pod) => {
    expect(() => parse(pod)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
    expect(() => parse(pod)).toThrow(sentence)
  })

  test('all of them at once, twenty at most', () => {
    const ports = Array.from({ length: 30 }, (_, n) => ({ name: `p${n}`, containerPort: 0 }))
    let message = ''
    try {
      withContainer({ ports })
    } catch (error) {
      message = String(error)
    }
    expect(message.split('; ')).toHaveLength(21)
    expect(message).toMatch(/and \d+ more problems$/)
  })

  test('and nothing that was sent is repeated at length', () => {
    const name = 'x'.repeat(100_000)
    expect(() => withContainer({ name })).toThrow(
      expect.objectContaining({ message: expect.stringMatching(/^.{1,500}$/s) }),
    )
  })
})

test('a host name of the same letters in another case is the same', () => {
  const ports = [
    { name: 'a', containerPort: 1, exposure: { case: 'httpHost', value: 'A.apps.test' } as const },
    { name: 'b', containerPort: 2, exposure: { case: 'httpHost', value: 'a.APPS.test' } as const },
  ]
  expect(() => withContainer({ ports })).toThrow("'a.apps.test' is another port's")
})

test('20,000 changed pods are read, or refused with a sentence', () => {
  const random = seeded(101)
  const whole = toBinary(
    PodSchema,
    create(PodSchema, {
      name: 'shop',
      containers: [
        {
          ...container,
          env: { A: 'b' },
          ports: [
            {
              name: 'http',
              containerPort: 80,
              exposure: { case: 'httpHost', value: 'a.apps.test' },
            },
          ],
          mounts: [{ volume: 'data', path: '/data' }],
          devices: { 'nvidia.com/gpu': 1 },
        },
      ],
      volumes: [{ name: 'data', source: { case: 'disk', value: { bytes: 1n } } }],
      scaling: { min: 0, max: 2 },
      registryLogins: [{ server: 'ghcr.io', username: 'a', password: 'b' }],
    }),
  )
  let read = 0
  for (let round = 0; round < 20_000; round++) {
    const changed = Uint8Array.from(whole)
    for (let change = 0; change <= random(4); change++)
      changed[random(changed.length)] = random(256)
    let pod: ReturnType<typeof create<typeof PodSchema>>
    try {
      pod = fromBinary(PodSchema, changed.subarray(0, 1 + random(changed.length)))
    } catch {
      continue
    }
    try {
      parsePod(pod, limits)
      read++
    } catch (error) {
      if (!(error instanceof PodError)) throw error
    }
  }
  expect(read).toBeGreaterThan(0)
})
