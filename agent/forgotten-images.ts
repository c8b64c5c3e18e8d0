import { setTimeout } from 'node:timers/promises'
import { connect } from '../proto/client.ts'
import { criImageContract, imagesContract } from '../proto/load.ts'
import type { Log } from '../snapshotter/log.ts'

/** Where CRI's images are. */
const NAMESPACE = 'k8s.io'

/** CRI puts it on every image that it manages (containerd, pkg/cri/labels): setting it again changes nothing, and CRI looks at the image anew. */
const MANAGED_LABEL = { name: 'io.cri-containerd.image', value: 'managed' } as const

/** How long one look may take, in ms. 30 s: thousands of images on a busy node. */
const CALLS_MS = 30_000

/** How long after our start a containerd may have asked for us in vain, in ms: it waits up to 3 s between attempts, and needs seconds to start. */
const LOOK_MS = 120_000

/** Between two looks, in ms. */
const PAUSE_MS = 5_000

/** How often CRI is made to look at one image. 4: it does not take up what it cannot use, such as an image of another platform. */
const REMINDERS_MAX = 4

/**
 * Reminds containerd's CRI of images that it forgot. One that starts while the agent is down asks for their snapshots in vain, and then
 * has no image, not even the pods' own, until somebody touches each. Begins at once, and looks for two minutes, since a containerd may be
 * starting just now. Nothing of it fails.
 */
export class ImageReminder implements AsyncDisposable {
  readonly #socketPath: string
  readonly #log: Pick<Log, 'info' | 'debug'>
  readonly #closing = new AbortController()
  /** How often each was. */
  readonly #reminded = new Map<string, number>()
  readonly #looking: Promise<void>

  constructor(socketPath: string, { log }: { readonly log: Pick<Log, 'info' | 'debug'> }) {
    this.#socketPath = socketPath
    this.#log = log
    this.#looking = this.#look()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort()
    await this.#looking
  }

  async #look(): Promise<void> {
    const { signal } = this.#closing
    const until = performance.now() + LOOK_MS
    while (!signal.aborted && performance.now() < until) {
      try {
        await this.#remind()
      } catch (error) {
        // No containerd yet, or none with CRI.
        this.#log.debug({ reason: String(error) }, 'containerd cannot be asked for its images')
      }
      await setTimeout(PAUSE_MS, undefined, { signal, ref: false }).catch(() => undefined)
    }
  }

  async #remind(): Promise<void> {
    const signal = AbortSignal.any([this.#closing.signal, AbortSignal.timeout(CALLS_MS)])
    using cri = connect(criImageContract(), this.#socketPath)
    using images = connect(imagesContract(), this.#socketPath, {
      'containerd-namespace': NAMESPACE,
    })
    const known = await cri.calls.ListImages({}, { signal })
    const names = new Set(
      known.images.flatMap(({ id, repoTags, repoDigests }) => [id, ...repoTags, ...repoDigests]),
    )
    const listed = await images.calls.List({}, { signal })
    const forgotten = listed.images.filter(({ name }) => !names.has(name))
    for (const { name, target } of forgotten) {
      const times = this.#reminded.get(name) ?? 0
      if (times >= REMINDERS_MAX) continue
      this.#reminded.set(name, times + 1)
      const labels = { [MANAGED_LABEL.name]: MANAGED_LABEL.value }
      const updateMask = { paths: [`labels.${MANAGED_LABEL.name}`] }
      await images.calls.Update({ image: { name, target, labels }, updateMask }, { signal })
      if (times > 0) continue
      this.#log.info(
        { image: name },
        `containerd had forgotten image ${name}, as it does when it starts while the agent is down, and was made to look at it again`,
      )
    }
  }
}
