import type { ErrorFacts } from '../../snapshotter/errors.ts'
import type { Log } from '../../snapshotter/log.ts'
import { plain } from './failure.ts'

/** For parts that log: warnings and errors as lines on standard error, the rest only with IPDR_DEBUG=1. */
export function errorLog(stream: NodeJS.WritableStream): Log {
  const say = ({ reason }: ErrorFacts, sentence: string): void => {
    const because = reason === undefined ? '' : `: ${reason}`
    stream.write(`ipdr: ${plain(`${sentence}${because}`)}\n`)
  }
  const whenDebugging = process.env['IPDR_DEBUG'] === '1' ? say : () => undefined
  return { debug: whenDebugging, info: whenDebugging, warn: say, error: say }
}
