import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Browser, chromium, type Page } from 'playwright-core'
import { Daemon } from './daemon.ts'
import type { Scratch } from './scratch.ts'

const PROGRAM = '/usr/bin/chromium'

/** Debian's Chromium without a window, with all that it writes in its scratch. */
export class Chromium implements AsyncDisposable {
  readonly #browser: Browser
  readonly #daemon: Daemon

  private constructor(browser: Browser, daemon: Daemon) {
    this.#browser = browser
    this.#daemon = daemon
  }

  static async start(scratch: Scratch): Promise<Chromium> {
    await using opened = new AsyncDisposableStack()
    const profile = join(scratch.dir, 'chromium')
    const words = [
      '--headless=new',
      // It has none for root.
      '--no-sandbox',
      '--disable-gpu',
      '--no-first-run',
      // Calls nobody but those whom a page does.
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      `--user-data-dir=${profile}`,
      '--remote-debugging-port=0',
    ]
    // Not by Playwright, whose browsers outlive a kill. Sockets lie in TMPDIR, crash reports in HOME.
    const env = { PATH: '/usr/bin:/bin', HOME: scratch.dir, TMPDIR: scratch.dir }
    const daemon = opened.use(await Daemon.start(scratch, 'chromium', [PROGRAM, ...words], env))
    const portPath = join(profile, 'DevToolsActivePort')
    await daemon.whenReady(async () => existsSync(portPath))
    const [port, path] = readFileSync(portPath, 'utf8').split('\n')
    const browser = await chromium.connectOverCDP(`ws://127.0.0.1:${port}${path}`)
    opened.move()
    return new Chromium(browser, daemon)
  }

  /** A new page, which knows nothing of the others. */
  async open(url: string): Promise<Page> {
    const context = await this.#browser.newContext()
    const page = await context.newPage()
    await page.goto(url)
    return page
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#browser.close()
    await this.#daemon.kill()
  }
}
