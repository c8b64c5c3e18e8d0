import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { request } from 'node:https'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { expect, test } from 'vitest'
import { freePort } from '../../support/agent.ts'
import { Scratch } from '../../support/scratch.ts'
import { LoopbackRegistry } from './loopback-registry.ts'

test('what is asked by HTTP or by HTTPS arrives by HTTP, and its answers come back', async () => {
  await using scratch = Scratch.open('loopback-registry')
  const far = createServer((asked, answer) => answer.end(`you want ${asked.url}`))
  far.listen(0, '127.0.0.1')
  await once(far, 'listening')
  const host = `127.0.0.1:${(far.address() as AddressInfo).port}`
  const port = await freePort()
  const registry = await LoopbackRegistry.open(scratch.dir, port, host)
  const plain = await fetch(`http://127.0.0.1:${port}/plain`)
  expect(await plain.text()).toBe('you want /plain')
  const secret = request(`https://127.0.0.1:${port}/secret`, {
    ca: readFileSync(registry.certificatePath),
  }).end()
  const [answer] = await once(secret, 'response')
  expect(await text(answer)).toBe('you want /secret')
  await registry[Symbol.asyncDispose]()
  await expect(fetch(`http://127.0.0.1:${port}/late`)).rejects.toThrow('fetch failed')
  far.closeAllConnections()
  far.close()
})
