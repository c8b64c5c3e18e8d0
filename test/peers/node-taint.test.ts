import { spawn } from 'node:child_process'
import { join } from 'node:path'
import {
  CoreV1Api,
  PatchStrategy,
  setHeaderOptions,
  type V1ClusterRole,
  type V1Taint,
} from '@kubernetes/client-node'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { AgentProcess } from '../support/agent.ts'
import { KubeApiServer } from '../support/kube-apiserver.ts'
import { objectsIn } from '../support/kubernetes-manifests.ts'
import { Scratch } from '../support/scratch.ts'

// The container of the DaemonSet that takes the taint off, against a real kube-apiserver, by the rights of our manifest and no more.

const NODE = 'node-1'
const OURS: V1Taint = { key: 'ipdr.dev/not-ready', effect: 'NoSchedule' }
const THEIRS: V1Taint = { key: 'dedicated', value: 'shop', effect: 'NoExecute' }
const PROGRAM = join(import.meta.dirname, '../../agent/cli/bin/ipdr-agent')

const opened = new AsyncDisposableStack()
let scratch: Scratch
let server: KubeApiServer
let core: CoreV1Api

beforeAll(async () => {
  scratch = opened.use(Scratch.open('node-taint'))
  server = await KubeApiServer.start(scratch)
  core = server.admin.makeApiClient(CoreV1Api)
}, 900_000)
afterAll(() => opened.disposeAsync(), 60_000)

/** By their keys; the server gives a new node one of its own. */
async function taints(): Promise<string[]> {
  const { spec } = await core.readNode({ name: NODE })
  return (spec?.taints ?? []).map(({ key }) => key).toSorted()
}

const KUBERNETES_OWN = 'node.kubernetes.io/not-ready'

test('the taint goes when the agent is ready, and no other taint does', async () => {
  await core.createNode({ body: { metadata: { name: NODE }, spec: { taints: [THEIRS, OURS] } } })
  const roles = objectsIn('base/access.yaml').filter(
    (object): object is V1ClusterRole => object.kind === 'ClusterRole',
  )
  const account = await server.account(
    'agent',
    roles.flatMap(({ rules }) => rules ?? []),
  )
  await using agent = await AgentProcess.start(scratch)
  await agent.stop()
  const words = ['untaint', '--node', NODE, '--kubeconfig', account.kubeconfig]
  const untaint = spawn(PROGRAM, [...words, '--config', agent.configPath], { stdio: 'inherit' })
  if (untaint.pid !== undefined) scratch.own(untaint.pid)
  // Nobody is ready yet: it has asked the agent in vain by the time that this one has started.
  expect(await taints()).toEqual([THEIRS.key, OURS.key, KUBERNETES_OWN])
  await agent.start()
  await expect.poll(taints, { timeout: 60_000 }).toEqual([THEIRS.key, KUBERNETES_OWN])
  // Somebody registers the node anew: it is looked at again within a minute.
  const body = [{ op: 'add', path: '/spec/taints', value: [OURS, THEIRS] }]
  const asJsonPatch = setHeaderOptions('Content-Type', PatchStrategy.JsonPatch)
  await core.patchNode({ name: NODE, body }, asJsonPatch)
  await expect.poll(taints, { timeout: 90_000 }).toEqual([THEIRS.key])
}, 240_000)
