import { bytesToHex, type Hex, keccak256, recoverAddress } from 'viem'
import { z } from 'zod'
import { CallError } from './call-error.ts'

/** As text. 4 KiB: five times what the clients send. */
const TOKEN_CHARS_MAX = 4_096

/** How far ahead a token may expire, in seconds. The Go client says 10 or 60 unless it is told otherwise; 1 h is for those who told it. */
const EXPIRY_SECONDS_MAX = 3_600

const tokenSchema = z.object({
  PodId: z.string().regex(/^0x[0-9a-fA-F]{64}$/),
  Operation: z.string().max(200),
  ExpirationTime: z.string().max(64),
  Publisher: z.string().regex(/^0x[0-9a-fA-F]{40}$/),
})

/** What the token of an existing client says, once its signature is seen to be its publisher's. */
export type BearerToken = {
  /** In lower case. */
  readonly publisher: Hex
  readonly podId: Hex
  /** Of this token alone, and how long it is good, in seconds since 1970. */
  readonly id: Uint8Array
  readonly expiresAt: number
}

/**
 * Reads `Authorization: Bearer base64(JSON).base64(signature)` of the Go clients: the signature, of r, s and v of 0 or 1, is over keccak256 of the JSON
 * as it was sent. `operation` is the path of the procedure that is called, which the token must name. `now` is in seconds since 1970.
 * Rejects with CallError by the codes that those clients know: UNAUTHENTICATED, DEADLINE_EXCEEDED, DATA_LOSS for JSON that is none.
 */
export async function readBearerToken(
  header: string | null,
  operation: string,
  now: number,
): Promise<BearerToken> {
  const match = /^Bearer ([A-Za-z0-9+/]+={0,2})\.([A-Za-z0-9+/]+={0,2})$/.exec(
    header !== null && header.length <= TOKEN_CHARS_MAX ? header : '',
  )
  if (match === null) {
    throw new CallError(
      'UNAUTHENTICATED',
      'token: Authorization must be "Bearer <JSON>.<signature>", each in base64',
    )
  }
  const json = bytesOf(match[1] ?? '')
  const signature = bytesOf(match[2] ?? '')
  const token = parse(json)
  if (token.Operation !== operation) {
    throw new CallError(
      'UNAUTHENTICATED',
      `token: it was signed for '${token.Operation}', not '${operation}'`,
    )
  }
  const expiresAt = expiryOf(token.ExpirationTime)
  if (expiresAt <= now) {
    throw new CallError(
      'DEADLINE_EXCEEDED',
      `token: it expired ${Math.ceil(now - expiresAt)} s ago`,
    )
  }
  if (expiresAt > now + EXPIRY_SECONDS_MAX) {
    throw new CallError(
      'UNAUTHENTICATED',
      `token: it expires more than ${EXPIRY_SECONDS_MAX} s ahead; sign one for less`,
    )
  }
  const publisher = token.Publisher.toLowerCase() as Hex
  if ((await signerOf(json, signature)) !== publisher) {
    throw new CallError('UNAUTHENTICATED', `token: the signature is not of ${publisher}`)
  }
  const id = Buffer.from(keccak256(json).slice(2), 'hex')
  return { publisher, podId: token.PodId.toLowerCase() as Hex, id, expiresAt }
}

function bytesOf(base64: string): Buffer {
  const bytes = Buffer.from(base64, 'base64')
  if (bytes.toString('base64') === base64) return bytes
  throw new CallError(
    'UNAUTHENTICATED',
    'token: its base64 is not as it is written (RFC 4648, with padding)',
  )
}

function parse(json: Buffer): z.infer<typeof tokenSchema> {
  let value: unknown
  try {
    value = JSON.parse(json.toString('utf8'))
  } catch {
    throw new CallError('DATA_LOSS', 'token: what was signed is not JSON')
  }
  const parsed = tokenSchema.safeParse(value)
  if (parsed.success) return parsed.data
  const field = parsed.error.issues[0]?.path.join('.') ?? ''
  throw new CallError('DATA_LOSS', `token: ${field === '' ? 'it' : field} is not as it must be`)
}

/** RFC 3339, to the nanosecond as Go writes it; NaN would be neither before nor after anything. */
function expiryOf(text: string): number {
  const isTime = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)$/.test(text)
  const ms = isTime ? Date.parse(text) : Number.NaN
  if (Number.isNaN(ms)) throw new CallError('DATA_LOSS', 'token: ExpirationTime is no time')
  return ms / 1_000
}

async function signerOf(json: Buffer, signature: Buffer): Promise<Hex> {
  const v = signature[64]
  if (signature.length !== 65 || (v !== 0 && v !== 1)) {
    throw new CallError(
      'UNAUTHENTICATED',
      'token: the signature must be r, s and v: 65 bytes, the last 0 or 1',
    )
  }
  try {
    const address = await recoverAddress({
      hash: keccak256(json),
      signature: bytesToHex(signature),
    })
    return address.toLowerCase() as Hex
  } catch {
    throw new CallError('UNAUTHENTICATED', 'token: the signature is none of secp256k1')
  }
}
