import { checkDeployment } from './deployment-file/build-pod.ts'
import { YamlSource } from './deployment-file/yaml-source.ts'

/** What a new deployment file is to say. */
export type InitialDeployment = {
  /** Of the pod, and of its container. */
  readonly name: string
  readonly image: string
  readonly ports?: readonly InitialPort[] | undefined
  readonly volumes?: readonly InitialVolume[] | undefined
}

export type InitialPort = {
  /** `http` or `port-<number>`, unless given. */
  readonly name?: string | undefined
  readonly container: number
  /** Host name for HTTP requests. */
  readonly host?: string | undefined
  /** A port of the cluster's nodes. */
  readonly tcp?: number | 'auto' | undefined
}

export type InitialVolume = {
  readonly name: string
  /** Where the container finds it. */
  readonly path: string
  /** As `1GiB`, which it is unless given. */
  readonly disk?: string | undefined
}

/**
 * The text of a deployment file to start from, with comments that show what else there is. Throws DeploymentFileError if what it is
 * to say cannot be said.
 */
export function initialFile({ name, image, ports = [], volumes = [] }: InitialDeployment): string {
  const text = [
    '# A pod of one container. All fields: docs/deployment-file.md. Deploy it with: ipdr deploy ipdr.yaml',
    `name: ${scalar(name)}`,
    '',
    "# Whom to deploy to, unless --provider says it: the multiaddr of a provider's agent.",
    '# provider: /dns4/node.example.com/tcp/4011/p2p/12D3KooW…',
    '',
    'containers:',
    `  ${scalar(name)}:`,
    '    # ipdr.internal/<CID> as ipdr push prints it, or an image of a registry.',
    `    image: ${scalar(image)}`,
    '    # Reserved and paid for, and the most that it gets.',
    '    cpu: 250m',
    '    memory: 256MiB',
    "    # In place of the image's own entrypoint and command:",
    '    # entrypoint: ["/app/server"]',
    '    # command: ["--verbose"]',
    '    # environment:',
    '    #   LOG_LEVEL: info',
    ...portLines(ports),
    ...mountLines(volumes),
    ...volumeLines(volumes),
    '',
    ports.some(({ host }) => host !== undefined)
      ? '# min: 0 lets it sleep until a request comes.'
      : '# Replicas; with a port that has a host, min: 0 lets it sleep until a request comes.',
    'scaling:',
    '  min: 1',
    '  max: 1',
    '',
  ].join('\n')
  checkDeployment(YamlSource.read('the new file', text))
  return text
}

function portLines(ports: readonly InitialPort[]): string[] {
  if (ports.length === 0) {
    return [
      '    # Ports that are reached from outside, by host name or at a port of the nodes:',
      '    # ports:',
      '    #   - { name: http, container: 80, host: app.example.com }',
      '    #   - { name: game, container: 7777, tcp: auto }',
    ]
  }
  return [
    '    ports:',
    ...ports.flatMap(({ name, container, host, tcp }) => {
      const isFirstHttp = ports.find((port) => port.host !== undefined)?.container === container
      const named = name ?? (host !== undefined && isFirstHttp ? 'http' : `port-${container}`)
      return [
        `      - name: ${scalar(named)}`,
        `        container: ${container}`,
        ...(host === undefined ? [] : [`        host: ${scalar(host)}`]),
        ...(tcp === undefined ? [] : [`        tcp: ${tcp}`]),
      ]
    }),
  ]
}

function mountLines(volumes: readonly InitialVolume[]): string[] {
  if (volumes.length === 0) {
    return [
      '    # Where volumes, which are described below, are mounted:',
      '    # volumes:',
      '    #   - data:/var/lib/data',
      '    #   - key:/run/secrets/key.pem:ro',
    ]
  }
  return [
    '    volumes:',
    ...volumes.map(({ name, path }) => `      - ${scalar(`${name}:${path}`)}`),
  ]
}

function volumeLines(volumes: readonly InitialVolume[]): string[] {
  const kinds = [
    '# disk stays until the pod is deleted, scratch is empty at every start, a secret is a file that nobody else reads:',
  ]
  if (volumes.length === 0) {
    return [
      '',
      ...kinds,
      '# volumes:',
      '#   data: { disk: 1GiB }',
      '#   tmp: { scratch: 100MiB }',
      '#   key: { secret: { file: ./key.pem } }',
    ]
  }
  return [
    '',
    ...kinds,
    'volumes:',
    ...volumes.map(({ name, disk }) => `  ${scalar(name)}: { disk: ${scalar(disk ?? '1GiB')} }`),
  ]
}

/** Plain where that reads as the same text, else quoted as JSON is. */
function scalar(text: string): string {
  const isPlain = /^(?:[A-Za-z][\w./@:+-]*|\d+[KMGT]i?B)$/.test(text) && !text.endsWith(':')
  const isWord = !/^(?:true|false|null|yes|no|on|off)$/i.test(text)
  return isPlain && isWord ? text : JSON.stringify(text)
}
