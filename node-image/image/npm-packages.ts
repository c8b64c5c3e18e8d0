import { execFileSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { keepFirst } from './keep-first.ts'
import type { LayerEntry } from './layer-entry.ts'
import { treeEntries } from './tree-entries.ts'

type LockedPackage = {
  readonly dependencies?: Readonly<Record<string, string>>
  readonly optionalDependencies?: Readonly<Record<string, string>>
}

type Lock = { readonly packages: Readonly<Record<string, LockedPackage>> }

/** What no program reads: types, maps to sources, manuals, what was linked in; libraries for another C library than the image's. */
const UNWANTED =
  /\.(?:[cm]?ts|tsx|map|flow|md|markdown|tsbuildinfo)$|\/musl_[^/]+\/|\/koffi\/(?:vendor|doc)\//

/**
 * The npm packages `of` and what they need, as package-lock.json has them, below node_modules/. The first call has npm install all
 * in `dir`, with their checksums checked and no script of theirs run; later ones find them there.
 *
 * npm takes packages along that others only would like beside themselves, as compilers: what no chain of dependencies leads to stays away.
 */
export function npmPackages(
  root: string,
  { dir, of }: { readonly dir: string; readonly of: readonly string[] },
): LayerEntry[] {
  const lock = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')) as Lock
  if (!existsSync(dir)) install(root, dir)
  // Optional ones may be for another machine, and are not there.
  const there = [...neededPackages(lock, of)].filter((path) => existsSync(join(dir, path)))
  return there.toSorted().flatMap((path) =>
    treeEntries(join(dir, path), {
      under: path,
      // Those within it are packages of their own.
      isWanted: (within) =>
        !within.startsWith('node_modules/') && !UNWANTED.test(`/${path}/${within}`),
    }),
  )
}

function install(root: string, dir: string): void {
  // Of ours alone: another build may install the same at the same time.
  const partial = `${dir}.${process.pid}`
  rmSync(partial, { recursive: true, force: true })
  mkdirSync(partial, { recursive: true })
  for (const name of ['package.json', 'package-lock.json']) {
    cpSync(join(root, name), join(partial, name))
  }
  const omitted = ['--omit=dev', '--omit=peer', '--ignore-scripts']
  const quiet = ['--no-audit', '--no-fund', '--prefer-offline', '--loglevel=error']
  execFileSync('npm', ['ci', ...omitted, ...quiet], {
    cwd: partial,
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  keepFirst(partial, dir)
}

/** Folders of the packages `of` and of those they depend on, by Node's own way of looking upwards. */
export function neededPackages({ packages }: Lock, of: readonly string[]): ReadonlySet<string> {
  const needed = new Set<string>()
  const need = (from: string, names: readonly string[]): void => {
    for (const name of names) {
      const path = resolve(packages, from, name)
      if (path === undefined || needed.has(path)) continue
      needed.add(path)
      const { dependencies, optionalDependencies } = packages[path] ?? {}
      need(path, Object.keys({ ...dependencies, ...optionalDependencies }))
    }
  }
  need('', of)
  return needed
}

function resolve(packages: Lock['packages'], from: string, name: string): string | undefined {
  for (let at = from; ; at = dirname(at)) {
    const path = join(at, 'node_modules', name)
    if (path in packages) return path
    if (at === '' || at === '.') return undefined
  }
}
