/** What the table thread runs: see table-thread.ts. */
import { parentPort } from 'node:worker_threads'
import { CodedError } from '../errors.ts'
import { workOnList } from '../prefetch/list-work.ts'
import type { Reply, Task } from './table-thread.ts'
import { makeImage, type TableAnswer, type TableRequest, takeIndexApart } from './table-work.ts'

parentPort?.on('message', ({ id, request }: Task) => {
  parentPort?.postMessage(replyTo(id, request), [])
})

function replyTo(id: number, request: TableRequest): Reply {
  try {
    return { id, answer: answerTo(request) }
  } catch (error) {
    // An error loses its class and its fields on the way to another thread.
    const message = error instanceof Error ? error.message : 'unknown failure'
    const code = error instanceof CodedError ? error.code : 'INTERNAL'
    return { id, failure: { code, message, facts: error instanceof CodedError ? error.facts : {} } }
  }
}

function answerTo(request: TableRequest): TableAnswer {
  switch (request.kind) {
    case 'index':
      return takeIndexApart(request)
    case 'image':
      return makeImage(request)
    default:
      return workOnList(request)
  }
}
