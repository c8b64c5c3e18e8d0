import { z } from 'zod'
import { LayerError } from '../errors.ts'
import { fromBase64, toBase64 } from './base64.ts'

/*
 * The JSON that ocicrypt and its key providers exchange, over gRPC or through standard input and output (ocicrypt,
 * docs/keyprovider.md and keywrap/keyprovider/keyprovider.go). Bytes are base64, as Go's encoding/json writes them.
 *
 *   wrap    {"op":"keywrap","keywrapparams":{"ec":{"Parameters":{<provider>:[<bytes>, ...]},...},"optsdata":<bytes>}}
 *           → {"keywrapresults":{"annotation":<bytes>}}
 *   unwrap  {"op":"keyunwrap","keyunwrapparams":{"dc":{"Parameters":{...}},"annotation":<bytes>}}
 *           → {"keyunwrapresults":{"optsdata":<bytes>}}
 */

/** A message, in bytes. 256 KiB: twice a wrapped key of 48 KiB, which is what an annotation of 64 KiB holds, in base64 within base64. */
export const KEY_PROVIDER_MESSAGE_BYTES_MAX: number = 256 * 1024

/** Private options, in bytes. 4 KiB: ocicrypt's have 200. */
const OPTIONS_BYTES_MAX = 4096

/** A wrapped key, in bytes. 48 KiB: an annotation of 64 KiB in base64. */
const WRAPPED_BYTES_MAX = 48 * 1024

/** What a key is to be wrapped for. */
export type WrapRequest = {
  /** What stood after `provider:<name>:`, one a recipient. */
  readonly parameters: readonly string[]
  /** The private options of a layer: secret. */
  readonly options: Uint8Array
}

function bytes(bytesMax: number) {
  return z
    .string()
    .max(Math.ceil(bytesMax / 3) * 4)
    .transform((text, context) => {
      const decoded = fromBase64(text)
      if (decoded !== undefined && decoded.length > 0) return decoded
      context.addIssue({ code: 'custom', message: 'is not base64' })
      return z.NEVER
    })
}

/** Go writes an absent list as null. ctd-decoder sends its private keys along; they are not looked at. */
const parametersSchema = z.record(z.string(), z.array(z.string()).nullable()).nullish()

const wrapInputSchema = z.object({
  op: z.literal('keywrap'),
  keywrapparams: z.object({
    ec: z.object({ Parameters: parametersSchema }),
    optsdata: bytes(OPTIONS_BYTES_MAX),
  }),
})

const unwrapInputSchema = z.object({
  op: z.literal('keyunwrap'),
  keyunwrapparams: z.object({ annotation: bytes(WRAPPED_BYTES_MAX) }),
})

const wrapOutputSchema = z.object({
  keywrapresults: z.object({ annotation: bytes(WRAPPED_BYTES_MAX) }),
})

const unwrapOutputSchema = z.object({
  keyunwrapresults: z.object({ optsdata: bytes(OPTIONS_BYTES_MAX) }),
})

/** Asks provider `name` to wrap. */
export function wrapInput(name: string, { parameters, options }: WrapRequest): Uint8Array {
  const named = { [name]: parameters.map((each) => toBase64(Buffer.from(each))) }
  return json({
    op: 'keywrap',
    keywrapparams: {
      ec: { Parameters: named, DecryptConfig: { Parameters: {} } },
      optsdata: toBase64(options),
    },
    keyunwrapparams: {},
  })
}

/** What provider `name` was asked to wrap. Throws LayerError INVALID_ARGUMENT; no sentence quotes what was read, which is a key. */
export function parseWrapInput(input: Uint8Array, name: string): WrapRequest {
  const parsed = parse(input, wrapInputSchema)
  const parameters = parsed?.keywrapparams.ec.Parameters?.[name]?.map(fromBase64)
  if (parsed === undefined || parameters?.some((each) => each === undefined)) {
    throw malformed('request to wrap is not {op: keywrap, keywrapparams: {ec, optsdata}}')
  }
  return {
    parameters: (parameters ?? []).map((each) => Buffer.from(each ?? []).toString('utf8')),
    options: parsed.keywrapparams.optsdata,
  }
}

export function unwrapInput(wrapped: Uint8Array): Uint8Array {
  return json({
    op: 'keyunwrap',
    keywrapparams: {},
    keyunwrapparams: { dc: { Parameters: {} }, annotation: toBase64(wrapped) },
  })
}

/** The wrapped key that is to be opened. Throws LayerError INVALID_ARGUMENT. */
export function parseUnwrapInput(input: Uint8Array): Uint8Array {
  const parsed = parse(input, unwrapInputSchema)
  if (parsed !== undefined) return parsed.keyunwrapparams.annotation
  throw malformed('request to unwrap is not {op: keyunwrap, keyunwrapparams: {annotation}}')
}

export function wrapOutput(wrapped: Uint8Array): Uint8Array {
  return json({ keywrapresults: { annotation: toBase64(wrapped) }, keyunwrapresults: {} })
}

/** The wrapped key that a provider answered with; undefined if that is no answer. */
export function parseWrapOutput(output: Uint8Array): Uint8Array | undefined {
  return parse(output, wrapOutputSchema)?.keywrapresults.annotation
}

export function unwrapOutput(options: Uint8Array): Uint8Array {
  return json({ keywrapresults: {}, keyunwrapresults: { optsdata: toBase64(options) } })
}

/** The private options that a provider answered with; undefined if that is no answer. */
export function parseUnwrapOutput(output: Uint8Array): Uint8Array | undefined {
  return parse(output, unwrapOutputSchema)?.keyunwrapresults.optsdata
}

function json(message: object): Uint8Array {
  return Buffer.from(JSON.stringify(message))
}

function parse<Message>(text: Uint8Array, schema: z.ZodType<Message>): Message | undefined {
  if (text.length > KEY_PROVIDER_MESSAGE_BYTES_MAX) return undefined
  let value: unknown
  try {
    value = JSON.parse(Buffer.from(text).toString('utf8'))
  } catch {
    // V8's error quotes what it read.
    return undefined
  }
  return schema.safeParse(value).data
}

function malformed(what: string): LayerError {
  return new LayerError(
    'INVALID_ARGUMENT',
    `the ${what}, as ocicrypt writes it, or is longer than ${KEY_PROVIDER_MESSAGE_BYTES_MAX} bytes`,
  )
}
