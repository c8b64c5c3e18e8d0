import { type Logger, pino, stdTimeFunctions } from 'pino'
import pretty from 'pino-pretty'
import type { Config } from './config.ts'

export type { Logger } from 'pino'

/** The process's logger: JSON lines on stderr, or coloured text for a terminal. */
export function createLogger(config: Config['log'], name: string): Logger {
  const options = {
    name,
    level: config.level,
    timestamp: stdTimeFunctions.isoTime,
    redact: ['authorization', '*.authorization', 'privateKey', '*.privateKey'],
  }
  if (config.format === 'text') {
    // In this process, not in pino's worker thread: lines before a crash must not be lost.
    return pino(options, pretty({ destination: 2, sync: true, ignore: 'pid,hostname' }))
  }
  return pino(options, pino.destination({ dest: 2, sync: true }))
}
