import { loadPackageDefinition } from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'
import type { Contract } from './contract.ts'
import type { ProtoGrpcType as AgentFile } from './types/agent.ts'
import type {
  ContentDefinition,
  ContentHandlers,
} from './types/containerd/services/content/v1/Content.ts'
import type { DiffDefinition, DiffHandlers } from './types/containerd/services/diff/v1/Diff.ts'
import type {
  EventsDefinition,
  EventsHandlers,
} from './types/containerd/services/events/v1/Events.ts'
import type {
  ImagesDefinition,
  ImagesHandlers,
} from './types/containerd/services/images/v1/Images.ts'
import type {
  IntrospectionDefinition,
  IntrospectionHandlers,
} from './types/containerd/services/introspection/v1/Introspection.ts'
import type {
  NamespacesDefinition,
  NamespacesHandlers,
} from './types/containerd/services/namespaces/v1/Namespaces.ts'
import type {
  SnapshotsDefinition,
  SnapshotsHandlers,
} from './types/containerd/services/snapshots/v1/Snapshots.ts'
import type { TasksDefinition, TasksHandlers } from './types/containerd/services/tasks/v1/Tasks.ts'
import type { ProtoGrpcType as ContentFile } from './types/content.ts'
import type { ProtoGrpcType as CriFile } from './types/cri.ts'
import type { ProtoGrpcType as DiffFile } from './types/diff.ts'
import type { ProtoGrpcType as EventsFile } from './types/events.ts'
import type { ProtoGrpcType as ImagesFile } from './types/images.ts'
import type { ProtoGrpcType as IntrospectionFile } from './types/introspection.ts'
import type { AgentDefinition, AgentHandlers } from './types/ipdr/v1/Agent.ts'
import type {
  KeyProviderServiceDefinition,
  KeyProviderServiceHandlers,
} from './types/keyprovider/KeyProviderService.ts'
import type { ProtoGrpcType as KeyProviderFile } from './types/keyprovider.ts'
import type { ProtoGrpcType as NamespacesFile } from './types/namespaces.ts'
import type {
  ImageServiceDefinition,
  ImageServiceHandlers,
} from './types/runtime/v1/ImageService.ts'
import type {
  RuntimeServiceDefinition,
  RuntimeServiceHandlers,
} from './types/runtime/v1/RuntimeService.ts'
import type { ProtoGrpcType as SnapshotsFile } from './types/snapshots.ts'
import type { ProtoGrpcType as TasksFile } from './types/tasks.ts'

// Each function reads its .proto file, a few ms: call it where a service or client is made, and keep the result.

/** containerd.services.snapshots.v1.Snapshots */
export function snapshotsContract(): Contract<SnapshotsDefinition, SnapshotsHandlers> {
  const file = load('containerd/snapshots.proto') as SnapshotsFile
  return { definition: file.containerd.services.snapshots.v1.Snapshots.service }
}

/** containerd.services.images.v1.Images */
export function imagesContract(): Contract<ImagesDefinition, ImagesHandlers> {
  const file = load('containerd/images.proto') as ImagesFile
  return { definition: file.containerd.services.images.v1.Images.service }
}

/** containerd.services.content.v1.Content */
export function contentContract(): Contract<ContentDefinition, ContentHandlers> {
  const file = load('containerd/content.proto') as ContentFile
  return { definition: file.containerd.services.content.v1.Content.service }
}

/** containerd.services.events.v1.Events */
export function eventsContract(): Contract<EventsDefinition, EventsHandlers> {
  const file = load('containerd/events.proto') as EventsFile
  return { definition: file.containerd.services.events.v1.Events.service }
}

/** containerd.services.diff.v1.Diff */
export function diffContract(): Contract<DiffDefinition, DiffHandlers> {
  const file = load('containerd/diff.proto') as DiffFile
  return { definition: file.containerd.services.diff.v1.Diff.service }
}

/** containerd.services.namespaces.v1.Namespaces */
export function namespacesContract(): Contract<NamespacesDefinition, NamespacesHandlers> {
  const file = load('containerd/namespaces.proto') as NamespacesFile
  return { definition: file.containerd.services.namespaces.v1.Namespaces.service }
}

/** containerd.services.introspection.v1.Introspection */
export function introspectionContract(): Contract<IntrospectionDefinition, IntrospectionHandlers> {
  const file = load('containerd/introspection.proto') as IntrospectionFile
  return { definition: file.containerd.services.introspection.v1.Introspection.service }
}

/** containerd.services.tasks.v1.Tasks */
export function tasksContract(): Contract<TasksDefinition, TasksHandlers> {
  const file = load('containerd/tasks.proto') as TasksFile
  return { definition: file.containerd.services.tasks.v1.Tasks.service }
}

/** ipdr.v1.Agent */
export function agentContract(): Contract<AgentDefinition, AgentHandlers> {
  return { definition: (load('ipdr/agent.proto') as AgentFile).ipdr.v1.Agent.service }
}

/** runtime.v1.RuntimeService: the pods and containers of CRI. */
export function criRuntimeContract(): Contract<RuntimeServiceDefinition, RuntimeServiceHandlers> {
  return { definition: (load('cri.proto') as CriFile).runtime.v1.RuntimeService.service }
}

/** runtime.v1.ImageService: the images of CRI. */
export function criImageContract(): Contract<ImageServiceDefinition, ImageServiceHandlers> {
  return { definition: (load('cri.proto') as CriFile).runtime.v1.ImageService.service }
}

/** keyprovider.KeyProviderService: what ocicrypt asks of those who wrap and unwrap keys. */
export function keyProviderContract(): Contract<
  KeyProviderServiceDefinition,
  KeyProviderServiceHandlers
> {
  const file = load('keyprovider/keyprovider.proto') as KeyProviderFile
  return { definition: file.keyprovider.KeyProviderService.service }
}

const loaded = new Map<string, unknown>()

/** The file's packages, by the options that the types in types/ were generated for. Read once: it takes 10 ms for CRI's. */
function load(path: string): unknown {
  const known = loaded.get(path)
  if (known !== undefined) return known
  const definition = loadSync(path, {
    includeDirs: [import.meta.dirname],
    longs: String,
    enums: String,
    defaults: true,
    oneofs: true,
  })
  const packages = loadPackageDefinition(definition)
  loaded.set(path, packages)
  return packages
}
