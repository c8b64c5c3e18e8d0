import { create } from '@bufbuild/protobuf'
import type { Hex } from 'viem'
import { privateKeyToAccount } from 'viem/accounts'
import { startClientHost } from '../../../agent/client/client-host.ts'
import { DeployClient } from '../../../agent/client/deploy-client.ts'
import { PodSchema } from '../../../proto/messages/ipdr/deploy_pb.js'
import { answerQuestions, task } from './own-process.ts'

/** Publishers in a process of their own, each with a libp2p host and a connection. */
export type PublishersTask = {
  readonly publishers: number
  readonly addresses: readonly string[]
  /** They share an account: the test's chain knows one. */
  readonly key: Hex
}

/** Have these pods be deployed, by so many publishers at once. */
export type DeployQuestion = {
  readonly podIds: readonly Hex[]
  readonly atOnce: number
  /** Stands in the pod: another one changes it. */
  readonly version: number
}

/** From the call's signature, in ms. */
export type DeployedPod = {
  readonly podId: Hex
  readonly acceptedMs: number
  readonly appliedMs: number
}

const { publishers, addresses, key } = task() as PublishersTask
const account = privateKeyToAccount(key)
const clients = await Promise.all(Array.from({ length: publishers }, connected))

answerQuestions({}, async ({ podIds, atOnce, version }: DeployQuestion): Promise<DeployedPod[]> => {
  const waiting = [...podIds]
  const deployed: DeployedPod[] = []
  await Promise.all(
    clients.slice(0, atOnce).map(async (deploy) => {
      for (let podId = waiting.shift(); podId !== undefined; podId = waiting.shift()) {
        deployed.push(await deploy(podId, version))
      }
    }),
  )
  return deployed
})

async function connected(): Promise<(podId: Hex, version: number) => Promise<DeployedPod>> {
  let signedAt = 0
  const signer = {
    async signTypedData(definition: Parameters<typeof account.signTypedData>[0]): Promise<Hex> {
      const signature = await account.signTypedData(definition)
      signedAt = performance.now()
      return signature
    },
  }
  const client = new DeployClient(await startClientHost(), addresses, { signer })
  await client.capacity()
  return async (podId, version) => {
    let acceptedMs = 0
    for await (const { step } of client.deploy(podId, { pod: shop(podId, version) })) {
      if (step.case === 'accepted') acceptedMs = performance.now() - signedAt
      if (step.case === 'applied') {
        return { podId, acceptedMs, appliedMs: performance.now() - signedAt }
      }
    }
    throw new Error('it ended before it was applied')
  }
}

/** A web shop as docs/deploy.md has them: two containers, a disk, a secret, a host name, a TCP port and a login. */
function shop(podId: Hex, version: number): ReturnType<typeof create<typeof PodSchema>> {
  return create(PodSchema, {
    name: 'shop',
    containers: [
      {
        name: 'web',
        image: 'ghcr.io/some/image:1',
        cpuMillis: 100,
        memoryBytes: 2n ** 26n,
        env: { VERSION: String(version) },
        ports: [
          {
            name: 'http',
            containerPort: 8080,
            exposure: { case: 'httpHost', value: `shop-${BigInt(podId)}.example.com` },
          },
        ],
        mounts: [
          { volume: 'data', path: '/data' },
          { volume: 'key', path: '/key' },
        ],
      },
      {
        name: 'game',
        image: 'ghcr.io/some/game:1',
        cpuMillis: 100,
        memoryBytes: 2n ** 26n,
        ports: [{ name: 'game', containerPort: 7777, exposure: { case: 'tcpPort', value: 0 } }],
      },
    ],
    volumes: [
      { name: 'data', source: { case: 'disk', value: { bytes: 2n ** 30n } } },
      { name: 'key', source: { case: 'secret', value: { contents: Buffer.from('hidden') } } },
    ],
    registryLogins: [{ server: 'ghcr.io', username: 'me', password: 'secret' }],
  })
}
