import {
  existsSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { basename, dirname, join, relative } from 'node:path'
import { type OutputChunk, type Plugin, rolldown } from 'rolldown'

const ROOT = join(import.meta.dirname, '..')
/** Where the programs lie, in the folder that also holds `agent/cli/bin`, `proto` and `node-image/containerd`. */
const PROGRAM_DIR = 'build/program'

/** What is run, by the name of its file. */
const PROGRAMS: Readonly<Record<string, string>> = {
  'ipdr-agent': 'agent/main.ts',
  ipdr: 'agent/cli/main.ts',
  'ipdr-authorize': 'agent/authorize-hook.ts',
}

/** What is loaded from its own folder: it holds machine code. The second is WebRTC, for agents that listen for it. */
export const LEFT_OUTSIDE: readonly string[] = ['koffi', 'node-datachannel']

/** Where a source says what it starts in a process or thread of its own, or where it is itself. */
const PLACES = /new URL\('(?<started>[\w./-]+)\.ts', import\.meta\.url\)|import\.meta\.(?<own>\w+)/g

/**
 * Makes one file of each program, and files beside them of what programs share: no TypeScript is stripped at the start, and what no line
 * leads to is not loaded. A data worker has 132 MiB instead of 188, and an agent is ready in 0.6 s instead of 1.1 (test/bench/README.md).
 * The same sources give the same files. Names are kept, for those who read a stack. Resolves to the folder, `build/program`.
 */
export async function buildProgram(): Promise<string> {
  const dir = join(ROOT, PROGRAM_DIR)
  // Of ours alone: another build may write the same at the same time.
  const partial = `${dir}.${process.pid}`
  rmSync(partial, { recursive: true, force: true })
  const build = await rolldown({
    input: Object.fromEntries(
      Object.entries(PROGRAMS).map(([name, source]) => [name, join(ROOT, source)]),
    ),
    cwd: ROOT,
    platform: 'node',
    external: [...LEFT_OUTSIDE],
    plugins: [keepPlaces(), escapeNonAscii()],
    logLevel: 'warn',
  })
  const { output } = await build.write({
    dir: partial,
    format: 'esm',
    minify: { compress: true, mangle: false, codegen: { removeWhitespace: true } },
  })
  await build.close()
  const chunks = output.filter((part): part is OutputChunk => part.type === 'chunk')
  writeFileSync(join(partial, 'THIRD-PARTY-LICENSES'), licencesOf(chunks))
  putInPlace(partial, dir)
  return dir
}

/** Has `dir` be what `made` is. Programs that run may load parts of theirs at any time: what stays the same stays there. */
function putInPlace(made: string, dir: string): void {
  if (isSame(made, dir)) {
    const now = new Date()
    for (const name of readdirSync(dir)) utimesSync(join(dir, name), now, now)
  } else {
    const old = `${made}.old`
    if (existsSync(dir)) renameSync(dir, old)
    renameSync(made, dir)
    rmSync(old, { recursive: true, force: true })
  }
  rmSync(made, { recursive: true, force: true })
}

function isSame(made: string, dir: string): boolean {
  if (!existsSync(dir)) return false
  const names = readdirSync(made).toSorted()
  return (
    names.join('/') === readdirSync(dir).toSorted().join('/') &&
    names.every((name) => readFileSync(join(made, name)).equals(readFileSync(join(dir, name))))
  )
}

/** Has every source find the files that lie beside it, and what it starts among the programs. */
function keepPlaces(): Plugin {
  const started = new Map(
    Object.entries(PROGRAMS).map(([name, source]) => [join(ROOT, source), name]),
  )
  return {
    name: 'keep-places',
    transform(code, id) {
      if (!id.startsWith(ROOT) || id.includes('/node_modules/') || !code.includes('import.meta.')) {
        return null
      }
      const here = dirname(id)
      const there = relative(join(ROOT, PROGRAM_DIR), here)
      const nameOf = (source: string): string => {
        const known = started.get(source)
        if (known !== undefined) return known
        const name = basename(source, '.ts')
        started.set(source, name)
        this.emitFile({ type: 'chunk', id: source, fileName: `${name}.js` })
        return name
      }
      return code.replaceAll(PLACES, (whole, path: string | undefined, own: string | undefined) => {
        if (path !== undefined) {
          return `new URL('./${nameOf(join(here, `${path}.ts`))}.js', import.meta.url)`
        }
        if (own === 'dirname') return `(import.meta.dirname + '/${there}')`
        if (own === 'url') return `new URL('${there}/', import.meta.url)`
        return this.error(
          `${relative(ROOT, id)}: ${whole} has no meaning in a program that is built`,
        )
      })
    },
  }
}

/** V8 holds a file in two bytes a character, 5 MiB more for a data worker, for a single one that Latin-1 does not have. */
function escapeNonAscii(): Plugin {
  return {
    name: 'escape-non-ascii',
    generateBundle(_options, bundle) {
      for (const part of Object.values(bundle)) {
        if (part.type !== 'chunk') continue
        part.code = part.code.replaceAll(
          /[^\0-\x7f]/g,
          (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`,
        )
      }
    },
  }
}

/** The licences of the packages that are in these files. */
function licencesOf(chunks: readonly OutputChunk[]): string {
  const packages = new Set(
    chunks
      .flatMap(({ moduleIds }) => moduleIds)
      .flatMap((id) => /^.*\/node_modules\/(?:@[^/]+\/)?[^/]+(?=\/)/.exec(id)?.[0] ?? []),
  )
  const parts = [...packages].toSorted().map((dir) => {
    const { name, version, license } = JSON.parse(
      readFileSync(join(dir, 'package.json'), 'utf8'),
    ) as { name: string; version: string; license?: string }
    const files = readdirSync(dir).filter((file) => /^(?:licen[cs]e|copying|notice)/i.test(file))
    const texts = files.toSorted().map((file) => readFileSync(join(dir, file), 'utf8').trim())
    return [`${name} ${version} (${license ?? 'no licence named'})`, ...texts].join('\n\n')
  })
  return `${parts.join(`\n\n${'-'.repeat(80)}\n\n`)}\n`
}

if (import.meta.main) await buildProgram()
