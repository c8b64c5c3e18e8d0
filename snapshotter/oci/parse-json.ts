import type { ZodType } from 'zod'
import { ImageError } from '../errors.ts'

/** The JSON text in `bytes`, checked against `schema`. Throws ImageError INVALID_ARGUMENT that names `what` and the field. */
export function parseJson<T>(bytes: Uint8Array, schema: ZodType<T>, what: string): T {
  let value: unknown
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (cause) {
    throw new ImageError('INVALID_ARGUMENT', `${what} is not JSON: ${reason(cause)}`, {}, cause)
  }
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data
  const [issue] = parsed.error.issues
  const field = issue?.path.map(String).join('.') || 'the document'
  throw new ImageError('INVALID_ARGUMENT', `${what}: ${field}: ${issue?.message ?? 'is invalid'}`, {
    field,
  })
}

function reason(cause: unknown): string {
  const text = cause instanceof Error ? cause.message : String(cause)
  return text.length > 200 ? `${text.slice(0, 200)}…` : text
}
