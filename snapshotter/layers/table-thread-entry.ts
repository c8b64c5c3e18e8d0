/** What the table thread runs: see table-thread.ts. */
import { parentPort } from 'node:worker_threads'
import { CodedError } from '../errors.ts'
import { workOnList } from '../prefetch/list-work.ts'
import { givePrecedence } from '../thread-priority.ts'
import type { Reply, Task } from './table-thread.ts'
import {
  arrangeEstargz,
  joinTables,
  makeImage,
  makeSideIndex,
  type TableAnswer,
  type TableRequest,
  takeIndexApart,
} from './table-work.ts'

const takeBack = givePrecedence()

parentPort?.on('message', (task: Task | 'end') => {
  if (task === 'end') {
    // The main thread waits while this one is taken down.
    takeBack()
    process.exit()
  }
  const { id, request } = task
  void replyTo(id, request).then((reply) => parentPort?.postMessage(reply, []))
})

async function replyTo(id: number, request: TableRequest): Promise<Reply> {
  try {
    return { id, answer: await answerTo(request) }
  } catch (error) {
    // An error loses its class and its fields on the way to another thread.
    const message = error instanceof Error ? error.message : 'unknown failure'
    const code = error instanceof CodedError ? error.code : 'INTERNAL'
    return { id, failure: { code, message, facts: error instanceof CodedError ? error.facts : {} } }
  }
}

function answerTo(request: TableRequest): TableAnswer | Promise<TableAnswer> {
  switch (request.kind) {
    case 'image':
      return makeImage(request)
    case 'export':
      return makeSideIndex(request)
    case 'chunked':
      return joinTables(request)
    case 'estargz':
      return arrangeEstargz(request)
    case 'index':
    case 'sideIndex':
      return takeIndexApart(request)
    default:
      return workOnList(request)
  }
}
