import type { CoreV1Api, V1Taint } from '@kubernetes/client-node'
import { PatchStrategy, setHeaderOptions } from '@kubernetes/client-node'

/** On a node whose agent is not ready: pods wait elsewhere until it is gone. */
export const NOT_READY_TAINT = { key: 'ipdr.dev/not-ready', effect: 'NoSchedule' } as const

/** How long an agent that was ready may not be, before its node is tainted again, in ms. 2 min: an upgrade takes seconds, a rollout some ten. */
const UNREADY_MS_MAX = 120_000

/** How often a node that is as it should be is looked at again, in ms: who registers it anew may have tainted it. */
const RECHECK_MS = 60_000

/** The taint of one node, which follows whether its agent is ready. */
export class NodeTaint {
  readonly #node: string
  readonly #api: Pick<CoreV1Api, 'readNode' | 'patchNode'>
  #unreadySinceMs: number | undefined
  #checked: { readonly isTainted: boolean; readonly atMs: number } | undefined

  constructor(node: string, api: Pick<CoreV1Api, 'readNode' | 'patchNode'>) {
    this.#node = node
    this.#api = api
  }

  /**
   * Takes the taint off if the agent is ready, and puts it on if it has not been for two minutes; `nowMs` is a clock that only
   * goes forward. Resolves to what was changed. Rejects if the API cannot be asked: then call it again, as the next second does anyway.
   */
  async follow(isReady: boolean, nowMs: number): Promise<'removed' | 'put back' | undefined> {
    if (isReady) this.#unreadySinceMs = undefined
    else this.#unreadySinceMs ??= nowMs
    const isLate =
      this.#unreadySinceMs !== undefined && nowMs - this.#unreadySinceMs >= UNREADY_MS_MAX
    // Not ready yet, or for a moment: the node stays as it is.
    if (!isReady && !isLate) return undefined
    const isTainted = !isReady
    const last = this.#checked
    if (last?.isTainted === isTainted && nowMs - last.atMs < RECHECK_MS) return undefined
    const isChanged = await this.#set(isTainted)
    this.#checked = { isTainted, atMs: nowMs }
    if (!isChanged) return undefined
    return isTainted ? 'put back' : 'removed'
  }

  async #set(isTainted: boolean): Promise<boolean> {
    const { metadata, spec } = await this.#api.readNode({ name: this.#node })
    const taints = spec?.taints ?? []
    const others = taints.filter((taint) => !isOurs(taint))
    if (isTainted === others.length < taints.length) return false
    const value = isTainted ? [...others, NOT_READY_TAINT] : others
    // Of a node that somebody else has changed meanwhile the API refuses it: their taint would be lost.
    const unchanged = {
      op: 'test',
      path: '/metadata/resourceVersion',
      value: metadata?.resourceVersion,
    }
    const body = [unchanged, { op: 'add', path: '/spec/taints', value }]
    const asJsonPatch = setHeaderOptions('Content-Type', PatchStrategy.JsonPatch)
    await this.#api.patchNode({ name: this.#node, body }, asJsonPatch)
    return true
  }
}

function isOurs({ key, effect }: V1Taint): boolean {
  return key === NOT_READY_TAINT.key && effect === NOT_READY_TAINT.effect
}
