import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { buildProgram } from '../../../node-image/build-program.ts'
import { parseStartOptions, type StartOptions, USAGE } from './options.ts'

// `make bench-start`: how long until a container is ready, for us and for others, behind links of several kinds.

const EXIT = { failure: 1, usage: 64 } as const

process.exitCode = await main()

async function main(): Promise<number> {
  const words = process.argv.slice(2)
  let options: StartOptions
  try {
    options = parseStartOptions(words)
  } catch (error) {
    console.error(`${(error as Error).message}\n${USAGE}`)
    return EXIT.usage
  }
  await prepare(options)
  // Nodes and what they fetch from are alone on networks of their own; whatever ends takes these with it.
  const measure = join(import.meta.dirname, 'in-namespace.ts')
  const node = [process.execPath, '--disable-warning=ExperimentalWarning', measure]
  const child = spawn('unshare', ['--net', ...node, ...words], { stdio: 'inherit' })
  const [code] = (await once(child, 'exit')) as [number | null]
  return code ?? EXIT.failure
}

/** Makes our own programs, and all that needs the world's network: images from packages, programs of others. */
async function prepare({ cells }: StartOptions): Promise<void> {
  await buildProgram()
  const say = (line: string): void => console.error(`       ${line}`)
  for (const workload of new Set(cells.map(({ workload }) => workload))) await workload.build(say)
  for (const arm of new Set(cells.flatMap(({ arms }) => arms))) await arm.prepare?.()
}
