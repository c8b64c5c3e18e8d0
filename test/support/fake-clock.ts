import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const LIBRARIES = join(import.meta.dirname, '../../build/debian/usr/lib')

/** A wall clock of a process's own, by Debian's libfaketime; time that only passes is the kernel's. */
export class FakeClock {
  /** What the process is started with. */
  readonly env: Readonly<Record<string, string>>
  readonly #path: string

  /** Keeps the offset in a file of the folder. */
  constructor(dir: string) {
    this.#path = join(dir, 'clock')
    this.step(0)
    const library = readdirSync(LIBRARIES, { recursive: true, encoding: 'utf8' }).find((path) =>
      path.endsWith('/libfaketimeMT.so.1'),
    )
    if (library === undefined) throw new Error(`no libfaketime in ${LIBRARIES}: make install`)
    this.env = {
      LD_PRELOAD: join(LIBRARIES, library),
      FAKETIME_TIMESTAMP_FILE: this.#path,
      FAKETIME_NO_CACHE: '1',
      FAKETIME_DONT_FAKE_MONOTONIC: '1',
    }
  }

  /** Sets it so many seconds away from the machine's, at once. */
  step(offsetSeconds: number): void {
    writeFileSync(this.#path, `${offsetSeconds < 0 ? '' : '+'}${offsetSeconds}\n`)
  }
}
