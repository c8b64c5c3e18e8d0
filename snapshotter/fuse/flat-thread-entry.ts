/** What a serving thread runs: see flat-thread.ts. */
import { type MessagePort, workerData } from 'node:worker_threads'
import type { ThreadStart } from './flat-file.ts'
import { FlatThread } from './flat-thread.ts'

const { start, port } = workerData as { start: ThreadStart; port: MessagePort }
new FlatThread(start, port).run()
port.close()
