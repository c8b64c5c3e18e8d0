import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'
import { parseArgs } from 'node:util'
import { Scratch } from '../../../support/scratch.ts'
import type { LinkProfile } from './link-profile.ts'
import { NetworkLink } from './network-link.ts'

// Measures a link by TCP, to see that it is what it is said to be; in a network namespace of its own:
//
//   unshare --net node probe-link.ts --bits 1e8 --rtt 20 --bytes 4e6
//
// It starts itself once more, with --serve, on the far host.

const PORT = 7000
/** Bytes of an order, spaces at its end: what comes behind it may come with it. */
const ORDER_BYTES = 16
/** Round trips of a byte, of which the shortest counts: the others waited for a processor. */
const PINGS = 10
/** Connections that share the link. */
const SHARING = 4

/** What was seen; the program's answer, as JSON. Times in ms, speeds in bits a second of what connections carried. */
export type ProbedLink = {
  readonly connectMs: number
  readonly roundTripMs: number
  /** By one connection, and by four together. */
  readonly down: number
  readonly up: number
  readonly downShared: number
  readonly connections: number
  /** Of bytes on the wire, what the link counted for what one connection got. */
  readonly overhead: number
}

const { values } = parseArgs({
  options: {
    serve: { type: 'string' },
    bits: { type: 'string', default: '1e8' },
    rtt: { type: 'string', default: '20' },
    bytes: { type: 'string', default: '4e6' },
  },
})
if (values.serve === undefined) {
  const link = {
    name: 'probed',
    bitsPerSecond: Number(values.bits),
    roundTripMs: Number(values.rtt),
  }
  console.log(JSON.stringify(await probe(link, Number(values.bytes))))
} else {
  await serve(values.serve)
}

/** Answers `p` with a byte, `<n>d` with so many, and `<n>u` and so many bytes with a byte. */
async function serve(address: string): Promise<void> {
  const server = createServer({ noDelay: true }, (socket) => {
    let awaited = 0
    socket.on('error', () => undefined)
    socket.on('data', (bytes) => {
      let payload = bytes.length
      if (awaited === 0) {
        payload -= ORDER_BYTES
        const order = bytes.toString('latin1', 0, ORDER_BYTES)
        const [, amount = '0', kind] = /^(\d*)([pdu])/.exec(order) ?? []
        if (kind === 'p') socket.write('.')
        else if (kind === 'd') socket.write(Buffer.alloc(Number(amount)))
        else awaited = Number(amount)
      }
      if (awaited === 0) return
      awaited -= payload
      if (awaited === 0) socket.write('.')
    })
  }).listen(PORT, address)
  await once(server, 'listening')
  console.log('listening')
}

async function probe(profile: LinkProfile, bytes: number): Promise<ProbedLink> {
  await using scratch = Scratch.open('probe-link')
  await using link = await NetworkLink.open(scratch)
  const own = [process.execPath, '--disable-warning=ExperimentalWarning', import.meta.filename]
  const [file = '', ...args] = link.far([...own, '--serve', link.farAddress])
  const server = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  if (server.pid !== undefined) scratch.own(server.pid)
  await once(server.stdout, 'data')
  await link.shape(profile)
  await link.reset()
  const open = async (): Promise<Socket> => {
    const socket = connect({ host: link.farAddress, port: PORT, noDelay: true })
    await once(socket, 'connect')
    return socket
  }
  const connecting = performance.now()
  const first = await open()
  const connectMs = performance.now() - connecting
  let roundTripMs = Number.POSITIVE_INFINITY
  for (let ping = 0; ping < PINGS; ping++) {
    roundTripMs = Math.min(roundTripMs, await time(() => exchange(first, 'p', 1)))
  }
  const others = await Promise.all(Array.from({ length: SHARING }, open))
  const { connections } = await link.count()
  const bits = bytes * 8000
  await link.reset()
  const down = bits / (await time(() => exchange(first, `${bytes}d`, bytes)))
  const count = await link.count()
  const part = Math.round(bytes / SHARING)
  const share = (socket: Socket): Promise<void> => exchange(socket, `${part}d`, part)
  const downShared = bits / (await time(() => Promise.all(others.map(share))))
  const up = bits / (await time(() => send(first, bytes)))
  for (const socket of [first, ...others]) socket.destroy()
  return {
    connectMs,
    roundTripMs,
    down,
    up,
    downShared,
    connections,
    overhead: count.down.bytes / bytes,
  }
}

/** Sends an order and waits for so many bytes. */
async function exchange(socket: Socket, order: string, bytes: number): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  let got = 0
  const take = (chunk: Buffer): void => {
    got += chunk.length
    if (got >= bytes) resolve()
  }
  socket.on('data', take)
  socket.write(order.padEnd(ORDER_BYTES))
  await promise
  socket.off('data', take)
}

async function send(socket: Socket, bytes: number): Promise<void> {
  const answered = exchange(socket, `${bytes}u`, 1)
  socket.write(Buffer.alloc(bytes))
  await answered
}

async function time(work: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now()
  await work()
  return performance.now() - startedAt
}
