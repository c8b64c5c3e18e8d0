import { type Command, defineCommand } from '../command.ts'
import { describeAddresses, PUBLISHING_OPTIONS, publish } from '../publishing.ts'
import { REPOSITORY_OPTION, repositoryDirectory } from '../repository-option.ts'

/** `ipdr serve` */
export const serve: Command = defineCommand({
  name: 'serve',
  usage: '',
  summary: 'Offer the images that you published to others',
  description: [
    'Offers every block of the repository over bitswap (libp2p: TCP, noise, yamux) and as a trustless HTTP gateway, until it is interrupted. Once others can reach it, it prints the addresses that they put into their agent’s configuration: ipfs.peers and ipfs.gateways. What ipdr push adds meanwhile is offered at once.',
    'The peer ID is made at the first start and kept in the repository. The gateway listens on loopback unless told otherwise: it answers whoever can connect. Being stopped by SIGINT or SIGTERM is success.',
  ],
  args: {},
  options: { repository: REPOSITORY_OPTION, ...PUBLISHING_OPTIONS },
  examples: [
    ['ipdr serve', 'bitswap on port 4001, gateway on 127.0.0.1:8080'],
    ['ipdr serve --gateway 0.0.0.0:8080', 'let other machines use the gateway'],
    ["ipdr serve -o json | jq -r '.gateway'", 'the address for ipfs.gateways'],
  ],
  seeAlso: ['ipdr push', 'ipdr repository ls', 'ipdr-agent(8)'],
  async run({ repository, listen, gateway }, { output, signal }) {
    const directory = repositoryDirectory(repository)
    await publish(
      { directory, listen, gateway },
      (addresses) => output.refresh(addresses, () => describeAddresses(addresses)),
      signal,
    )
  },
})
