import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { debianPath } from './debian-programs.ts'
import type { OciLayout } from './images/oci-layout.ts'
import { runCommand } from './run-command.ts'
import type { Scratch } from './scratch.ts'

/** A registry on loopback, over plain HTTP. */
export type OciRegistry = AsyncDisposable & {
  /** `127.0.0.1:<port>` */
  readonly host: string
  /** Puts an image there, byte by byte as it is in the layout, and gives back `<host>/<name>:<tag>`. */
  push(image: OciLayout, name: string): Promise<string>
}

/** Starts Debian's docker-registry with its files in the scratch. */
export async function startOciRegistry(scratch: Scratch): Promise<OciRegistry> {
  const dir = join(scratch.dir, 'registry')
  mkdirSync(dir)
  const configPath = join(dir, 'config.json')
  writeFileSync(
    configPath,
    // YAML is a superset of JSON.
    JSON.stringify({
      version: '0.1',
      log: { formatter: 'json', accesslog: { disabled: true } },
      storage: { filesystem: { rootdirectory: dir } },
      http: { addr: '127.0.0.1:0' },
    }),
  )
  const server = spawn('docker-registry', ['serve', configPath], {
    env: { PATH: debianPath, OTEL_TRACES_EXPORTER: 'none' },
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  if (server.pid !== undefined) scratch.own(server.pid)
  const host = await listeningOn(server.stderr)
  // Its log is of no use to us, but it must not run full.
  server.stderr.resume()
  return {
    host,
    async push({ dir: layout, tag }, name) {
      const target = `${host}/${name}:${tag}`
      await runCommand('skopeo', [
        '--insecure-policy',
        'copy',
        '--quiet',
        '--preserve-digests',
        '--dest-tls-verify=false',
        `oci:${layout}:${tag}`,
        `docker://${target}`,
      ])
      return target
    },
    async [Symbol.asyncDispose]() {
      const exited = once(server, 'exit')
      server.kill()
      await exited
    },
  }
}

async function listeningOn(log: NodeJS.ReadableStream): Promise<string> {
  const lines = []
  for await (const line of createInterface(log)) {
    const host = /listening on (127\.0\.0\.1:\d+)/.exec(line)?.[1]
    if (host !== undefined) return host
    lines.push(line)
  }
  throw new Error(`docker-registry ended before it listened\n${lines.join('\n')}`)
}
