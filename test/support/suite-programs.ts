import { execFileSync } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'

const build = join(import.meta.dirname, '../../build')
const isArm = process.arch === 'arm64'

/** Suites of Debian that are newer than the machine's. */
export type DebianSuite = 'trixie' | 'sid'

/** Programs of another suite of Debian, unpacked below build/ with the C library that they need. */
export class SuitePrograms {
  readonly #root: string

  private constructor(root: string) {
    this.#root = root
  }

  /** Of these packages, in build/`<suite>-<name>`. The first call of a name unpacks them; it needs apt and the network for that. */
  static unpack(suite: DebianSuite, name: string, ...packages: readonly string[]): SuitePrograms {
    const folder = join(build, `${suite}-${name}`)
    mkdirSync(build, { recursive: true })
    // Test files run side by side: one of them unpacks, the others wait for it.
    execFileSync(
      'flock',
      [`${folder}.lock`, join(import.meta.dirname, 'unpack-suite.sh'), folder, suite, ...packages],
      { stdio: ['ignore', 'inherit', 'pipe'] },
    )
    return new SuitePrograms(join(folder, 'root'))
  }

  /** Where the program at `path` is, for those that run on this machine's C library. */
  path(path: string): string {
    return join(this.#root, path)
  }

  /** The words of a command line that run the program at `path`, such as usr/bin/skopeo. */
  command(path: string): [file: string, ...args: string[]] {
    return [this.#loader, '--library-path', this.#libraries, join(this.#root, path)]
  }

  /**
   * Writes to `copy` the program at `path` as one that finds the C library by itself: for those that run themselves again and that
   * others look for by name. `patchelf` has to be among the packages.
   */
  link(path: string, copy: string): void {
    const [patchelf, ...words] = this.command('usr/bin/patchelf')
    words.push('--set-interpreter', this.#loader)
    words.push('--force-rpath', '--set-rpath', this.#libraries)
    execFileSync(patchelf, [...words, '--output', copy, join(this.#root, path)])
  }

  /**
   * The words of a command line that run a shell snippet in which `inside <program> …` runs programs that run themselves again;
   * `$1` and on are `args`. Their mounts are seen by the snippet and by nobody else, and end with it.
   */
  snippet(text: string, ...args: readonly string[]): [file: string, ...args: string[]] {
    return [join(import.meta.dirname, 'in-own-root.sh'), this.#root, text, ...args]
  }

  get #libraries(): string {
    return join(this.#root, 'usr/lib', `${isArm ? 'aarch64' : 'x86_64'}-linux-gnu`)
  }

  get #loader(): string {
    return join(this.#libraries, isArm ? 'ld-linux-aarch64.so.1' : 'ld-linux-x86-64.so.2')
  }
}
