import type { LazyLayers } from '../../snapshotter/snapshots/lazy-layers.ts'

/** For a snapshotter none of whose layers is lazy: it claims nothing and expects never to be asked for a mount. */
export const noLazyLayers: LazyLayers = {
  recall: () => Promise.resolve(undefined),
  holds: () => {
    throw new Error('there are no lazy layers')
  },
  claim: () => Promise.resolve(undefined),
  lowerDirs: () => Promise.reject(new Error('there are no lazy layers')),
  released: () => Promise.reject(new Error('there are no lazy layers')),
}
