import { readFileSync } from 'node:fs'
import { z } from 'zod'
import { CodedError } from '../snapshotter/errors.ts'
import { parseCid } from '../snapshotter/oci/parse-cid.ts'
import { IMAGE_HOST, parseImageReference } from '../snapshotter/oci/reference.ts'
import { isRegistryHost, parseRegistryReference } from '../snapshotter/oci/registry-reference.ts'
import { type DeployConfig, deployConfigSchema } from './deploy/deploy-config.ts'
import { type ListenAddress, listenAddress } from './listen-address.ts'

/** A configuration that cannot be used; the message names every field that is wrong. */
export class ConfigError extends CodedError {}

const KiB = 1024
const MiB = 1024 ** 2
const GiB = 1024 ** 3

/** sun_path holds 108 bytes, the last one NUL (unix(7)). */
const SOCKET_PATH_BYTES_MAX = 107

const absolutePath = z
  .string()
  .regex(/^\/[^\0]*$/, 'must be an absolute path')
  .max(200, 'must be at most 200 bytes: mount options of 128 layers share one 4,096-byte page')

const socketPath = absolutePath.max(
  SOCKET_PATH_BYTES_MAX,
  `must be at most ${SOCKET_PATH_BYTES_MAX} bytes, the kernel's limit for a socket path`,
)

/** What the agent was told to do, checked and with every default filled in. Units are in the names. */
export type Config = {
  /** Snapshots, layers and databases. Must lie on ext4, xfs or btrfs: EROFS mounts files from it. */
  readonly root: string
  /** Sockets, the FUSE mount and what is forgotten at reboot. */
  readonly runDir: string
  readonly log: {
    readonly level: 'trace' | 'debug' | 'info' | 'warn' | 'error'
    /** `json` for machines, `text` for a terminal. */
    readonly format: 'json' | 'text'
  }
  /** Where containerd's proxy_plugins entry points; `<runDir>/snapshotter.sock` unless given. */
  readonly snapshotter: { readonly socketPath: string }
  /** Where the `ipdr` command talks to the agent; `<runDir>/admin.sock` unless given. */
  readonly admin: { readonly socketPath: string }
  /** Where containerd listens: containers on a layer that turned out to be another than promised are ended by it. */
  readonly containerd: { readonly socketPath: string }
  /** The OCI endpoint that hosts.toml points to. Loopback: it serves whoever can connect. */
  readonly registry: { readonly listen: ListenAddress }
  /** /metrics, /livez and /readyz. */
  readonly monitoring: { readonly listen: ListenAddress }
  readonly ipfs: {
    /** Trustless HTTP gateways, tried before bitswap, like http://10.0.0.7:8080. */
    readonly gateways: readonly string[]
    /** Multiaddrs dialled at start and kept connected. */
    readonly peers: readonly string[]
    /** Multiaddrs to listen on; none: the node only dials. */
    readonly listen: readonly string[]
    /** Fetch by bitswap over libp2p from `peers`. */
    readonly bitswap: boolean
  }
  /** Images in other registries, as far as they can be read lazily. */
  readonly registries: {
    /** Off: containerd downloads them whole, and no registry is ever asked. */
    readonly lazy: boolean
    /** CIDs that `ipdr index docker://…` printed: indexes of gzip layers, which whoever runs this node vouches for. */
    readonly indexes: readonly string[]
    /** How registries are reached, by host as in an image's name. */
    readonly hosts: Readonly<
      Record<
        string,
        {
          /** Asked in its place, like https://mirror.example/docker. */
          readonly mirror?: string | undefined
          /** Plain HTTP, for the registry and its token server; loopback needs no leave. */
          readonly insecure: boolean
          /** Certificates to trust beside those of the system, in PEM. */
          readonly caFile?: string | undefined
        }
      >
    >
    readonly credentials: {
      /** Files as docker login writes them, with the credential helpers that they name; for every namespace of the node. */
      readonly dockerConfigs: readonly string[]
      /** The agent as CRI's image service between the kubelet and containerd, which learns what each pod's namespace pulls with. */
      readonly imageService:
        | {
            /** What the kubelet's image service endpoint is set to; `<runDir>/cri-image.sock` unless given. */
            readonly socketPath: string
          }
        | undefined
      /** Pull secrets of a Kubernetes cluster, each for images of its namespace's pods. */
      readonly pullSecrets:
        | {
            /** Undefined: as in a pod, by its service account. */
            readonly kubeconfig?: string | undefined
            /** Only these namespaces' secrets; undefined: those of all. */
            readonly namespaces?: readonly string[] | undefined
            /** This node, whose pods tell for whom images are pulled where no image service does. */
            readonly nodeName?: string | undefined
          }
        | undefined
    }
  }
  readonly fetch: {
    /** How long a page fault may wait for its bytes before it becomes EIO. */
    readonly foregroundDeadlineMs: number
    /** Units on their way at once. */
    readonly concurrency: number
  }
  /** Layer bytes kept on disk before the least recently used ones are dropped. */
  readonly store: {
    readonly bytesMax: number
    /** Images that stay whatever the store needs: root CIDs, and names of images in registries. */
    readonly pinned: readonly string[]
  }
  /** Agents of other nodes, which share what they find out about layers. */
  readonly cluster: {
    /** Where this one answers the others; undefined: it does not. */
    readonly listen?: ListenAddress | undefined
    /** The others, like https://10.0.0.7:5082. */
    readonly peers: readonly string[]
    /** Finds the others, beside `peers`, by a headless Service of a Kubernetes cluster; undefined: only `peers` are known. */
    readonly kubernetes?:
      | {
          /** Undefined: as in a pod, by its service account. */
          readonly kubeconfig?: string | undefined
          readonly namespace: string
          readonly service: string
        }
      | undefined
    /** What the others call this node, like https://10.0.0.7:5082; by default the entry of `peers` that is its own, or `listen`. */
    readonly address?: string | undefined
    /** Blocks, which each node fetches for all and the others get from it. */
    readonly blocks: {
      readonly share: boolean
      /** Blocks kept on disk for others before the oldest are dropped. */
      readonly cacheBytesMax: number
      /** What this node sends to others, all together. */
      readonly uploadBytesPerSecond: number
      /** Requests of others that are worked on at once. */
      readonly answersMax: number
    }
    /** Files in PEM by which they know each other; the authority is the cluster's own. */
    readonly tls?:
      | { readonly certFile: string; readonly keyFile: string; readonly caFile: string }
      | undefined
  }
  readonly decryption: {
    /**
     * Private keys of encrypted images, a JWK or PEM file each, mode 600: directly in it for every pod, in a sub-directory for pods
     * of the namespace with its name. None: encrypted images are refused.
     */
    readonly keysDir?: string | undefined
    /** Key providers to ask for every pod, in a file as ocicrypt has it. */
    readonly keyProviders?: string | undefined
  }
  readonly trust: {
    /** Which images may run. The first that is for an image decides; without one for it, it runs. */
    readonly policies: readonly {
      /** Stands in every refusal. */
      readonly name: string
      /** Names of images, as `ipdr.internal/*`; `*` stands for any characters. */
      readonly images: readonly string[]
      /** CIDs of images that need no signature. */
      readonly roots: readonly string[]
      /** Files with the public keys, in PEM, of those whose signature counts. */
      readonly keys: readonly string[]
      /** Of how many of them there must be one. */
      readonly signaturesMin: number
    }[]
  }
  /** The process that holds the node's FUSE connection while no agent runs. */
  readonly fuseKeeper: {
    /**
     * A control group, as `/ipdr-fuse-keeper`, that it is put into; for agents in containers, whose own group is killed with them.
     * Undefined: it stays in that of the agent.
     */
    readonly controlGroup?: string | undefined
  }
  readonly prefetch: {
    /** Fetch what a start will read before it is read, by lists that were published or learned. */
    readonly replay: boolean
    /** Learn such lists from the starts of this node. */
    readonly learn: boolean
    /** Fetch all of an image, behind everything else, once a container of it starts. */
    readonly rest: boolean
  }
  readonly mounts: {
    /**
     * From how many lazy layers on an image is mounted as one merged EROFS instead of a mount a layer. Below it,
     * layers share mounts, and page cache, between images.
     */
    readonly mergeLayersMin: number
    /** Read-ahead of lazy mounts. */
    readonly readAheadKb: number
    /** What the kernel mounts layers from: loop devices while bytes are missing (`auto`), files always, or loop devices always. */
    readonly from: 'auto' | 'files' | 'loops'
  }
  /** Where publishers deploy pods to this node's cluster; undefined: it takes none. */
  readonly deploy?: DeployConfig | undefined
  /** This agent as containerd's content store; undefined: containerd has its own. */
  readonly content?:
    | {
        /** `<runDir>/content.sock` unless given. */
        readonly socketPath: string
        /** Where blobs are, in the layout of containerd's own store, so that what that one has stays. */
        readonly root: string
      }
    | undefined
  /** This agent as a key provider over the keys that every pod may use, for skopeo and ctd-decoder; undefined: it is none. */
  readonly keyProvider?:
    | {
        /** `<runDir>/keyprovider.sock` unless given. Whoever can connect can have layers opened. */
        readonly socketPath: string
        /** Public keys to wrap for, by name, beside those of the directory. */
        readonly wrapKeys: Readonly<Record<string, string>>
      }
    | undefined
}

/** RFC 1123, as Kubernetes has it for namespaces and nodes. */
const kubeName = (charsMax: number) =>
  z
    .string()
    .max(charsMax)
    .regex(/^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/, 'must be a name as Kubernetes gives it')

/** Public keys that a key provider wraps for. 64: as many as there may be private ones. */
const WRAP_KEYS_MAX = 64

const multiaddrs = (countMax: number) => z.array(z.string().startsWith('/').max(512)).max(countMax)

const rootCid = z.string().transform((text, ctx): string => {
  const cid = parseCid(text)
  if (cid !== undefined) return cid.toV1().toString()
  ctx.addIssue(`must be a CID, not '${text.slice(0, 100)}'`)
  return z.NEVER
})

/** `ipdr.internal/<cid>`, a CID, or an image of a registry by its full name with its tag or digest. */
const pinnedImage = z
  .string()
  .max(512)
  .transform((text, ctx): string => {
    try {
      if (parseCid(text) !== undefined || text.startsWith(`${IMAGE_HOST}/`)) {
        return parseImageReference(text).root.toV1().toString()
      }
      parseRegistryReference(text)
      return text
    } catch (error) {
      ctx.addIssue(error instanceof Error ? error.message : String(error))
      return z.NEVER
    }
  })

const trustPolicy = z
  .strictObject({
    name: z
      .string()
      .regex(/^[a-z0-9][a-z0-9._-]{0,62}$/i, 'must be a word of 63 characters at most'),
    // Few stars: each multiplies the work of a comparison.
    images: z
      .array(
        z
          .string()
          .regex(/^(?:[^*]*\*){0,4}[^*]*$/, 'may have four * at most')
          .min(1)
          .max(300),
      )
      .min(1)
      .max(64)
      .default(['*']),
    roots: z.array(rootCid).max(4096).default([]),
    keys: z.array(absolutePath).max(64).default([]),
    signaturesMin: z.number().int().min(1).max(64).default(1),
  })
  .refine(({ keys, signaturesMin }) => keys.length === 0 || signaturesMin <= keys.length, {
    error: 'signaturesMin: there are not that many keys',
  })

const configSchema = z.strictObject({
  root: absolutePath.default('/var/lib/ipdr-agent'),
  runDir: absolutePath.default('/run/ipdr-agent'),
  log: z
    .strictObject({
      level: z.enum(['trace', 'debug', 'info', 'warn', 'error']).default('info'),
      format: z.enum(['json', 'text']).default('json'),
    })
    .prefault({}),
  snapshotter: z.strictObject({ socketPath: socketPath.optional() }).prefault({}),
  admin: z.strictObject({ socketPath: socketPath.optional() }).prefault({}),
  containerd: z
    .strictObject({ socketPath: socketPath.default('/run/containerd/containerd.sock') })
    .prefault({}),
  registry: z.strictObject({ listen: listenAddress.prefault('127.0.0.1:5080') }).prefault({}),
  monitoring: z.strictObject({ listen: listenAddress.prefault('127.0.0.1:5081') }).prefault({}),
  ipfs: z
    .strictObject({
      gateways: z
        .array(z.url({ protocol: /^https?$/ }))
        .max(64)
        .default([]),
      peers: multiaddrs(64).default([]),
      listen: multiaddrs(16).default([]),
      bitswap: z.boolean().default(true),
    })
    .prefault({}),
  registries: z
    .strictObject({
      lazy: z.boolean().default(true),
      indexes: z.array(rootCid).max(64).default([]),
      hosts: z
        .record(
          z.string(),
          z.strictObject({
            mirror: z
              .url({ protocol: /^https?$/ })
              .max(1_024)
              .optional(),
            insecure: z.boolean().default(false),
            caFile: absolutePath.optional(),
          }),
        )
        .superRefine((hosts, ctx) => {
          for (const host of Object.keys(hosts)) {
            if (isRegistryHost(host)) continue
            const message = 'must be a host as in an image name, like docker.io or 10.0.0.7:5000'
            ctx.addIssue({ code: 'custom', path: [host.slice(0, 260)], message })
          }
        })
        .default({}),
      credentials: z
        .strictObject({
          dockerConfigs: z.array(absolutePath).max(16).default([]),
          imageService: z.strictObject({ socketPath: socketPath.optional() }).optional(),
          pullSecrets: z
            .strictObject({
              kubeconfig: absolutePath.optional(),
              namespaces: z.array(kubeName(63)).min(1).max(100).optional(),
              nodeName: kubeName(253).optional(),
            })
            .optional(),
        })
        .prefault({}),
    })
    .prefault({}),
  fetch: z
    .strictObject({
      // 30 s: three providers at a time-out of 10 s.
      foregroundDeadlineMs: z.number().int().min(100).max(600_000).default(30_000),
      // 32 × 512 KiB = 16 MiB in flight: 1.3 s of a 100 Mbit/s link.
      concurrency: z.number().int().min(1).max(256).default(32),
    })
    .prefault({}),
  store: z
    .strictObject({
      bytesMax: z
        .number()
        .int()
        .min(64 * MiB)
        .default(50 * GiB),
      pinned: z.array(pinnedImage).max(256).default([]),
    })
    .prefault({}),
  cluster: z
    .strictObject({
      listen: listenAddress.optional(),
      peers: z
        .array(z.url({ protocol: /^https$/ }))
        .max(256)
        .default([]),
      kubernetes: z
        .strictObject({
          kubeconfig: absolutePath.optional(),
          namespace: kubeName(63).default('ipdr-system'),
          service: kubeName(63).default('ipdr-agent'),
        })
        .optional(),
      address: z.url({ protocol: /^https$/ }).optional(),
      blocks: z
        .strictObject({
          share: z.boolean().default(true),
          // 512 MiB: some two images of 250 MB, of which each node of n has to keep an nth.
          cacheBytesMax: z
            .number()
            .int()
            .min(0)
            .default(512 * MiB),
          // 256 MiB: two gigabits, about what one core of TLS comes to.
          uploadBytesPerSecond: z
            .number()
            .int()
            .min(64 * KiB)
            .default(256 * MiB),
          // 256: a block of all 32 that a node wants at once from each of its peers.
          answersMax: z.number().int().min(1).max(4096).default(256),
        })
        .prefault({}),
      tls: z
        .strictObject({ certFile: absolutePath, keyFile: absolutePath, caFile: absolutePath })
        .optional(),
    })
    .refine(
      ({ listen, peers, kubernetes, tls }) =>
        tls !== undefined || (listen ?? peers[0] ?? kubernetes) === undefined,
      { error: 'needs tls: peers must know each other' },
    )
    .prefault({}),
  decryption: z
    .strictObject({ keysDir: absolutePath.optional(), keyProviders: absolutePath.optional() })
    .prefault({}),
  trust: z
    .strictObject({
      policies: z
        .array(trustPolicy)
        .max(64)
        .refine((all) => new Set(all.map(({ name }) => name)).size === all.length, {
          error: 'two policies have the same name',
        })
        .default([]),
    })
    .prefault({}),
  fuseKeeper: z
    .strictObject({
      controlGroup: z
        .string()
        .max(200)
        .regex(
          /^(?:\/[A-Za-z0-9_][A-Za-z0-9_.:-]*)+$/,
          'must be a control group, like /ipdr-fuse-keeper',
        )
        .optional(),
    })
    .prefault({}),
  prefetch: z
    .strictObject({
      replay: z.boolean().default(true),
      learn: z.boolean().default(true),
      rest: z.boolean().default(false),
    })
    .prefault({}),
  mounts: z
    .strictObject({
      // 24: overlay costs about 0.25 ms a layer and mount, 6 ms at 24.
      mergeLayersMin: z.number().int().min(2).max(500).default(24),
      // 1 MiB: four FUSE READs at their largest, so that both threads have work.
      readAheadKb: z.number().int().min(4).max(16_384).default(1024),
      from: z.enum(['auto', 'files', 'loops']).default('auto'),
    })
    .prefault({}),
  deploy: deployConfigSchema.optional(),
  content: z
    .strictObject({
      socketPath: socketPath.optional(),
      root: absolutePath.default('/var/lib/containerd/io.containerd.content.v1.content'),
    })
    .optional(),
  keyProvider: z
    .strictObject({
      socketPath: socketPath.optional(),
      wrapKeys: z
        .record(z.string().min(1).max(128), absolutePath)
        .refine((keys) => Object.keys(keys).length <= WRAP_KEYS_MAX, {
          error: `must be at most ${WRAP_KEYS_MAX} keys`,
        })
        .default({}),
    })
    .optional(),
})

/** Checks a configuration. Throws ConfigError INVALID_ARGUMENT that names every wrong or unknown field. */
export function parseConfig(value: unknown, origin = 'configuration'): Config {
  const parsed = configSchema.safeParse(value)
  if (!parsed.success) {
    const problems = parsed.error.issues.map((issue) => {
      const at = issue.path.length === 0 ? 'top level' : issue.path.join('.')
      return `${at}: ${issue.message}`
    })
    throw new ConfigError('INVALID_ARGUMENT', `${origin}: ${problems.join('; ')}`, { origin })
  }
  const config = parsed.data
  if (config.keyProvider !== undefined && config.decryption.keysDir === undefined) {
    throw new ConfigError(
      'INVALID_ARGUMENT',
      `${origin}: keyProvider: needs decryption.keysDir, the private keys that it opens layers with`,
      { origin },
    )
  }
  const { imageService } = config.registries.credentials
  return {
    ...config,
    registries: {
      ...config.registries,
      credentials: {
        ...config.registries.credentials,
        imageService: imageService && {
          socketPath: imageService.socketPath ?? `${config.runDir}/cri-image.sock`,
        },
        pullSecrets: config.registries.credentials.pullSecrets,
      },
    },
    snapshotter: {
      socketPath: config.snapshotter.socketPath ?? `${config.runDir}/snapshotter.sock`,
    },
    admin: { socketPath: config.admin.socketPath ?? `${config.runDir}/admin.sock` },
    content: config.content && {
      ...config.content,
      socketPath: config.content.socketPath ?? `${config.runDir}/content.sock`,
    },
    keyProvider: config.keyProvider && {
      ...config.keyProvider,
      socketPath: config.keyProvider.socketPath ?? `${config.runDir}/keyprovider.sock`,
    },
  }
}

/** Reads and checks a JSON file. Throws ConfigError with the path and, for bad JSON, the parser's position. */
export function readConfig(path: string): Config {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    throw new ConfigError('NOT_FOUND', `cannot read configuration file ${path}`, { path }, error)
  }
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    throw new ConfigError('INVALID_ARGUMENT', `${path} is not JSON: ${reason}`, { path }, error)
  }
  return parseConfig(value, path)
}
