/** Things that are remembered. 4,096: far more images than a cell of nodes starts in a day, and 2 MB. */
const KEYS_MAX = 4_096

/** Nodes that are remembered of each. 4: one of them is there and has learned it, or it is all new. */
const NODES_MAX = 4

/** Characters of a name. 300: a host name of 253, scheme and port. */
const NAME_CHARS_MAX = 300

/** In a request: what others call the node that asks. */
export const NODE_HEADER = 'ipdr-node'

/** In an answer of 404: those that asked before, with commas. They wanted it too, and may know by now. */
export const ASKED_BY_HEADER = 'ipdr-asked-by'

/** Which nodes asked this one in vain for what, the first ones and the last. What was asked for longest ago goes first. */
export class WhoAsked {
  readonly #nodes = new Map<string, readonly string[]>()

  /** Remembers that `node` asked, as it calls itself, and gives back who had before it. Of a name that can be none only the latter. */
  note(key: string, node: unknown): readonly string[] {
    const before = this.#nodes.get(key) ?? []
    const others = before.filter((other) => other !== node)
    if (!isNodeName(node)) return others
    this.#nodes.delete(key)
    this.#nodes.set(key, before.includes(node) ? before : [...before.slice(0, NODES_MAX - 1), node])
    for (const [oldest] of this.#nodes) {
      if (this.#nodes.size <= KEYS_MAX) break
      this.#nodes.delete(oldest)
    }
    return others
  }
}

/** The nodes that an answer names. Whoever reads them asks none that it does not know. */
export function nodesNamed(header: unknown): readonly string[] {
  if (typeof header !== 'string') return []
  return header.slice(0, NODES_MAX * (NAME_CHARS_MAX + 2)).split(', ', NODES_MAX)
}

function isNodeName(name: unknown): name is string {
  return (
    typeof name === 'string' &&
    name.length <= NAME_CHARS_MAX &&
    /^https:\/\/[a-z0-9.:[\]-]+$/.test(name)
  )
}
