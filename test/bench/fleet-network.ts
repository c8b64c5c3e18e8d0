import { NetworkNamespace } from '../support/network-namespace.ts'
import type { Scratch } from '../support/scratch.ts'

/** Bits a second that leave a host. */
export type LinkRates = { readonly originMbit: number; readonly nodeMbit: number }

/** A host of the network: a namespace with one address. */
export type FleetHost = { readonly network: NetworkNamespace; readonly address: string }

/** Hosts on one switch; what leaves each is shaped by the kernel (tbf). */
export class FleetNetwork {
  readonly origin: FleetHost
  readonly nodes: readonly FleetHost[]

  private constructor(origin: FleetHost, nodes: readonly FleetHost[]) {
    this.origin = origin
    this.nodes = nodes
  }

  static async start(
    scratch: Scratch,
    count: number,
    { originMbit, nodeMbit }: LinkRates,
  ): Promise<FleetNetwork> {
    const middle = await NetworkNamespace.start(scratch)
    await middle.run('ip', 'link', 'add', 'switch', 'type', 'bridge')
    await middle.run('ip', 'link', 'set', 'switch', 'up')
    const origin = await addHost(scratch, middle, 1, originMbit)
    const nodes: FleetHost[] = []
    for (let node = 0; node < count; node++) {
      nodes.push(await addHost(scratch, middle, 10 + node, nodeMbit))
    }
    return new FleetNetwork(origin, nodes)
  }

  /** Bytes that the origin has sent since it was started, headers of TCP included. */
  async sentByOrigin(): Promise<number> {
    const text = await this.origin.network.run('ip', '-j', '-s', 'link', 'show', 'eth0')
    const [link] = JSON.parse(text) as [{ stats64: { tx: { bytes: number } } }]
    return link.stats64.tx.bytes
  }
}

async function addHost(
  scratch: Scratch,
  middle: NetworkNamespace,
  number: number,
  mbit: number,
): Promise<FleetHost> {
  const network = await NetworkNamespace.start(scratch)
  const address = `10.77.0.${number}`
  const port = `port${number}`
  const peer = ['peer', 'name', 'eth0', 'netns', network.name]
  await middle.run('ip', 'link', 'add', port, 'type', 'veth', ...peer)
  await middle.run('ip', 'link', 'set', port, 'master', 'switch', 'up')
  await network.run('ip', 'address', 'add', `${address}/24`, 'dev', 'eth0')
  await network.run('ip', 'link', 'set', 'eth0', 'up')
  // A burst of 128 KiB: two of what the kernel hands to a link at once; a queue of 200 ms, as routers have.
  const shape = ['tbf', 'rate', `${mbit}mbit`, 'burst', '128kb', 'latency', '200ms']
  await network.run('tc', 'qdisc', 'add', 'dev', 'eth0', 'root', ...shape)
  return { network, address }
}
