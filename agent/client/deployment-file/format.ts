import { z } from 'zod'
import { DEPLOYMENT_LIMITS } from '../deployment-limits.ts'
import { NAME_PATTERN } from '../deployment-names.ts'
import { type ImageName, parseImageName } from './image-name.ts'
import { parseBytes, parseCpu, type Quantity } from './quantities.ts'

// The deployment file, field by field: docs/deployment-file.md is for people, this for machines. What concerns two fields at once is
// in cross-checks.ts.

const LIMITS = DEPLOYMENT_LIMITS

/** What a name may be, for messages. */
export const NAME_RULE: string = `write lower-case letters, digits and hyphens between them, ${LIMITS.nameCharsMax} at most`

/** Says what is meant where something else is, or nothing. */
function meant(what: string): { error: (issue: { readonly input?: unknown }) => string } {
  return {
    error: ({ input }) => {
      if (input === undefined) return `is missing; write ${what}`
      return input === null ? `is empty; write ${what}` : `must be ${what}`
    },
  }
}

function quantity(
  what: string,
  examples: string[],
  parse: (written: string | number) => Quantity,
): z.ZodType<number, string | number> {
  return z
    .union([z.string(), z.number()], meant(what))
    .meta({ examples })
    .transform((written, ctx): number => {
      const parsed = parse(written)
      if ('amount' in parsed) return parsed.amount
      ctx.addIssue(parsed.wrong)
      return z.NEVER
    })
}

const name = z.string(meant('a name, as guestbook')).regex(NAME_PATTERN, {
  error: ({ input }) =>
    `'${String(input).slice(0, 80)}' is no name for an object of the cluster; ${NAME_RULE}`,
})

/** A scalar that becomes text as it was written. */
const scalar = z.union([z.string(), z.number(), z.boolean()], meant('text'))

const absolutePath = z
  .string(meant('an absolute path, as /var/lib/data'))
  .max(1024, 'may have 1024 characters at most')
  .regex(/^\/[^:]*$/, 'must be an absolute path without colons, as /var/lib/data')
  .refine((path) => path !== '/', 'must be a path below /')
  .refine(
    (path) => !path.split('/').includes('..'),
    'may not have .. in it; write the path that is meant',
  )

const filePath = z
  .string(meant('the path of a file'))
  .min(1, 'is empty; write the path of a file')
  .max(4096, 'may have 4096 characters at most')

const variableName = z
  .string(meant('the name of an environment variable'))
  .regex(/^[A-Za-z_][A-Za-z0-9_]*$/, 'must be the name of an environment variable, as DB_PASSWORD')

const portNumber = (what: string, range = 'must be between 1 and 65535'): z.ZodNumber =>
  z.number(meant(what)).int('must be a whole number').min(1, range).max(65_535, range)

const wordList = (what: string): z.ZodArray<typeof scalar> =>
  z.array(scalar, {
    error: ({ input }) =>
      typeof input === 'string'
        ? `must be a list; for a line that a shell reads, write ["sh", "-c", ${JSON.stringify(input.slice(0, 80))}]`
        : `must be a list of words, as ${what}`,
  })

const port = z
  .strictObject(
    {
      name: name.describe('Unique in the pod.'),
      container: portNumber('the port that the container listens on, as 80').describe(
        'The port that the container listens on.',
      ),
      service: portNumber('a port, as 80')
        .describe(
          "The port of the Service by which others in the pod's namespace reach it; the same, unless given.",
        )
        .optional(),
      host: z
        .string(meant('a host name, as guestbook.example.com'))
        .max(253, 'may have 253 characters at most')
        .regex(
          /^(?!\d[\d.]*$)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/i,
          'must be a host name alone, as guestbook.example.com, without http:// and port',
        )
        .describe('Host name whose HTTP requests come here.')
        .optional(),
      tcp: z
        .union(
          [z.literal('auto'), portNumber('a port', 'must be between 1 and 65535, or auto')],
          meant("auto, or the number of a port of the cluster's nodes, as 30080"),
        )
        .describe("A port of the cluster's nodes; auto has the cluster choose one.")
        .optional(),
    },
    {
      error: ({ code, input }) => {
        if (code !== 'invalid_type') return undefined
        const number = /(\d{1,5})(?:\/tcp)?$/.exec(String(input))?.[1] ?? '80'
        return `must be a map, as { name: http, container: ${number} }`
      },
    },
  )
  .describe('A port of the container. With host or tcp it is reached from outside.')

const mount = z
  .union(
    [
      z
        .string()
        .regex(
          /^[^:]+:\/[^:]*(?::(?:ro|rw))?$/,
          'must be volume:/path, volume:/path:ro, or a map with volume and path',
        )
        .max(1_100, 'may have a path of 1024 characters at most')
        .refine((text) => !text.split(/[:/]/).includes('..'), 'may not have .. in its path')
        .refine((text) => text.split(':')[1] !== '/', 'must have a path below /'),
      z.strictObject(
        {
          volume: z.string(meant('the name of a volume')).describe('Name of one of the volumes.'),
          path: absolutePath.describe(
            'Where the container finds it; of a secret, the path of the file.',
          ),
          read_only: z
            .boolean(meant('true or false'))
            .describe('Whether the container can only read it.')
            .default(false),
        },
        { error: ({ code }) => (code === 'invalid_type' ? 'must be a map' : undefined) },
      ),
    ],
    { error: 'must be volume:/path, or a map with volume and path' },
  )
  .describe('A volume and where it is mounted: data:/var/lib/data, with :ro behind it, or a map.')

/** One container. */
const containerFormat = z.strictObject(
  {
    image: z
      .string(meant('ipdr.internal/<CID>, or an image of a registry'))
      .meta({
        description:
          'ipdr.internal/<CID>, a CID alone, an image of a registry, or a path as ./app.tar: an archive or OCI layout, which is published first.',
        examples: ['docker.io/library/nginx:1.27', './app.tar'],
      })
      .transform((written, ctx) => {
        const parsed = parseImageName(written)
        if (parsed.kind !== 'wrong') return parsed
        ctx.addIssue(parsed.message)
        return z.NEVER
      }),
    cpu: quantity(
      'cores, as 0.5, or thousandths of one, as 500m',
      ['250m', '2'],
      parseCpu,
    ).describe('Cores that are reserved and paid for, and the most that it gets.'),
    memory: quantity('a number of bytes with its unit, as 128MiB', ['128MiB', '2GB'], (written) =>
      parseBytes(written, { min: LIMITS.memoryBytesMin, max: LIMITS.memoryBytesMax }),
    ).describe('Memory that is reserved and paid for, and the most that it gets.'),
    entrypoint: wordList('["/app/server"]')
      .describe("The program and its first arguments, in place of the image's entrypoint.")
      .optional(),
    command: wordList('["--verbose"]')
      .describe("Arguments, in place of the image's command.")
      .optional(),
    working_dir: absolutePath.describe("In place of the image's.").optional(),
    environment: z
      .union([z.record(z.string(), scalar), z.array(z.string())], {
        error: 'must be a map, as { LEVEL: info }, or a list, as [ LEVEL=info ]',
      })
      .describe('A map, or a list of NAME=value.')
      .optional(),
    ports: z
      .array(port, meant('a list of ports'))
      .max(LIMITS.portsPerContainerMax, `may have ${LIMITS.portsPerContainerMax} ports at most`)
      .describe('Ports of the container; others of its pod reach them all.')
      .optional(),
    volumes: z
      .array(mount, meant('a list, as [ data:/var/lib/data ]'))
      .max(LIMITS.mountsPerContainerMax, `may have ${LIMITS.mountsPerContainerMax} volumes at most`)
      .describe('Which volumes are mounted where.')
      .optional(),
    devices: z
      .record(
        z.string(),
        z
          .number(meant('how many, as 1'))
          .int('must be a whole number')
          .min(1, 'must be 1 at least')
          .max(64, 'must be 64 at most'),
        meant('a map, as { nvidia.com/gpu: 1 }'),
      )
      .describe('Other resources by the name that Kubernetes has for them, as nvidia.com/gpu.')
      .optional(),
  },
  meant('a map with image, cpu and memory'),
)

/** What a secret holds: one of these. */
const secretFormat = z.strictObject(
  {
    file: filePath.describe('A file beside this one.').optional(),
    text: z
      .string(meant('text; put numbers into quotes'))
      .describe('The contents themselves.')
      .optional(),
    base64: z
      .base64('must be base64, as base64 prints it with -w0')
      .describe('The contents, in base64.')
      .optional(),
    env: variableName.describe('A variable of whoever deploys.').optional(),
  },
  meant('a map with file, text, base64 or env'),
)

/** One volume: one of disk, scratch and secret. */
const volumeFormat = z.strictObject(
  {
    disk: quantity('a size, as 1GiB', ['1GiB'], volumeBytes)
      .describe('Size of a disk that stays until the pod is deleted.')
      .optional(),
    shared: z
      .boolean(meant('true or false'))
      .describe('Whether replicas use the disk together.')
      .optional(),
    scratch: quantity('a size, as 100MiB', ['100MiB'], volumeBytes)
      .describe('Size of a folder that is empty at every start.')
      .optional(),
    secret: secretFormat.describe('A file of a few bytes that nobody else reads.').optional(),
  },
  meant('a map with disk, scratch or secret, as { disk: 1GiB }'),
)

/** When there is how much of the pod. */
const scalingFormat = z.strictObject(
  {
    min: replicas('how many replicas there always are', 0)
      .describe('Replicas that there always are; 0: it sleeps until an HTTP request comes.')
      .default(1),
    max: replicas('how many replicas there are at most', 1)
      .describe('Replicas that there are at most; as min, unless given, and 1 at least.')
      .optional(),
    pending_requests: z
      .number(meant('a number, as 20'))
      .int('must be a whole number')
      .min(1, 'must be 1 at least')
      .max(1_000_000, 'must be 1000000 at most')
      .describe('Waiting HTTP requests per replica from which on there is one more.')
      .optional(),
  },
  meant('a map with min and max'),
)

/** How images of one registry are got at. */
const loginFormat = z.strictObject(
  {
    username: z
      .string(meant('the name to log in with'))
      .min(1, 'is empty; write the name to log in with')
      .max(256, 'may have 256 characters at most')
      .regex(/^[^:]*$/, 'may have no colon')
      .describe('The name to log in with.'),
    password_file: filePath
      .describe('A file beside this one with the password or token.')
      .optional(),
    password_env: variableName.describe('A variable of whoever deploys.').optional(),
  },
  meant('a map with username and password_file or password_env'),
)

/** The whole file. */
const deploymentFormat = z.strictObject(
  {
    name: name.describe('What the pod is called, for people.'),
    provider: z
      .string(meant('a multiaddr'))
      .max(1024, 'may have 1024 characters at most')
      .regex(
        /^\/(?:\S*\/)?p2p\/[1-9A-HJ-NP-Za-z]{40,128}$/,
        'must be a multiaddr that ends in a peer ID, as /dns4/node.example.com/tcp/4011/p2p/12D3KooW…',
      )
      .describe('Multiaddr of the agent to deploy to, if --provider says nothing else.')
      .optional(),
    containers: named(containerFormat, 'containers', 'a map of containers by name').describe(
      `Containers by name, ${LIMITS.containersMax} at most. They share one pod: they reach each other at localhost.`,
    ),
    volumes: named(volumeFormat, 'volumes', 'a map of volumes by name')
      .describe(`Volumes by name, ${LIMITS.volumesMax} at most.`)
      .optional(),
    scaling: scalingFormat.describe('How many replicas there are; one, unless given.').optional(),
    logins: z
      .record(z.string(), loginFormat, meant('a map of logins by registry, as { ghcr.io: { … } }'))
      .describe('For images in registries that want a login, by registry, as ghcr.io.')
      .optional(),
    runtime_class: z
      .string(meant('a name'))
      .max(253, 'may have 253 characters at most')
      .regex(/^[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?$/, 'must be one that the provider offers, as kata')
      .describe("How containers are kept apart, as kata; the cluster's usual way, unless given.")
      .optional(),
    stateful: z
      .boolean(meant('true or false'))
      .describe('Replicas have names and volumes of their own, and start one after the other.')
      .default(false),
  },
  meant('a map with name and containers'),
)

/** A file whose fields each are right, with quantities as numbers. */
export type DeploymentValue = {
  readonly name: string
  readonly provider?: string | undefined
  readonly containers: Readonly<Record<string, ContainerValue>>
  readonly volumes?: Readonly<Record<string, VolumeValue>> | undefined
  readonly scaling?:
    | {
        readonly min: number
        readonly max?: number | undefined
        readonly pending_requests?: number | undefined
      }
    | undefined
  readonly logins?: Readonly<Record<string, LoginValue>> | undefined
  readonly runtime_class?: string | undefined
  readonly stateful: boolean
}

export type ContainerValue = {
  readonly image: Exclude<ImageName, { readonly kind: 'wrong' }>
  /** Thousandths of a core. */
  readonly cpu: number
  /** Bytes. */
  readonly memory: number
  readonly entrypoint?: readonly Scalar[] | undefined
  readonly command?: readonly Scalar[] | undefined
  readonly working_dir?: string | undefined
  readonly environment?: Readonly<Record<string, Scalar>> | readonly string[] | undefined
  readonly ports?: readonly PortValue[] | undefined
  readonly volumes?: readonly MountValue[] | undefined
  readonly devices?: Readonly<Record<string, number>> | undefined
}

/** What YAML made of a word; how it was written is asked of the source. */
export type Scalar = string | number | boolean

export type PortValue = {
  readonly name: string
  readonly container: number
  readonly service?: number | undefined
  readonly host?: string | undefined
  readonly tcp?: 'auto' | number | undefined
}

export type MountValue =
  /** `volume:/path` or `volume:/path:ro` */
  string | { readonly volume: string; readonly path: string; readonly read_only: boolean }

export type VolumeValue = {
  /** Bytes. */
  readonly disk?: number | undefined
  readonly shared?: boolean | undefined
  /** Bytes. */
  readonly scratch?: number | undefined
  readonly secret?: SecretValue | undefined
}

export type SecretValue = {
  readonly file?: string | undefined
  readonly text?: string | undefined
  readonly base64?: string | undefined
  readonly env?: string | undefined
}

export type LoginValue = {
  readonly username: string
  readonly password_file?: string | undefined
  readonly password_env?: string | undefined
}

/** Checks every field by itself. */
export function parseFields(
  value: unknown,
): { readonly value: DeploymentValue } | { readonly issues: readonly z.core.$ZodIssue[] } {
  const parsed = deploymentFormat.safeParse(value)
  return parsed.success ? { value: parsed.data } : { issues: parsed.error.issues }
}

/** For editors, which check and complete with it. */
export function deploymentJsonSchema(): Record<string, unknown> {
  const { $schema, ...schema } = z.toJSONSchema(deploymentFormat, {
    io: 'input',
    target: 'draft-7',
  })
  return { $schema, title: 'IPDR deployment file', ...schema }
}

/** What may stand in the map at `path`; empty where it is not fixed. */
export function fieldsAt(path: readonly PropertyKey[]): readonly string[] {
  const shape = shapeAt(path)
  return shape === undefined ? [] : Object.keys(shape)
}

function shapeAt(path: readonly PropertyKey[]): object | undefined {
  const [top, , part, index] = path
  if (path.length === 0) return deploymentFormat.shape
  if (path.length === 1) return top === 'scaling' ? scalingFormat.shape : undefined
  if (path.length === 2) {
    if (top === 'containers') return containerFormat.shape
    if (top === 'volumes') return volumeFormat.shape
    return top === 'logins' ? loginFormat.shape : undefined
  }
  if (path.length === 3 && top === 'volumes' && part === 'secret') return secretFormat.shape
  if (path.length === 4 && typeof index === 'number') {
    if (part === 'ports') return port.shape
    if (part === 'volumes') return { volume: 0, path: 0, read_only: 0 }
  }
  return undefined
}

/** Names are checked where problems point at keys; editors know of them from here. */
function named<Value extends z.ZodType>(
  value: Value,
  what: string,
  expected: string,
): z.ZodRecord<z.ZodString, Value> {
  return z
    .record(z.string(), value, meant(`${expected}, not a list of ${what}`))
    .meta({ propertyNames: { pattern: NAME_PATTERN.source } })
}

function volumeBytes(written: string | number): Quantity {
  return parseBytes(written, { min: LIMITS.volumeBytesMin, max: LIMITS.volumeBytesMax })
}

function replicas(what: string, least: number): z.ZodNumber {
  return z
    .number(meant(what))
    .int('must be a whole number')
    .min(least, `must be ${least} at least`)
    .max(LIMITS.replicasMax, `must be ${LIMITS.replicasMax} at most`)
}
