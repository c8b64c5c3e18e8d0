import type { Address, DeployProgress } from '../../../proto/messages/ipdr/deploy_pb.js'
import { type Command, defineCommand } from '../command.ts'
import { EXIT_CODES } from '../exit-codes.ts'
import { CommandFailure, plain } from '../failure.ts'
import { addressDocument, addressText } from '../pod-address.ts'
import {
  FILE_ARGUMENT,
  openPod,
  PUBLISHER_OPTIONS,
  type PublisherValues,
} from '../publisher-options.ts'
import { formatMs } from '../quantity.ts'
import type { Session } from '../session.ts'
import { fields } from '../table.ts'

const OPTIONS = {
  ...PUBLISHER_OPTIONS,
  watch: {
    alias: 'w',
    type: 'boolean',
    default: false,
    describe: 'Follow until the pod is ready; else it ends when the pod is in the cluster',
  },
  timeout: {
    type: 'number',
    default: 300,
    requiresArg: true,
    describe:
      'Seconds to wait, for the cluster and with --watch for the pod, which goes on starting',
    valueName: 'SECONDS',
  },
} as const

const PAID =
  'The pod is paid from its channel, which must be there, funded and locked; the cluster reads it from the chain. Every call is signed with your key, for this cluster, this pod and a few minutes.'

/** `ipdr deploy` */
export const deploy: Command = defineCommand({
  name: 'deploy',
  usage: '[file]',
  summary: 'Run a pod in a cluster, or change it',
  description: [
    'Reads a deployment file, has the cluster make of it what it says, and with --watch tells how that goes until the pod is ready: what is scheduled, pulled and started, and what fails. Safe to repeat: what is as it should be stays. Should the cluster refuse a change, the pod is what it was before.',
    PAID,
  ],
  args: { file: FILE_ARGUMENT },
  options: OPTIONS,
  examples: [
    ['ipdr deploy --watch', 'the pod of ./ipdr.yaml, until it is ready'],
    [
      'ipdr deploy shop.yaml --provider /dns4/node.example.com/tcp/4002/p2p/12D3…',
      'another file, another cluster',
    ],
    ['ipdr deploy -w -o json | jq -r .addresses[0].url', 'for scripts'],
  ],
  seeAlso: ['ipdr init', 'ipdr update', 'ipdr status', 'ipdr logs', 'ipdr delete'],
  run: ({ file, ...values }, session) => run(file, values, { mustExist: false }, session),
})

/** `ipdr update` */
export const update: Command = defineCommand({
  name: 'update',
  usage: '[file]',
  summary: 'Change a pod that is in a cluster',
  description: ['As ipdr deploy, but fails where the pod is not there yet.', PAID],
  args: { file: FILE_ARGUMENT },
  options: OPTIONS,
  examples: [['ipdr update', 'what ./ipdr.yaml says now']],
  seeAlso: ['ipdr deploy'],
  run: ({ file, ...values }, session) => run(file, values, { mustExist: true }, session),
})

type DeployValues = PublisherValues & { readonly watch: boolean; readonly timeout: number }

type Outcome = {
  namespace: string
  fundedSeconds: bigint
  objects: number
  deleted: number
  isReady: boolean
  addresses: readonly Address[]
  replicas: number
}

async function run(
  file: string,
  values: DeployValues,
  { mustExist }: { readonly mustExist: boolean },
  session: Session,
): Promise<void> {
  const { output, signal } = session
  if (!(values.timeout > 0 && values.timeout <= 86_400)) {
    throw new CommandFailure(
      EXIT_CODES.usage,
      '--timeout must be a number of seconds from 1 to 86400',
    )
  }
  await using opened = new AsyncDisposableStack()
  const { client, podId, described } = await openPod(file, values, opened)
  const { pod, localImages, remarks } = described
  if (localImages[0] !== undefined) {
    const { container, path } = localImages[0]
    const message = `container ${container}: ${path} must be published first: ipdr push ${path}, and write the reference that it prints`
    throw new CommandFailure(EXIT_CODES.usage, message)
  }
  const { formatProblem } = await import('../../client/deployment-file-error.ts')
  const { Deployment_Mode } = await import('../../../proto/messages/ipdr/deploy_pb.js')
  const mode = mustExist ? Deployment_Mode.UPDATE : Deployment_Mode.UNSPECIFIED
  for (const remark of remarks) say(session, formatProblem(file, remark))
  const timeout = AbortSignal.timeout(values.timeout * 1_000)
  const outcome: Outcome = {
    namespace: '',
    fundedSeconds: 0n,
    objects: 0,
    deleted: 0,
    isReady: false,
    addresses: [],
    replicas: 0,
  }
  const began = performance.now()
  try {
    const steps = client.deploy(podId, { pod, mode }, AbortSignal.any([signal, timeout]))
    for await (const progress of steps) {
      take(progress, outcome, session)
      if (progress.step.case === 'applied' && !values.watch) break
    }
  } catch (error) {
    if (!timeout.aborted || signal.aborted) throw error
    const message =
      outcome.objects === 0
        ? `the cluster has not answered within ${values.timeout} s`
        : `the pod is in the cluster, and not ready after ${values.timeout} s: see ipdr status ${file}`
    throw new CommandFailure(EXIT_CODES.temporary, message, undefined, error)
  }
  const tookMs = performance.now() - began
  output.answer(document(podId, outcome, tookMs), () => {
    if (output.quiet) return podId
    const state = outcome.isReady
      ? outcome.replicas === 0
        ? 'asleep until the first request'
        : `ready, ${outcome.replicas} running`
      : 'in the cluster'
    return [
      `${pod.name || 'The pod'} is ${state} after ${formatMs(tookMs)}.`,
      fields([
        ['Pod ID', podId],
        ['Namespace', outcome.namespace],
        ...(outcome.fundedSeconds === 0n
          ? []
          : ([['Paid for', formatMs(Number(outcome.fundedSeconds) * 1_000)]] as [
              string,
              string,
            ][])),
        ...outcome.addresses.map((address): [string, string] => [
          `${address.container}:${address.containerPort}`,
          addressText(address),
        ]),
      ]),
    ].join('\n')
  })
}

function take({ step }: DeployProgress, outcome: Outcome, session: Session): void {
  switch (step.case) {
    case 'accepted':
      outcome.namespace = step.value.namespace
      outcome.fundedSeconds = step.value.fundedSeconds
      say(session, `accepted: namespace ${step.value.namespace}`)
      break
    case 'applied':
      outcome.objects = step.value.objects
      outcome.deleted = step.value.deleted
      say(
        session,
        `in the cluster: ${step.value.objects} objects, ${step.value.deleted} taken away`,
      )
      break
    case 'image': {
      const { container, bytesHere, bytesAll } = step.value
      const [doneBytes, totalBytes] = [Number(bytesHere), Number(bytesAll)]
      session.progress.update({ item: container, doneBytes, totalBytes, step: 'arriving' })
      break
    }
    case 'event': {
      const { reason, message, object, isWarning } = step.value
      say(session, `${isWarning ? 'warning: ' : ''}${object}: ${reason}: ${message}`)
      break
    }
    case 'ready':
      outcome.isReady = true
      outcome.addresses = step.value.addresses
      outcome.replicas = step.value.replicas
      break
    case undefined:
      break
  }
}

/** On standard error: what a person follows. */
function say({ output }: Session, text: string): void {
  if (!output.quiet) process.stderr.write(`${plain(text)}\n`)
}

function document(podId: string, outcome: Outcome, tookMs: number): object {
  const { namespace, fundedSeconds, objects, deleted, isReady, replicas } = outcome
  return {
    podId,
    namespace,
    fundedSeconds: fundedSeconds === 0n ? undefined : String(fundedSeconds),
    objects,
    deleted,
    isReady,
    replicas,
    tookMs: Math.round(tookMs),
    addresses: outcome.addresses.map(addressDocument),
  }
}
