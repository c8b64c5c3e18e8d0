/** How much a deployment may ask for, by whatever client: files are held to it (deployment-file/), and what an agent is sent (agent/deploy/parse-pod.ts). Units are in the names. */
export const DEPLOYMENT_LIMITS = {
  /** 1 MiB: sixteen containers with 64 KiB of environment each. */
  fileBytesMax: 1_048_576,
  /** More than any that we know. Containers share one pod, so its sum must fit one node. */
  containersMax: 16,
  /** Two for each container. */
  volumesMax: 32,
  mountsPerContainerMax: 64,
  /** Each becomes a Service. */
  portsPerContainerMax: 32,
  envEntriesMax: 256,
  /** Words of an entrypoint and a command together. */
  argumentsMax: 256,
  /** 64 KiB, of one container's words, and names and values of variables: sixteen containers of them are the 1 MiB of an object. */
  wordsBytesMax: 65_536,
  /** 512 KiB, of all secrets together: they lie in etcd twice, in an object of 1 MiB at most. */
  secretBytesMax: 524_288,
  /** More are a matter for several pods, or for a word with the operator. */
  replicasMax: 100,
  /** Kinds of devices of one container. */
  devicesMax: 8,
  loginsMax: 16,
  /** Objects are named after it: 63 characters of a DNS label less a prefix and a suffix such as `tpod-secret-`. */
  nameCharsMax: 40,
  /** 512 cores. More is a mistake in a unit. */
  cpuMillisMax: 512_000,
  /** 4 MiB: below it no container starts; whoever writes less has left out the unit. */
  memoryBytesMin: 4_194_304,
  /** 16 TiB */
  memoryBytesMax: 17_592_186_044_416,
  /** 1 MiB: smaller than any file system; whoever writes less has left out the unit. An agent takes less. */
  volumeBytesMin: 1_048_576,
  /** 64 TiB */
  volumeBytesMax: 70_368_744_177_664,
  /** 8 KiB: a token, or a key file of a cloud's registry, which has 2.4 KiB. */
  passwordBytesMax: 8_192,
} as const
