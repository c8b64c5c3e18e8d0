import type { Labels } from '../containerd/labels.ts'
import { RequestError } from '../errors.ts'

/** How containerd asks for a snapshot as a user namespace sees it (snapshots.LabelSnapshotUIDMapping and -GIDMapping). */
const UID_MAPPING_LABEL = 'containerd.io/snapshot/uidmapping'
const GID_MAPPING_LABEL = 'containerd.io/snapshot/gidmapping'

/** UID_GID_MAP_MAX_EXTENTS of the kernel's include/linux/user_namespace.h. */
const RANGES_MAX = 340

/** Ids are of 32 bits, and the last one stands for none. */
const ID_MAX = 2 ** 32 - 2

/** Which ids of a container are which ids of the node. */
export class IdMapping {
  /** As user_namespaces(7) has them, lines of `inside outside length`. */
  readonly uidMap: string
  readonly gidMap: string
  readonly #uids: readonly IdRange[]
  readonly #gids: readonly IdRange[]

  private constructor(uids: string, gids: string) {
    this.#uids = parseRanges(UID_MAPPING_LABEL, uids)
    this.#gids = parseRanges(GID_MAPPING_LABEL, gids)
    this.uidMap = linesOf(this.#uids)
    this.gidMap = linesOf(this.#gids)
  }

  /** Undefined if the labels ask for none. Throws RequestError INVALID_ARGUMENT for one that is no mapping, or half of one. */
  static of(labels: Labels): IdMapping | undefined {
    const [uids, gids] = [labels.get(UID_MAPPING_LABEL), labels.get(GID_MAPPING_LABEL)]
    if (uids === undefined && gids === undefined) return undefined
    if (uids !== undefined && gids !== undefined) return new IdMapping(uids, gids)
    throw new RequestError(
      'INVALID_ARGUMENT',
      `of ${UID_MAPPING_LABEL} and ${GID_MAPPING_LABEL} either both are given or none`,
    )
  }

  /** The owner on the node of what `uid` and `gid` own in the container. Throws RequestError INVALID_ARGUMENT if it has none. */
  toHost({ uid, gid }: { readonly uid: number; readonly gid: number }): {
    readonly uid: number
    readonly gid: number
  } {
    return { uid: hostId(this.#uids, uid), gid: hostId(this.#gids, gid) }
  }
}

type IdRange = { readonly container: number; readonly host: number; readonly length: number }

/** `container:host:length`, and more of them after commas. */
function parseRanges(label: string, text: string): IdRange[] {
  const parts = text.split(',')
  const ranges = parts.flatMap((part) => {
    const [container, host, length] = (/^(\d{1,10}):(\d{1,10}):(\d{1,10})$/.exec(part) ?? [])
      .slice(1)
      .map(Number)
    if (container === undefined || host === undefined || length === undefined) return []
    const isRange = length > 0 && Math.max(container, host) + length - 1 <= ID_MAX
    return isRange ? [{ container, host, length }] : []
  })
  if (ranges.length === parts.length && ranges.length <= RANGES_MAX) return ranges
  throw new RequestError(
    'INVALID_ARGUMENT',
    `label ${label} is '${text.slice(0, 100)}', not up to ${RANGES_MAX} ranges like 0:100000:65536`,
  )
}

function linesOf(ranges: readonly IdRange[]): string {
  return ranges.map(({ container, host, length }) => `${container} ${host} ${length}\n`).join('')
}

function hostId(ranges: readonly IdRange[], id: number): number {
  const range = ranges.find(({ container, length }) => id >= container && id < container + length)
  if (range !== undefined) return range.host + id - range.container
  throw new RequestError('INVALID_ARGUMENT', `id ${id} of the container has none on the node`)
}
