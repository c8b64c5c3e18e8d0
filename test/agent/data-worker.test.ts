import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { pino } from 'pino'
import { Agent, request } from 'undici'
import { expect, onTestFinished, test } from 'vitest'
import { type Config, parseConfig } from '../../agent/config.ts'
import { runDataWorker } from '../../agent/data-worker.ts'
import { connect } from '../../proto/client.ts'
import { agentContract, keyProviderContract } from '../../proto/load.ts'
import { unwrapInput } from '../../snapshotter/encryption/key-provider-protocol.ts'
import { freePort } from '../support/agent.ts'
import {
  makeCertificates,
  type NodeCertificate,
  readCertificate,
} from '../support/cluster-certificates.ts'
import { failureOf } from '../support/failure-of.ts'
import { Scratch } from '../support/scratch.ts'

const deadlineMs = 60_000

function newConfig(registry = '127.0.0.1:0', more: object = {}): Config {
  const scratch = Scratch.open('worker')
  onTestFinished(() => scratch[Symbol.asyncDispose]())
  return parseConfig({
    root: join(scratch.dir, 'root'),
    runDir: join(scratch.run, 'agent'),
    registry: { listen: registry },
    monitoring: { listen: '127.0.0.1:0' },
    ...more,
  })
}

/** A log that tells its first line with this sentence, and all that it was told before. */
function logUntil(sentence: string): {
  log: pino.Logger
  said: Promise<Record<string, string>>
  lines: Record<string, string>[]
} {
  const { promise, resolve } = Promise.withResolvers<Record<string, string>>()
  const lines: Record<string, string>[] = []
  const write = (text: string): void => {
    const line = JSON.parse(text) as Record<string, string>
    lines.push(line)
    if (line['msg'] === sentence) resolve(line)
  }
  return { log: pino({ level: 'info' }, { write }), said: promise, lines }
}

test(
  'it serves until it is stopped, and then nothing of it is there',
  async () => {
    const config = newConfig()
    const stop = new AbortController()
    const { log, said } = logUntil('ready')
    const running = runDataWorker(config, { fuseFd: undefined }, stop.signal, log)
    const endedEarly = running.then((): Record<string, string> => ({}))
    const { registry, monitoring } = await Promise.race([said, endedEarly])
    expect((await fetch(`${registry}/v2/`)).status).toBe(200)
    expect((await fetch(`${monitoring}/readyz`)).status).toBe(200)
    {
      using admin = connect(agentContract(), config.admin.socketPath)
      const status = await admin.calls.Status({}, { signal: AbortSignal.timeout(10_000) })
      expect(status).toMatchObject({ pid: process.pid, mounts: [], peerId: '' })
    }
    stop.abort()
    await running
    for (const { socketPath } of [config.snapshotter, config.admin]) {
      expect(existsSync(socketPath)).toBe(false)
    }
    await expect(fetch(`${registry}/v2/`)).rejects.toThrow('fetch failed')
  },
  deadlineMs,
)

test(
  'it is a key provider if asked to, and a directory of keys that is not there yet is said and waited for',
  async () => {
    const keysDir = '/nonexistent/keys'
    const config = newConfig(undefined, { decryption: { keysDir }, keyProvider: {} })
    const socketPath = config.keyProvider?.socketPath ?? ''
    const stop = new AbortController()
    const { log, said, lines } = logUntil('ready')
    const sentence = `the directory of private keys ${keysDir} does not exist: make it (mode 700) and put the keys in it, or configure another`
    const running = runDataWorker(config, { fuseFd: undefined }, stop.signal, log)
    await Promise.race([said, running])
    const warnings = lines.filter(({ part }) => part === 'keys')
    expect(warnings).toMatchObject([{ level: 40, keysDir, msg: sentence }])
    {
      using provider = connect(keyProviderContract(), socketPath)
      const json = Buffer.from(unwrapInput(Buffer.from('wrapped')))
      const asked = provider.calls.UnWrapKey({ json }, { signal: AbortSignal.timeout(10_000) })
      await expect(asked).rejects.toMatchObject({ details: sentence })
    }
    stop.abort()
    await running
    expect(existsSync(socketPath)).toBe(false)
  },
  deadlineMs,
)

test(
  'in a cluster it gives blocks only to whoever has a certificate of it, and warns if it does not know what it is called there',
  async () => {
    const scratch = Scratch.open('worker-certs')
    onTestFinished(() => scratch[Symbol.asyncDispose]())
    const ours = (await makeCertificates(join(scratch.dir, 'ours'), ['node'])).node
    const theirs = (await makeCertificates(join(scratch.dir, 'theirs'), ['stranger'])).stranger
    const port = await freePort()
    const cluster = { listen: `0.0.0.0:${port}`, peers: ['https://192.0.2.1:5082'], tls: ours }
    const config = newConfig(undefined, { cluster })
    const stop = new AbortController()
    const { log, said, lines } = logUntil('ready')
    const running = runDataWorker(config, { fuseFd: undefined }, stop.signal, log)
    await Promise.race([said, running])
    expect(lines.map(({ msg }) => msg).join()).toContain('set cluster.address')
    // A block that its CID carries.
    const url = `https://127.0.0.1:${port}/ipfs/bafkqaaa?format=raw`
    const status = async (certificate: NodeCertificate | undefined): Promise<number> => {
      const tls = certificate && readCertificate({ ...certificate, caFile: ours.caFile })
      const connect = { ...tls, rejectUnauthorized: false }
      const dispatcher = new Agent({ connect })
      onTestFinished(() => dispatcher.destroy())
      const { statusCode, body } = await request(url, { dispatcher })
      await body.dump()
      return statusCode
    }
    expect(await status(ours)).toBe(200)
    for (const certificate of [theirs, undefined]) {
      await expect(status(certificate)).rejects.toThrow(/other side closed|certificate|ECONNRESET/)
    }
    stop.abort()
    await running
  },
  deadlineMs,
)

test(
  'a part that cannot start closes those that had, so that the next try finds them free',
  async () => {
    const squatter = createServer().listen(0, '127.0.0.1')
    await once(squatter, 'listening')
    const address = squatter.address()
    const port = typeof address === 'object' ? address?.port : undefined
    const config = newConfig(`127.0.0.1:${port}`)
    const { signal } = new AbortController()
    const run = (): Promise<void> =>
      runDataWorker(config, { fuseFd: undefined }, signal, pino({ level: 'silent' }))
    for (let attempt = 0; attempt < 2; attempt++) {
      expect(await failureOf(run)).toMatchObject({ code: 'EADDRINUSE' })
      expect(existsSync(config.admin.socketPath)).toBe(false)
    }
    squatter.close()
  },
  deadlineMs,
)
