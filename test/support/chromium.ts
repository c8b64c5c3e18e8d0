import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Browser, chromium, type Page } from 'playwright-core'
import { Daemon } from './daemon.ts'
import type { Scratch } from './scratch.ts'

const PROGRAM = '/usr/bin/chromium'

/** Debian's Chromium without a window, with all that it writes in its scratch. */
export class Chromium implements AsyncDisposable {
  readonly #browser: Browser
  readonly #opened: AsyncDisposableStack

  private constructor(browser: Browser, opened: AsyncDisposableStack) {
    this.#browser = browser
    this.#opened = opened
  }

  static async start(scratch: Scratch): Promise<Chromium> {
    await using opened = new AsyncDisposableStack()
    const own = opened.use(scratch.inner('chromium'))
    const words = [
      '--headless=new',
      // It has none for root.
      '--no-sandbox',
      '--disable-gpu',
      '--no-first-run',
      // Playwright waits for all pages that are there when it comes.
      '--no-startup-window',
      // Calls nobody but those whom a page does.
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      // Has WebRTC work on a machine that has loopback only. Others need neither.
      '--allow-loopback-in-peer-connection',
      '--disable-features=WebRtcHideLocalIpsWithMdns',
      `--user-data-dir=${join(own.dir, 'profile')}`,
      '--remote-debugging-port=0',
    ]
    // Not by Playwright, whose browsers outlive a kill. Sockets lie in TMPDIR, crash reports in HOME.
    const env = { PATH: '/usr/bin:/bin', HOME: own.dir, TMPDIR: own.dir }
    const daemon = opened.use(await Daemon.start(own, 'chromium', [PROGRAM, ...words], env))
    let url = ''
    await daemon.whenReady(async () => {
      const log = readFileSync(daemon.logPath, 'utf8')
      url = /^DevTools listening on (ws:\S+)\n/m.exec(log)?.[1] ?? ''
      return url !== ''
    })
    const browser = await chromium.connectOverCDP(url, { artifactsDir: join(own.dir, 'artifacts') })
    opened.defer(() => browser.close())
    return new Chromium(browser, opened.move())
  }

  /** A new page, which knows nothing of the others. */
  async open(url: string): Promise<Page> {
    const context = await this.#browser.newContext()
    const page = await context.newPage()
    await page.goto(url)
    return page
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened.disposeAsync()
  }
}
