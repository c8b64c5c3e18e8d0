import { create, fromJson, type MessageInitShape, toBinary } from '@bufbuild/protobuf'
import { CID } from 'multiformats/cid'
import { describe, expect, test } from 'vitest'
import { readDeploymentFile } from '../../../agent/client/deployment-file.ts'
import { DeploymentFileError } from '../../../agent/client/deployment-file-error.ts'
import type { DescribedPod } from '../../../agent/client/described-pod.ts'
import { readOldDeploymentState } from '../../../agent/client/old-manifest.ts'
import { PodSchema as OldPodSchema } from '../../../proto/messages/apocryph/pod_pb.js'
import { PodSchema } from '../../../proto/messages/ipdr/deploy_pb.js'
import { failureOf } from '../../support/failure-of.ts'

const utf8 = new TextEncoder()
// The root of the golden vectors in research/apocryph.md, appendix A.
const ROOT = 'bafybeifsgierqdgmnlaawzggr4glgew5wnyzxwx3sqbx2bexjizsgp4aay'

/** As publishers of Trusted Pods write them: numbers as text, one-ofs flat, enums by name. */
const SHOP = `containers:
  - name: front
    image:
      url: docker.io/library/httpd:2.4
    entrypoint: [/bin/httpd]
    command: ['-D', FOREGROUND]
    workingDir: /srv
    env:
      LEVEL: info
    ports:
      - name: web
        containerPort: '80'
        servicePort: '8080'
        hostHttpHost: shop.localhost
      - name: raft
        containerPort: '32500'
        hostTcpPort: '0'
    volumes:
      - name: page
        mountPath: /srv/page.html
        readOnly: true
      - name: db
        mountPath: /data
      - name: tmp
        mountPath: /tmp
    resourceRequests:
      - resource: cpu
        amountMillis: '100'
      - resource: memory
        amount: '100000000'
      - resource: nvidia.com/gpu
        amount: '2'
volumes:
  - name: db
    type: VOLUME_FILESYSTEM
    accessMode: VOLUME_RW_MANY
    filesystem:
      resourceRequests:
        - resource: storage
          amountGibi: '1'
  - name: page
    type: VOLUME_SECRET
    secret:
      file: page.html
  - name: tmp
replicas:
  min: 0
  max: 4
  targetPendingRequests: 7
`

function read(text: string | Uint8Array, path = 'dir/Manifest_Shop.yaml'): Promise<DescribedPod> {
  return readDeploymentFile(path, text, {
    async readFile(file) {
      if (file !== 'dir/page.html') throw new Error(`there is no ${file}`)
      return utf8.encode('<p>')
    },
  })
}

async function problemsOf(text: string | Uint8Array, path?: string): Promise<string[]> {
  try {
    await read(text, path)
  } catch (error) {
    if (!(error instanceof DeploymentFileError)) throw error
    return error.problems.map(
      ({ line, column, field, message }) => `${line}:${column} ${field}: ${message}`,
    )
  }
  throw new Error('expected problems, got a pod')
}

/** A manifest of one container. */
function manifest(container: object, pod: object = {}): string {
  const requests = [
    { resource: 'cpu', amountMillis: '10' },
    { resource: 'memory', amountMebi: '64' },
  ]
  const whole = { name: 'a', image: { url: 'nginx' }, resourceRequests: requests, ...container }
  return JSON.stringify({ containers: [whole], ...pod })
}

function manifestMessage(pod: MessageInitShape<typeof OldPodSchema>): Uint8Array {
  return toBinary(OldPodSchema, create(OldPodSchema, pod))
}

describe('a manifest of Trusted Pods', () => {
  test('describes the same pod here', async () => {
    const { pod, localImages, localSecrets, remarks } = await read(SHOP)
    expect(pod).toEqual(
      create(PodSchema, {
        name: 'manifest-shop',
        containers: [
          {
            name: 'front',
            image: 'docker.io/library/httpd:2.4',
            entrypoint: ['/bin/httpd'],
            arguments: ['-D', 'FOREGROUND'],
            workingDir: '/srv',
            env: { LEVEL: 'info' },
            ports: [
              {
                name: 'web',
                containerPort: 80,
                servicePort: 8080,
                exposure: { case: 'httpHost', value: 'shop.localhost' },
              },
              {
                name: 'raft',
                containerPort: 32_500,
                servicePort: 32_500,
                exposure: { case: 'tcpPort', value: 0 },
              },
            ],
            mounts: [
              { volume: 'page', path: '/srv/page.html', readOnly: true },
              { volume: 'db', path: '/data' },
              { volume: 'tmp', path: '/tmp' },
            ],
            cpuMillis: 100,
            memoryBytes: 100_000_000n,
            devices: { 'nvidia.com/gpu': 2 },
          },
        ],
        volumes: [
          { name: 'db', source: { case: 'disk', value: { bytes: 1_073_741_824n, shared: true } } },
          { name: 'page', source: { case: 'secret', value: { contents: utf8.encode('<p>') } } },
          { name: 'tmp', source: { case: 'scratch', value: { bytes: 1_073_741_824n } } },
        ],
        scaling: { min: 0, max: 4, pendingRequests: 7 },
      }),
    )
    expect(localImages).toEqual([])
    expect(localSecrets).toEqual([{ volume: 'page', path: 'dir/page.html' }])
    expect(remarks.map(({ line, field }) => [line, field])).toEqual([[45, 'volumes[2]']])
  })

  test('may be JSON, or the message itself', async () => {
    const pod = {
      containers: [
        {
          name: 'a',
          image: { url: 'nginx' },
          resourceRequests: [
            { resource: 'cpu', amount: '2' },
            { resource: 'memory', amountKibi: '65536' },
          ],
        },
      ],
      replicas: { min: 1, max: 1 },
    }
    const fromText = await read(JSON.stringify(pod), 'pod.json')
    const message = toBinary(OldPodSchema, fromJson(OldPodSchema, pod))
    expect((await read(message, 'pod.pb')).pod).toEqual(fromText.pod)
    expect(fromText.pod.containers[0]).toMatchObject({ cpuMillis: 2000, memoryBytes: 67_108_864n })
  })

  test.each([
    ['in binary, as Trusted Pods has it', CID.parse(ROOT).bytes],
    ['as text, as Apocryph has it', utf8.encode(ROOT)],
  ])('names an image by its CID %s', async (_, bytes) => {
    const cid = Buffer.from(bytes).toString('base64')
    const { pod } = await read(manifest({ image: { cid, url: 'docker.io/a/b' } }))
    expect(pod.containers[0]?.image).toBe(`ipdr.internal/${ROOT}`)
  })

  test('names one in CIDv0 too', async () => {
    const v0 = CID.parse('QmRyQvNzZSk7N8ugZmvo5LApVtY2m6ns754E6yMkuCpU9K')
    const { pod } = await read(
      manifest({ image: { cid: Buffer.from(v0.bytes).toString('base64') } }),
    )
    expect(pod.containers[0]?.image).toBe(`ipdr.internal/${v0.toV1().toString()}`)
  })

  test.each([
    [{ contentsString: 'text' }, 'text'],
    [{ contents: Buffer.from([0, 255]).toString('base64') }, Uint8Array.of(0, 255)],
    [{}, ''],
  ])('holds a secret by itself: %j', async (secret, expected) => {
    const volumes = [{ name: 's', type: 'VOLUME_SECRET', secret }]
    const { pod } = await read(manifest({}, { volumes }))
    const contents = typeof expected === 'string' ? utf8.encode(expected) : expected
    expect(pod.volumes[0]?.source).toMatchObject({ case: 'secret', value: { contents } })
  })

  test('without replicas sleeps if a host wakes it, and else does not', async () => {
    const ports = [{ name: 'w', containerPort: '80', hostHttpHost: 'a.localhost' }]
    const asleep = await read(manifest({ ports }))
    expect(asleep.pod.scaling).toMatchObject({ min: 0, max: 1 })
    expect(asleep.remarks.map(({ field }) => field)).toEqual(['replicas.max'])
    const awake = await read(manifest({}))
    expect(awake.pod.scaling).toMatchObject({ min: 1, max: 1 })
    expect(awake.remarks).toEqual([])
  })

  test('has its mistakes named, all of them, where they are', async () => {
    const text = `containers:
  - name: Front_End
    image: { urll: nginx }
    ports:
      - containerPort: 'eighty'
        hostUdpPort: 5
      - { name: x, containerPort: '1', hostHttpHost: a.b, hostTcpPort: '5' }
    env: { N: 5 }
    entrypoint: [1]
volumes:
  - { name: v, type: VOLUME_DISK }
`
    expect(await problemsOf(text)).toEqual([
      '3:14 containers[0].image.urll: there is no such field in these manifests; did you mean url?',
      "5:24 containers[0].ports[0].containerPort: must be a whole number, as '80'",
      '6:9 containers[0].ports[0].hostUdpPort: there is no such field in these manifests; did you mean hostTcpPort?',
      '7:59 containers[0].ports[1].hostTcpPort: hostHttpHost is there already; remove one of them',
      '8:15 containers[0].env.N: must be text; put it into quotes',
      '9:18 containers[0].entrypoint[0]: must be text; put it into quotes',
      '11:22 volumes[0].type: must be one of VOLUME_EMPTY, VOLUME_FILESYSTEM, VOLUME_SECRET',
    ])
  })

  test('has what is wrong by our own rules named by its own fields', async () => {
    const text = `containers:
  - name: front
    image: { url: Nginx }
    ports:
      - containerPort: '99999'
      - { name: x, containerPort: '1', hostTcpPort: '77777' }
    volumes:
      - { name: dta, mountPath: rel }
  - name: front
volumes:
  - { name: data, type: VOLUME_FILESYSTEM }
  - { name: odd, secret: { file: x } }
  - { name: none, type: VOLUME_SECRET }
replicas: { min: 3, max: 2 }
`
    expect(await problemsOf(text)).toEqual([
      "2:5 containers[0].resourceRequests: has no cpu; add { resource: cpu, amountMillis: '250' }",
      "2:5 containers[0].resourceRequests: has no memory; add { resource: memory, amountMebi: '128' }",
      '3:19 containers[0].image.url: has upper-case letters; write nginx',
      '5:9 containers[0].ports[0].name: is missing; write a name, as guestbook',
      '5:24 containers[0].ports[0].containerPort: must be between 1 and 65535',
      '6:53 containers[0].ports[1].hostTcpPort: must be between 1 and 65535, or auto',
      "8:17 containers[0].volumes[0].name: there is no volume 'dta'; did you mean data?",
      '8:33 containers[0].volumes[0].mountPath: must be an absolute path without colons, as /var/lib/data',
      "9:5 containers[1].resourceRequests: has no cpu; add { resource: cpu, amountMillis: '250' }",
      "9:5 containers[1].resourceRequests: has no memory; add { resource: memory, amountMebi: '128' }",
      '9:5 containers[1].image: is missing; write image: { url: docker.io/library/nginx }',
      "9:11 containers[1].name: 'front' is the name of another one too",
      "11:5 volumes[0]: has no size; write filesystem: { resourceRequests: [{ resource: storage, amount: '1073741824' }] }",
      '12:5 volumes[1]: has secret, but its type says that it is empty; write type: VOLUME_SECRET',
      '13:5 volumes[2]: has no secret; write secret: { file: … }',
      '14:26 replicas.max: is less than min; write 3 or more',
    ])
  })

  test.each([
    [
      'a key of an image',
      manifest({ image: { url: 'a', key: { data: 'AAAA' } } }),
      'containers[0].image.key: has no counterpart here: keys of images do not pass through deployments; publish the image again with ipdr push, for the node as a recipient',
    ],
    [
      'details of a signature',
      manifest({ image: { url: 'a', verificationDetails: { identity: 'x' } } }),
      'containers[0].image.verificationDetails: has no counterpart here',
    ],
    [
      'a secret on IPFS',
      manifest(
        {},
        {
          volumes: [
            { name: 's', type: 'VOLUME_SECRET', secret: { cid: 'AAAA', key: { data: 'AAAA' } } },
          ],
        },
      ),
      'volumes[0].secret: has no counterpart here',
    ],
    [
      'settings for verification',
      manifest({}, { verificationSettings: { forcePolicy: true } }),
      'verificationSettings: has no counterpart here',
    ],
    [
      'a key pair',
      manifest({}, { keyPair: { privateKey: '00' } }),
      'keyPair: has no counterpart here',
    ],
    [
      'another resource',
      manifest({ resourceRequests: [{ resource: 'storage', amount: '1' }] }),
      'containers[0].resourceRequests[0].resource: has no counterpart here',
    ],
    [
      'a CID that is none',
      manifest({ image: { cid: 'AAAA' } }),
      'containers[0].image.cid: is no CID, neither in binary nor as text in base32',
    ],
  ])('with %s is refused, and says so', async (_, text, problem) => {
    expect((await problemsOf(text)).join('\n')).toContain(problem)
  })

  test('in binary form has its fields named, and no lines', async () => {
    const message = manifestMessage({ containers: [{ name: 'a', image: { url: 'Nginx' } }] })
    const { message: text } = await failureOf(() => read(message, 'pod.pb'))
    expect(text).toContain('pod.pb: containers[0].image.url: has upper-case letters; write nginx')
    expect(await problemsOf(Uint8Array.of(0xff), 'pod.pb')).toEqual([
      expect.stringContaining('is no manifest in binary form'),
    ])
  })

  test('is taken for one of ours where it names images as ours do', async () => {
    expect(await problemsOf('name: a\ncontainers: [{ image: nginx }]')).toContain(
      '2:13 containers: must be a map of containers by name, not a list of containers',
    )
  })
})

describe('the state file of a deployment', () => {
  const b64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64')

  test('says with whom it is, what pays for it, and what was uploaded', () => {
    const text = `podManifestFile: manifest.yaml
provider:
  ethereumAddress: PERE3dtnqQD6Kxhd0pngPRL6QpO8
  libp2pAddress: /p2p/12D3KooWHFNTxc5RZSSe5ygPPYSE8V9hvUkNV5nWhMVqQkQJkNxT
payment:
  chainID: eml=
  paymentContractAddress: 5/FyXnc0ziiPg2fhuxQ+kLs/BRI=
  publisherAddress: PETNzdutuQ+mALKFXdKZ4D0S+kKTvA==
  podID: AQ==
images:
  - sourceUrl: docker.io/library/redis
    digest: sha256:00
    cid: ${b64(CID.parse(ROOT).bytes)}
    key: { data: ${b64(utf8.encode('{}'))} }
  - sourceUrl: docker.io/library/httpd
secrets:
  - volumeName: page
deployed:
  namespace: tpod-x
`.replace(
      'PERE3dtnqQD6Kxhd0pngPRL6QpO8',
      b64(Buffer.from('70997970c51812dc3a010c7d01b50e0d17dc79c8', 'hex')),
    )
    const publisher = b64(Buffer.from('3c44cdddb6a900fa2b585dd299e03d12fa4293bc', 'hex'))
    const state = readOldDeploymentState(
      text.replace('PETNzdutuQ+mALKFXdKZ4D0S+kKTvA==', publisher),
    )
    expect(state).toEqual({
      manifestPath: 'manifest.yaml',
      provider: {
        ethereumAddress: '0x70997970c51812dc3a010c7d01b50e0d17dc79c8',
        libp2pAddress: '/p2p/12D3KooWHFNTxc5RZSSe5ygPPYSE8V9hvUkNV5nWhMVqQkQJkNxT',
      },
      payment: {
        evmChainId: 31_337n,
        contract: '0xe7f1725e7734ce288f8367e1bb143e90bb3f0512',
        publisher: '0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc',
      },
      podId: `0x${'0'.repeat(63)}1`,
      images: [
        {
          sourceUrl: 'docker.io/library/redis',
          digest: 'sha256:00',
          cid: ROOT,
          key: utf8.encode('{}'),
        },
        { sourceUrl: 'docker.io/library/httpd', digest: '', cid: undefined, key: undefined },
      ],
    })
  })

  test('may say nothing yet', () => {
    expect(readOldDeploymentState('{}')).toMatchObject({ provider: undefined, images: [] })
    expect(readOldDeploymentState('payment: { podID: "" }').podId).toBeUndefined()
  })

  test.each([
    ['[]', 'state.yaml:1:1: must be the state file of a deployment'],
    [
      'payment: { podID: "***" }',
      'state.yaml:1:19: payment.podID: must be up to 32 bytes in base64',
    ],
    [
      `payment: { podID: ${Buffer.alloc(33).toString('base64')} }`,
      'payment.podID: must be up to 32 bytes in base64',
    ],
    [
      'provider: { ethereumAddress: AAAA }',
      'state.yaml:1:30: provider.ethereumAddress: must be an address of 20 bytes in base64',
    ],
    ['images: [{ cid: AAAA }]', 'state.yaml:1:17: images[0].cid: must be a CID in base64'],
  ])('%s is refused', async (text, problem) => {
    const { message, name } = await failureOf(() => readOldDeploymentState(text, 'state.yaml'))
    expect([name, message]).toEqual(['DeploymentFileError', expect.stringContaining(problem)])
  })
})
