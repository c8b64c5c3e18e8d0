import { setTimeout } from 'node:timers/promises'
import { CoreV1Api, KubeConfig } from '@kubernetes/client-node'
import type { Config } from '../config.ts'
import type { ListenAddress } from '../listen-address.ts'
import type { Logger } from '../logger.ts'
import { loadAccess } from './kube-access.ts'
import { NodeTaint } from './node-taint.ts'

/** How often the agent is asked, in ms. 1 s: so much longer its node waits for pods at most. */
const ASK_MS = 1_000
/** After how many failures in a row the API is asked how often: 1 s, then twice that each time, up to a minute. */
const PAUSE_MS_MAX = 60_000
/** How long the agent may take to say whether it is ready, in ms. */
const ANSWER_MS = 2_000

/**
 * Keeps the node's taint in step with the agent of this node, until `stop` aborts: by its service account, or by `kubeconfig`. An API
 * that cannot be asked is told of once, and asked again. Rejects if there is neither.
 */
export async function untaint(
  { monitoring }: Pick<Config, 'monitoring'>,
  { node, kubeconfig }: { readonly node: string; readonly kubeconfig?: string | undefined },
  stop: AbortSignal,
  log: Pick<Logger, 'info' | 'warn'>,
): Promise<void> {
  const kube = new KubeConfig()
  loadAccess(kube, { kubeconfig })
  const taint = new NodeTaint(node, kube.makeApiClient(CoreV1Api))
  let failures = 0
  while (!stop.aborted) {
    const isReady = await asksReady(monitoring.listen, stop)
    try {
      const change = await taint.follow(isReady, performance.now())
      if (change !== undefined)
        log.info({ node }, `taint ${change}: the agent is ${isReady ? '' : 'not '}ready`)
      failures = 0
    } catch (error) {
      failures += 1
      if (failures === 1) {
        const reason = error instanceof Error ? error.message.slice(0, 200) : String(error)
        log.warn({ node, reason }, 'the taint of this node cannot be changed; tried again')
      }
    }
    const pauseMs = Math.min(ASK_MS * 2 ** Math.min(failures, 10), PAUSE_MS_MAX)
    await setTimeout(pauseMs, undefined, { signal: stop }).catch(() => undefined)
  }
}

async function asksReady({ host, port }: ListenAddress, stop: AbortSignal): Promise<boolean> {
  const at = host.includes(':') ? `[${host}]` : host
  const signal = AbortSignal.any([stop, AbortSignal.timeout(ANSWER_MS)])
  try {
    const { ok } = await fetch(`http://${at}:${port}/readyz`, { signal })
    return ok
  } catch {
    return false
  }
}
