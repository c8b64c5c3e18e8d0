import type {
  ContainerSpec,
  Exposure,
  PodIdentity,
  PodSpec,
  VolumeSpec,
} from '../../agent/deploy/pod-spec.ts'

export const IDENTITY: PodIdentity = {
  publisher: '0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc',
  podId: `0x${'00'.repeat(32)}`,
  namespace: 'tpod-3cpleg7x5zg5a7mi5d4quujyclm5hcwdscsyoitwfsptv7cob7vq',
}

/** One container that asks for nothing special, with whatever is given in place. */
export function podSpec(given: Partial<PodSpec> = {}): PodSpec {
  return {
    name: 'a pod',
    containers: [containerSpec()],
    volumes: [],
    scaling: { min: 1, max: 1 },
    registryLogins: [],
    isStateful: false,
    ...given,
  }
}

export function containerSpec(given: Partial<ContainerSpec> = {}): ContainerSpec {
  return {
    name: 'web',
    image: 'docker.io/library/nginx:1.27',
    entrypoint: [],
    arguments: [],
    env: new Map(),
    ports: [],
    mounts: [],
    cpuMillis: 250,
    memoryBytes: 128 * 1024 ** 2,
    devices: new Map(),
    ...given,
  }
}

const TEXTS = ['', 'a', '$(HOME)', 'pa$$word', '$', 'ü\n"\'', '{"a": [1]}', 'x'.repeat(300)]
const IMAGES = [
  'docker.io/library/nginx:1.27',
  'ghcr.io/example/ledger@sha256:0000000000000000000000000000000000000000000000000000000000000000',
  'ipdr.internal/bafkreib5a2kq3lezv5uwac5t3ajcrfrpy346aqhlbcep7wem3tp6czppry:latest',
]

/** A pod as the parser lets it in, up to names of 40 characters. `random` answers 0 up to, not including, `max`. */
export function randomPodSpec(random: (max: number) => number): PodSpec {
  const oneOf = <T>(list: readonly T[]): T => list[random(list.length)] as T
  const isSo = (): boolean => random(2) === 0
  const many = <T>(max: number, make: (index: number) => T): T[] =>
    Array.from({ length: random(max + 1) }, (_, index) => make(index))
  const nameOf = (word: string, index: number): string =>
    isSo() ? `${word}-${index}` : `${word}-${index}`.padEnd(40, 'x')
  const volumes = many(5, (index): VolumeSpec => {
    const name = nameOf('volume', index)
    const bytes = 1 + random(2 ** 31)
    if (random(3) === 0) return { kind: 'scratch', name, bytes }
    if (isSo()) return { kind: 'disk', name, bytes, isShared: isSo() }
    return { kind: 'secret', name, contents: Buffer.from(oneOf(TEXTS)) }
  })
  let ports = 0
  const exposure = (port: number): Exposure | undefined => {
    if (random(3) === 0) return undefined
    if (isSo()) return { kind: 'http', host: `host-${port}.example.com` }
    return { kind: 'tcp', nodePort: isSo() ? undefined : 30_000 + port }
  }
  const containers = Array.from({ length: 1 + random(4) }, (_, index) =>
    containerSpec({
      name: nameOf('container', index),
      image: oneOf(IMAGES),
      entrypoint: many(3, () => oneOf(TEXTS)),
      arguments: many(3, () => oneOf(TEXTS)),
      ...(isSo() && { workingDir: '/srv' }),
      env: new Map(many(5, (variable) => [`V_${random(1_000)}_${variable}`, oneOf(TEXTS)])),
      ports: many(3, () => {
        const containerPort = 1 + 100 * ports++ + random(100)
        return {
          name: nameOf('port', containerPort),
          containerPort,
          servicePort: 1 + random(65_535),
          exposure: exposure(containerPort),
        }
      }),
      mounts: volumes
        .filter(isSo)
        .map(({ name }) => ({ volume: name, path: `/mnt/${name}`, readOnly: isSo() })),
      cpuMillis: 1 + random(512_000),
      memoryBytes: 2 ** 22 + random(2 ** 31),
      devices: new Map(many(2, (device) => [`example.com/device-${device}`, 1 + random(64)])),
    }),
  )
  const isStateful = random(3) === 0
  const hasHost = containers.some((container) =>
    container.ports.some((port) => port.exposure?.kind === 'http'),
  )
  const min = hasHost && !isStateful && isSo() ? 0 : 1 + random(50)
  return podSpec({
    name: oneOf(['', 'ein Pod für alle', 'x'.repeat(63)]),
    containers,
    volumes,
    scaling: {
      min,
      max: Math.max(min, 1) + random(50),
      ...(isSo() && { pendingRequests: 1 + random(100) }),
    },
    registryLogins: many(2, (index) => ({
      server: `registry-${index}.example.com`,
      username: 'u',
      password: 'p',
    })),
    ...(random(4) === 0 && { runtimeClass: 'kata' }),
    isStateful,
  })
}
