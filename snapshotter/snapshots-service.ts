import type { Methods, Service } from '../proto/contract.ts'
import { answeringAfter, implement } from '../proto/contract.ts'
import { snapshotsContract } from '../proto/load.ts'
import type { Info } from '../proto/types/containerd/services/snapshots/v1/Info.ts'
import type { SnapshotsHandlers } from '../proto/types/containerd/services/snapshots/v1/Snapshots.ts'
import type { Mount as WireMount } from '../proto/types/containerd/types/Mount.ts'
import type { Timestamp } from '../proto/types/google/protobuf/Timestamp.ts'
import { SnapshotError } from './errors.ts'
import type { Kind, Labels, Mount, SnapshotInfo, Snapshots } from './snapshots/snapshots.ts'

/** `containerd.services.snapshots.v1.Snapshots`: what containerd's proxy plugin of type "snapshot" talks to. */
export function snapshotsService(snapshots: Snapshots): Service {
  const methods: Methods<SnapshotsHandlers> = {
    async Prepare(request, { signal }) {
      const prepared = await snapshots.prepare(newSnapshot(request), signal)
      if (prepared.kind === 'active') return { mounts: prepared.mounts.map(wireMount) }
      // In containerd's protocol this failure says: go on with the next layer, this one is here.
      throw new SnapshotError('ALREADY_EXISTS', `snapshot ${prepared.snapshot.name} already exists`)
    },
    async View(request, { signal }) {
      const mounts = await snapshots.view(newSnapshot(request), signal)
      return { mounts: mounts.map(wireMount) }
    },
    async Mounts(request, { signal }) {
      const mounts = await snapshots.mounts(request.key, signal)
      return { mounts: mounts.map(wireMount) }
    },
    async Commit(request, { signal }) {
      await snapshots.commit({ ...newSnapshot(request), name: request.name }, signal)
      return {}
    },
    async Remove(request) {
      snapshots.remove(request.key)
      return {}
    },
    async Stat(request, { signal }) {
      return { info: wireInfo(await snapshots.stat(request.key, signal)) }
    },
    async Update(request) {
      const { name = '', labels = {} } = request.info ?? {}
      const paths = request.updateMask?.paths ?? []
      return { info: wireInfo(snapshots.update({ name, labels: labelsOf(labels), paths })) }
    },
    async *List(request) {
      for (const page of snapshots.list(request.filters)) yield { info: page.map(wireInfo) }
    },
    async Usage(request, { signal }) {
      const { size, inodes } = await snapshots.usage(request.key, signal)
      return { size: String(size), inodes: String(inodes) }
    },
    async Cleanup() {
      await snapshots.cleanup()
      return {}
    },
  }
  // What a power cut may still take, not even the failure may tell of that comes of it.
  return answeringAfter(() => snapshots.flushed(), implement(snapshotsContract(), methods))
}

type WireLabels = { readonly [key: string]: string }

/** On the wire, no parent is an empty one. */
function newSnapshot(request: { key: string; parent: string; labels: WireLabels }): {
  key: string
  parent: string | undefined
  labels: Labels
} {
  const { key, parent, labels } = request
  return { key, parent: parent === '' ? undefined : parent, labels: labelsOf(labels) }
}

function labelsOf(labels: WireLabels): Labels {
  return new Map(Object.entries(labels))
}

function wireMount({ type, source, options }: Mount): WireMount {
  return { type, source, options: [...options] }
}

const WIRE_KINDS = {
  view: 'VIEW',
  active: 'ACTIVE',
  committed: 'COMMITTED',
} as const satisfies Record<Kind, string>

function wireInfo(snapshot: SnapshotInfo): Info {
  return {
    name: snapshot.name,
    parent: snapshot.parent ?? '',
    kind: WIRE_KINDS[snapshot.kind],
    createdAt: wireTime(snapshot.createdNs),
    updatedAt: wireTime(snapshot.updatedNs),
    labels: Object.fromEntries(snapshot.labels),
  }
}

function wireTime(timeNs: bigint): Timestamp {
  return { seconds: String(timeNs / 1_000_000_000n), nanos: Number(timeNs % 1_000_000_000n) }
}
