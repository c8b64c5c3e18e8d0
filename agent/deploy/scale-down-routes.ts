import type { FastifyPluginAsync, FastifyReply } from 'fastify'
import { CodedError, type ErrorCode } from '../../snapshotter/errors.ts'
import type { Log } from '../../snapshotter/log.ts'
import type { HttpLimits } from '../http-server.ts'
import { CallError } from './call-error.ts'
import { ClusterError } from './cluster.ts'
import { SCALE_DOWN_TOKEN_FILE } from './objects/scale-down-token.ts'
import { RequestRate } from './request-rate.ts'
import type { ScaleDown } from './scale-down.ts'

/** Nothing is read from it; some clients send `{}`. */
const BODY_BYTES_MAX = 1_024

/** A token of Kubernetes has some 1,200 characters: two names of 63 to 253 each, three times in base64. */
const TOKEN_CHARS_MAX = 4_096

/** Of one address, whoever's it is: each request without a good token costs the API server a signature check. Twice as many at once. */
const ASKED_PER_SECOND_MAX = 10

/** At once. 64 of some six calls to the API each, of which one takes a few ms. */
const ASKED_AT_ONCE_MAX = 64

/** For a server with these routes: any pod of the cluster may reach it where no policy of its own forbids. */
export const SCALE_DOWN_LIMITS: HttpLimits = {
  // A token, and as much again.
  headerBytesMax: 2 * TOKEN_CHARS_MAX,
  requestMsMax: 10_000,
  connectionsMax: 1_000,
}

/** What is not here is a mistake of ours. */
const STATUS: Partial<Record<ErrorCode, number>> = {
  UNAUTHENTICATED: 401,
  PERMISSION_DENIED: 403,
  RESOURCE_EXHAUSTED: 429,
  UNAVAILABLE: 503,
}

type Collaborators = {
  readonly scaleDown: Pick<ScaleDown, 'sleep'>
  /** Somebody has been answered, with this status. */
  readonly onAnswer: (status: number) => void
  readonly log: Pick<Log, 'warn'>
}

/** `POST /v1/scale-to-zero`, by which a pod asks to sleep. */
export function scaleDownRoutes({ scaleDown, onAnswer, log }: Collaborators): FastifyPluginAsync {
  const rate = new RequestRate(ASKED_PER_SECOND_MAX)
  let asking = 0

  async function sleep(address: string, authorization: string | undefined): Promise<string> {
    if (!rate.takes(address)) {
      throw new CallError(
        'RESOURCE_EXHAUSTED',
        `${address} asks more than ${ASKED_PER_SECOND_MAX} times a second`,
      )
    }
    const token = tokenIn(authorization)
    if (asking >= ASKED_AT_ONCE_MAX) {
      throw new CallError('UNAVAILABLE', 'too many pods ask at the same time; ask again')
    }
    asking++
    try {
      return await scaleDown.sleep(token)
    } finally {
      asking--
    }
  }

  return async (app) => {
    // Whatever a client says that its body is: it is read away.
    app.removeAllContentTypeParsers()
    app.addContentTypeParser('*', { parseAs: 'buffer' }, (_request, _body, done) => done(null))
    app.addHook('onResponse', async (_request, { statusCode }) => onAnswer(statusCode))
    app.setErrorHandler((error, _request, reply) => refuse(reply, error, log))
    app.post('/v1/scale-to-zero', { bodyLimit: BODY_BYTES_MAX }, async (request, reply) => {
      // A pod that sleeps asks nothing more.
      reply.header('connection', 'close')
      const namespace = await sleep(request.ip, request.headers.authorization)
      return reply.code(202).send({ namespace, replicas: 0 })
    })
  }
}

/** Throws CallError. */
function tokenIn(authorization = ''): string {
  const [, token = ''] = /^Bearer ([\w.~+/=-]+)$/i.exec(authorization) ?? []
  if (token !== '' && token.length <= TOKEN_CHARS_MAX) return token
  throw new CallError(
    'UNAUTHENTICATED',
    `Authorization must be "Bearer <token>", with what is in ${SCALE_DOWN_TOKEN_FILE}, of ${TOKEN_CHARS_MAX} characters at most`,
  )
}

function refuse(reply: FastifyReply, error: unknown, log: Pick<Log, 'warn'>): FastifyReply {
  const [status, message] = answerTo(error, log)
  if (status === 401) reply.header('www-authenticate', 'Bearer')
  if (status === 429 || status === 503) reply.header('retry-after', '1')
  return reply.code(status).header('connection', 'close').send({ error: message })
}

function answerTo(error: unknown, log: Pick<Log, 'warn'>): readonly [number, string] {
  if (error instanceof CallError) return [STATUS[error.code] ?? 500, error.message]
  if (error instanceof ClusterError || !(error instanceof Error)) {
    // What the API says to us is not for a tenant.
    const reason = error instanceof Error ? error.message : String(error)
    log.warn({ reason }, `a pod cannot be put to sleep: ${reason}`)
    return [503, 'the cluster cannot be asked at the moment; ask again']
  }
  if (error instanceof CodedError) return [409, error.message]
  // Of fastify: a body that is too large, and the like.
  const status = 'statusCode' in error ? Number(error.statusCode) : 500
  if (status < 500) return [status, error.message]
  log.warn({ reason: error.message }, `a pod cannot be put to sleep: ${error.message}`)
  return [500, 'this is a mistake of the agent; its log says more']
}
