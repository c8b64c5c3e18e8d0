import { create, toBinary } from '@bufbuild/protobuf'
import { readDeploymentFile } from '../../../agent/client/deployment-file.ts'
import { DeploymentFileError } from '../../../agent/client/deployment-file-error.ts'
import { readOldDeploymentState } from '../../../agent/client/old-manifest.ts'
import { parsePod } from '../../../agent/deploy/parse-pod.ts'
import { PodSchema as OldPodSchema } from '../../../proto/messages/apocryph/pod_pb.js'
import type { Pod } from '../../../proto/messages/ipdr/deploy_pb.js'
import { PodSchema } from '../../../proto/messages/ipdr/deploy_pb.js'
import { fuzz, reportTotal } from '../../fuzz/fuzz.ts'
import { mutateBytes, mutateJson } from '../../fuzz/mutate.ts'

// Whatever a file holds, its reader returns a pod or a DeploymentFileError. A pod must be one that the agent takes, and that fits its message:
// whoever was told that a file is right shall not learn otherwise from a provider.

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)

const ours = `name: guestbook
provider: /dns4/node.example.com/tcp/4011/p2p/12D3KooWHFNTxc5RZSSe5ygPPYSE8V9hvUkNV5nWhMVqQkQJkNxT
containers:
  web:
    image: bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi:v1
    cpu: 250m
    memory: 128MiB
    command: [--port, 8080]
    working_dir: /app
    environment: &env { REDIS_HOST: localhost, V: 1.10 }
    ports:
      - { name: http, container: 80, host: guestbook.example.com }
      - { name: game, container: 7777, service: 1, tcp: auto }
    volumes:
      - data:/var/lib/data:ro
      - { volume: key, path: /k.pem, read_only: true }
    devices: { nvidia.com/gpu: 1 }
  local: { image: ./app.tar, cpu: 1, memory: 1GB, environment: *env }
  list: { image: "r.example:5000/a/b@sha256:${'a'.repeat(64)}", cpu: 0.5, memory: 64Mi, environment: [A=b, C=] }
volumes:
  data: { disk: 1GiB, shared: false }
  tmp: { scratch: 100MiB }
  key: { secret: { file: ./key.pem } }
  word: { secret: { text: "word" } }
  bits: { secret: { base64: AAEC } }
scaling: { min: 0, max: 3, pending_requests: 20 }
logins: { ghcr.io: { username: me, password_env: X } }
stateful: false
`

const theirs = {
  containers: [
    {
      name: 'front',
      image: { url: 'docker.io/library/httpd:2.4', cid: '' },
      entrypoint: ['/bin/httpd'],
      command: ['-D'],
      workingDir: '/srv',
      env: { LEVEL: 'info' },
      ports: [
        {
          name: 'web',
          containerPort: '80',
          servicePort: '8080',
          hostHttpHost: 'shop.localhost.test',
        },
        { name: 'raft', containerPort: '32500', hostTcpPort: '0' },
      ],
      volumes: [
        { name: 'db', mountPath: '/data' },
        { name: 'page', mountPath: '/p', readOnly: true },
      ],
      resourceRequests: [
        { resource: 'cpu', amountMillis: '100' },
        { resource: 'memory', amount: '100000000' },
        { resource: 'nvidia.com/gpu', amount: '1' },
      ],
    },
  ],
  volumes: [
    {
      name: 'db',
      type: 'VOLUME_FILESYSTEM',
      filesystem: { resourceRequests: [{ resource: 'storage', amountGibi: '1' }] },
    },
    { name: 'page', type: 'VOLUME_SECRET', secret: { file: 'page.html' } },
    { name: 'word', type: 'VOLUME_SECRET', secret: { contents: 'AAEC' } },
  ],
  replicas: { min: 0, max: 3, targetPendingRequests: 5 },
}

const state = `podManifestFile: manifest.yaml
provider: { ethereumAddress: 5/FyXnc0ziiPg2fhuxQ+kLs/BRI=, libp2pAddress: /p2p/x }
payment: { chainID: eml=, paymentContractAddress: 5/FyXnc0ziiPg2fhuxQ+kLs/BRI=, podID: AQ== }
images: [{ sourceUrl: docker.io/library/redis, digest: "sha256:00", key: { data: AAEC } }]
`

async function read(path: string, contents: Uint8Array): Promise<void> {
  const { pod } = await refusedOnlyByName(() =>
    readDeploymentFile(path, contents, {
      readFile: () => Promise.resolve(bytes('x')),
      environment: { X: 'x' },
    }),
  )
  takenByTheAgent(pod)
}

function takenByTheAgent(pod: Pod): void {
  toBinary(PodSchema, pod)
  const uploaded = pod.containers.map((container) => ({
    ...container,
    image: container.image === '' ? 'ghcr.io/uploaded/image' : container.image,
  }))
  const limits = { runtimeClasses: [pod.runtimeClass], hostSuffixes: [], hasRoutes: true }
  try {
    parsePod({ ...pod, containers: uploaded }, limits)
  } catch (error) {
    // Not one that fuzz takes for an answer.
    throw new Error(`the agent refuses what the file's reader took: ${String(error)}`, {
      cause: error,
    })
  }
}

/** Any other error of ours would be no answer either. */
async function refusedOnlyByName<T>(work: () => T | Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (error instanceof DeploymentFileError && error.problems.length > 0) throw error
    throw new Error(`no DeploymentFileError: ${String(error)}`, { cause: error })
  }
}

const json = await asJson()

fuzz('a deployment file', {
  cases: 12_000,
  inputs: () => [bytes(ours), json],
  mutate: mutateBytes,
  read: (contents) => read('ipdr.yaml', contents),
})

fuzz('a deployment file in JSON', {
  cases: 12_000,
  inputs: () => [json],
  mutate: mutateJson,
  read: (contents) => read('ipdr.json', contents),
})

fuzz('a manifest of Trusted Pods', {
  cases: 12_000,
  inputs: () => [bytes(JSON.stringify(theirs))],
  mutate: mutateJson,
  read: (contents) => read('manifest.json', contents),
})

fuzz('a manifest of Trusted Pods in binary form', {
  cases: 12_000,
  inputs: async () => {
    const { fromJson } = await import('@bufbuild/protobuf')
    const { containers, volumes, replicas } = fromJson(OldPodSchema, theirs)
    return [
      toBinary(
        OldPodSchema,
        create(OldPodSchema, { containers, volumes, replicas: replicas ?? {} }),
      ),
    ]
  },
  mutate: mutateBytes,
  read: (contents) => read('manifest.pb', contents),
})

fuzz('the state file of a deployment', {
  cases: 5_000,
  inputs: () => [bytes(state)],
  mutate: mutateBytes,
  read: (contents) => refusedOnlyByName(() => readOldDeploymentState(contents)),
})

reportTotal()

async function asJson(): Promise<Uint8Array> {
  const { parse } = await import('yaml')
  return bytes(JSON.stringify(parse(ours)))
}
