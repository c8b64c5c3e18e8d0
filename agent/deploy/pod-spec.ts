/** What a publisher asks to run, whichever client sent it: checked, bounded, and with every default filled in. */
export type PodSpec = {
  /** For people. */
  readonly name: string
  readonly containers: readonly ContainerSpec[]
  readonly volumes: readonly VolumeSpec[]
  readonly scaling: ScalingSpec
  readonly registryLogins: readonly RegistryLogin[]
  /** Undefined: the cluster's usual one. */
  readonly runtimeClass?: string | undefined
  /** Replicas have names and volumes of their own, and start one after the other. */
  readonly isStateful: boolean
}

export type ContainerSpec = {
  readonly name: string
  /** As containerd takes it: `ipdr.internal/<CID>…` in CIDv1, or an image of a registry. */
  readonly image: string
  /** In place of the image's entrypoint; empty: that one. */
  readonly entrypoint: readonly string[]
  /** In place of the image's command; empty: that one. */
  readonly arguments: readonly string[]
  readonly workingDir?: string | undefined
  readonly env: ReadonlyMap<string, string>
  readonly ports: readonly PortSpec[]
  readonly mounts: readonly MountSpec[]
  /** What is reserved, paid for, and the most that it gets. */
  readonly cpuMillis: number
  readonly memoryBytes: number
  /** Other resources by Kubernetes' names, as nvidia.com/gpu. */
  readonly devices: ReadonlyMap<string, number>
}

export type PortSpec = {
  readonly name: string
  readonly containerPort: number
  /** Where others of the pod's namespace reach it. */
  readonly servicePort: number
  readonly exposure?: Exposure | undefined
}

export type Exposure =
  /** HTTP requests for a host name, in lower case. */
  | { readonly kind: 'http'; readonly host: string }
  /** A port of the cluster's nodes; undefined: the cluster chooses one. */
  | { readonly kind: 'tcp'; readonly nodePort: number | undefined }

export type MountSpec = {
  /** The volume's name. */
  readonly volume: string
  /** Absolute. */
  readonly path: string
  readonly readOnly: boolean
}

export type VolumeSpec =
  /** Empty at every start. */
  | { readonly kind: 'scratch'; readonly name: string; readonly bytes: number }
  /** Stays until the pod is deleted. */
  | {
      readonly kind: 'disk'
      readonly name: string
      readonly bytes: number
      /** Replicas use it together. */
      readonly isShared: boolean
    }
  /** A file, mounted at the mount's path. */
  | { readonly kind: 'secret'; readonly name: string; readonly contents: Uint8Array }

export type ScalingSpec = {
  /** 0: it may sleep until a request comes. */
  readonly min: number
  readonly max: number
  /** Waiting HTTP requests per replica from which on there is one more; undefined: the cluster's own number. */
  readonly pendingRequests?: number | undefined
}

export type RegistryLogin = {
  readonly server: string
  readonly username: string
  readonly password: string
}

/** What a pod and its publisher are called in the cluster. */
export type PodIdentity = {
  /** 0x and 40 lower-case hex digits. */
  readonly publisher: `0x${string}`
  /** 0x and 64 lower-case hex digits. */
  readonly podId: `0x${string}`
  /** `tpod-` and 52 characters of base32. */
  readonly namespace: string
}
