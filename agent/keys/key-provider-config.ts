import { z } from 'zod'
import { CodedError } from '../../snapshotter/errors.ts'
import { openShortFile, readShortFile } from './read-short-file.ts'

/** How a key provider is reached. */
export type KeyProviderPlace =
  /** In gRPC's words: `unix:/path`, or `host:port` of this machine. */
  | { readonly kind: 'grpc'; readonly target: string }
  /** A program that reads a request and writes an answer. */
  | { readonly kind: 'cmd'; readonly path: string; readonly args: readonly string[] }
  /** One that cannot be used; `because` says why. */
  | { readonly kind: 'unusable'; readonly because: string }

/** Key providers by name. */
export type KeyProviderPlaces = ReadonlyMap<string, KeyProviderPlace>

/** The file, in bytes. 64 KiB: 64 providers with a kilobyte of arguments each. */
const FILE_BYTES_MAX = 64 * 1024

/** Providers in it. 64: as many as a layer may have wrapped keys. */
const PROVIDERS_MAX = 64

const providerSchema = z.object({
  grpc: z.string().max(1024).nullish(),
  cmd: z
    .object({
      path: z.string().min(1).max(4096),
      args: z.array(z.string().max(4096)).max(64).nullish(),
    })
    .nullish(),
})

const fileSchema = z.object({
  // Names stand in annotations, and before a colon on command lines.
  'key-providers': z.record(z.string().regex(/^[^:\s]{1,128}$/), providerSchema),
})

/**
 * Reads key providers from a file as ocicrypt has it (docs/keyprovider.md, OCICRYPT_KEYPROVIDER_CONFIG). Rejects with CodedError
 * NOT_FOUND, RESOURCE_EXHAUSTED beyond the limits, or INVALID_ARGUMENT with the field that is wrong.
 */
export async function readKeyProviderConfig(path: string): Promise<KeyProviderPlaces> {
  const fail = (why: string, cause?: unknown): never => {
    const message = `${path} is no configuration of key providers as ocicrypt has it: ${why}`
    throw new CodedError('INVALID_ARGUMENT', message, { path }, cause)
  }
  const text = await readText(path)
  let value: unknown
  try {
    value = JSON.parse(text.toString('utf8'))
  } catch (error) {
    return fail(error instanceof Error ? error.message : String(error), error)
  }
  const parsed = fileSchema.safeParse(value)
  if (!parsed.success) {
    const issue = parsed.error.issues[0]
    return fail(`${issue?.path.join('.') ?? ''}: ${issue?.message ?? ''}`)
  }
  const providers = Object.entries(parsed.data['key-providers'])
  if (providers.length > PROVIDERS_MAX) {
    return fail(`it has ${providers.length} providers, ${PROVIDERS_MAX} are read`)
  }
  return new Map(providers.map(([name, provider]) => [name, placeOf(provider)]))
}

async function readText(path: string): Promise<Buffer> {
  try {
    await using file = await openShortFile(path)
    return await readShortFile(file, path, FILE_BYTES_MAX)
  } catch (error) {
    if (error instanceof CodedError) throw error
    const message = `the configuration of key providers ${path} cannot be read: ${error instanceof Error ? error.message : String(error)}`
    throw new CodedError('NOT_FOUND', message, { path }, error)
  }
}

function placeOf({ grpc, cmd }: z.infer<typeof providerSchema>): KeyProviderPlace {
  // As ocicrypt: the program, if both are there.
  if (cmd != null) return { kind: 'cmd', path: cmd.path, args: cmd.args ?? [] }
  if (grpc == null || grpc === '') {
    return {
      kind: 'unusable',
      because: "it has neither 'grpc' nor 'cmd', the ways to it known here",
    }
  }
  const socket = /^unix:(?:\/\/(?=\/))?(\/.+)$/.exec(grpc)?.[1]
  if (socket !== undefined) return { kind: 'grpc', target: `unix:${socket}` }
  const isLocal = /^(?:localhost|127(?:\.\d{1,3}){3}|\[::1\]):\d{1,5}$/.test(grpc)
  if (isLocal) return { kind: 'grpc', target: grpc }
  return {
    kind: 'unusable',
    because: `its address ${grpc} is neither unix:/path nor a port of this machine, and layer keys would cross the network in plain text: reach it through a tunnel`,
  }
}
