import type { Labels, Snapshots } from '../../../snapshotter/snapshots/snapshots.ts'
import { seeded } from '../../support/seeded.ts'

/** What a snapshot should look like, without what depends on the clock. */
export type Expected = { kind: 'active' | 'view' | 'committed'; parent: string; labels: string }

/** All snapshots there should be, by name. */
export type Model = ReadonlyMap<string, Expected>

/** One call of the script, on the model and on the real thing. Both fail, or neither does. */
export type Step = {
  readonly title: string
  /** What the call makes of the model; the model itself if the call must fail. */
  readonly model: (before: Model) => Model
  readonly run: (snapshots: Snapshots, signal: AbortSignal) => Promise<unknown>
}

/** Few enough that calls meet what earlier ones made, and that some must fail. */
const KEYS = 3
const NAMES = 6

/** Step `index` of the endless script `seed`. It depends on nothing else: a killed process picks it up where it was. */
export function step(seed: number, index: number): Step {
  const random = seeded(seed * 100_003 + index)
  const key = `container ${random(KEYS)}`
  const layer = `layer ${random(NAMES)}`
  const parent = random(3) === 0 ? undefined : `layer ${random(NAMES)}`
  const either = random(2) === 0 ? key : layer
  const label = `step ${index}`
  const labels: Labels = new Map([['label', label]])
  switch (random(8)) {
    case 0:
    case 1:
    case 2: {
      const kind = random(4) === 0 ? 'view' : 'active'
      return {
        title: `${kind} ${key} on ${parent}`,
        model: (before) => {
          if (before.has(key)) return before
          if (parent !== undefined && before.get(parent)?.kind !== 'committed') return before
          return new Map(before).set(key, { kind, parent: parent ?? '', labels: label })
        },
        run: (snapshots, signal) =>
          kind === 'view'
            ? snapshots.view({ key, parent, labels }, signal)
            : snapshots.prepare({ key, parent, labels }, signal),
      }
    }
    case 3:
    case 4:
    case 5:
      return {
        title: `commit ${key} as ${layer}`,
        model: (before) => {
          const active = before.get(key)
          if (active?.kind !== 'active' || before.has(layer)) return before
          const after = new Map(before)
          after.delete(key)
          return after.set(layer, { kind: 'committed', parent: active.parent, labels: label })
        },
        run: (snapshots, signal) =>
          snapshots.commit({ key, name: layer, parent: undefined, labels }, signal),
      }
    case 6:
      return {
        title: `remove ${either}`,
        model: (before) => {
          const hasChildren = [...before.values()].some(({ parent }) => parent === either)
          if (hasChildren || !before.has(either)) return before
          const after = new Map(before)
          after.delete(either)
          return after
        },
        run: async (snapshots) => snapshots.remove(either),
      }
    default:
      return {
        title: `label ${either}`,
        model: (before) => {
          const known = before.get(either)
          return known === undefined
            ? before
            : new Map(before).set(either, { ...known, labels: label })
        },
        run: async (snapshots) =>
          snapshots.update({ name: either, labels, paths: ['labels.label'] }),
      }
  }
}

/** What `snapshots` hold, in the model's words. */
export function modelOf(snapshots: Snapshots): Model {
  const model = new Map<string, Expected>()
  for (const { name, kind, parent = '', labels } of [...snapshots.list([])].flat()) {
    model.set(name, { kind, parent, labels: labels.get('label') ?? '' })
  }
  return model
}
