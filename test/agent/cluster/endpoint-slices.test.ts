import { expect, test } from 'vitest'
import { EndpointSlices } from '../../../agent/cluster/endpoint-slices.ts'

type Endpoint = {
  readonly addresses?: readonly unknown[]
  readonly nodeName?: unknown
  readonly conditions?: unknown
}

const ready = (address: string, nodeName?: string): Endpoint => ({
  addresses: [address],
  conditions: { ready: true, serving: true, terminating: false },
  ...(nodeName !== undefined && { nodeName }),
})

/** As the controller of Kubernetes writes it. */
const slice = (name: string, endpoints: unknown, change: object = {}) => ({
  metadata: { namespace: 'ipdr-system', name, resourceVersion: '7' },
  addressType: 'IPv4',
  ports: [
    { name: 'monitoring', port: 5081, protocol: 'TCP' },
    { name: 'cluster', port: 5082, protocol: 'TCP' },
  ],
  endpoints,
  ...change,
})

function opened(): { slices: EndpointSlices; problems: string[]; urls: () => string[] } {
  const problems: string[] = []
  const slices = new EndpointSlices({ onProblem: (sentence) => problems.push(sentence) })
  return { slices, problems, urls: () => slices.nodes().map(({ url }) => url) }
}

test('the nodes are those of all slices, by the port that is named cluster, in one order', () => {
  const { slices, urls, problems } = opened()
  slices.put(slice('b', [ready('10.0.0.3', 'three'), ready('10.0.0.1', 'one')]))
  slices.put(slice('a', [ready('10.0.0.2', 'two')]))
  expect(urls()).toEqual([1, 2, 3].map((last) => `https://10.0.0.${last}:5082`))
  expect(problems).toEqual([])
})

test('a slice that changes or goes takes what it said with it', () => {
  const { slices, urls } = opened()
  slices.put(slice('a', [ready('10.0.0.1', 'one'), ready('10.0.0.2', 'two')]))
  slices.put(slice('a', [ready('10.0.0.1', 'one'), ready('10.0.0.9', 'two')]))
  expect(urls()).toEqual(['https://10.0.0.1:5082', 'https://10.0.0.9:5082'])
  slices.remove(slice('a', []))
  expect(urls()).toEqual([])
})

test('a pod that is not ready, or that ends, is known and not ready; one of which that is not told is', () => {
  const { slices } = opened()
  const conditions = { ready: false, serving: true, terminating: true }
  slices.put(
    slice('a', [
      { ...ready('10.0.0.1', 'one'), conditions: { ready: false } },
      { ...ready('10.0.0.2', 'two'), conditions },
      { addresses: ['10.0.0.3'], nodeName: 'three' },
      { addresses: ['10.0.0.4'], nodeName: 'four', conditions: {} },
    ]),
  )
  expect(slices.nodes().map(({ isReady }) => isReady)).toEqual([false, false, true, true])
})

test('of the pod that ends on a node and the one that takes its place, the one that is ready counts', () => {
  const { slices } = opened()
  const ending = (address: string): Endpoint => ({
    ...ready(address, 'one'),
    conditions: { ready: false, terminating: true },
  })
  slices.put(slice('a', [ready('10.0.0.1', 'one'), ending('10.0.0.1')]))
  expect(slices.nodes()).toEqual([{ url: 'https://10.0.0.1:5082', isReady: true }])
  slices.put(slice('a', [ending('10.0.0.1'), ready('10.0.0.8', 'one')]))
  expect(slices.nodes()).toEqual([{ url: 'https://10.0.0.8:5082', isReady: true }])
})

test('a node with addresses of both families is one node, by its IPv4 address, whichever slice came first', () => {
  const both = [
    slice('v4', [ready('10.0.0.1', 'one')]),
    slice('v6', [ready('fd00::1', 'one'), ready('fd00:0:0::2', 'two')], { addressType: 'IPv6' }),
  ]
  for (const order of [both, both.toReversed()]) {
    const { slices, urls, problems } = opened()
    for (const each of order) slices.put(each)
    expect(urls()).toEqual(['https://10.0.0.1:5082', 'https://[fd00::2]:5082'])
    expect(problems).toEqual([])
  }
})

test.each([
  ['127.0.0.1', 'IPv4'],
  ['0.0.0.0', 'IPv4'],
  ['169.254.169.254', 'IPv4'],
  ['224.0.0.1', 'IPv4'],
  ['255.255.255.255', 'IPv4'],
  ['10.0.0.1/24', 'IPv4'],
  ['10.0.0.1:80', 'IPv4'],
  ['user@10.0.0.1', 'IPv4'],
  ['node.example', 'IPv4'],
  ['fd00::1', 'IPv4'],
  ['10.0.0.1', 'IPv6'],
  ['::1', 'IPv6'],
  ['::', 'IPv6'],
  ['::ffff:127.0.0.1', 'IPv6'],
  ['fe80::1', 'IPv6'],
  ['fd00::1%eth0', 'IPv6'],
  ['ff02::1', 'IPv6'],
])(
  'an endpoint at %s, as %s, is left out and told of once, and the others are taken',
  (address, addressType) => {
    const { slices, problems, urls } = opened()
    const good = addressType === 'IPv4' ? '10.0.0.7' : 'fd00::7'
    const bad = slice('a', [ready(address, 'bad'), ready(good, 'good')], { addressType })
    slices.put(bad)
    slices.put(bad)
    expect(urls()).toHaveLength(1)
    expect(urls()[0]).toContain(good)
    expect(problems).toEqual([
      `EndpointSlice ipdr-system/a has an endpoint that is left out, number 0: "${address}" is no ${addressType} address of another node`,
    ])
  },
)

test.each<[string, unknown]>([
  ['null', null],
  ['a word', '10.0.0.1'],
  ['no addresses', {}],
  ['none', { addresses: [] }],
  ['a number', { addresses: [7] }],
  ['a very long one', { addresses: ['1'.repeat(1_000)] }],
  ['conditions of another type', { ...ready('10.0.0.1'), conditions: { ready: 'yes' } }],
  ['a name of another type', { ...ready('10.0.0.1'), nodeName: 7 }],
])(
  'an endpoint that is %s is left out and told of once, and the others are taken',
  (_, endpoint) => {
    const { slices, problems, urls } = opened()
    for (const _ of [1, 2]) slices.put(slice('a', [endpoint, ready('10.0.0.7', 'good')]))
    expect(urls()).toEqual(['https://10.0.0.7:5082'])
    expect(problems).toHaveLength(1)
    expect(problems[0]?.length).toBeLessThan(400)
  },
)

test.each<[string, object]>([
  ['host names', { addressType: 'FQDN' }],
  ['no type of address', { addressType: undefined }],
  ['more endpoints than the API takes', { endpoints: Array.from({ length: 1_001 }, () => null) }],
  ['endpoints that are none', { endpoints: 'all' }],
  ['a port that is none', { ports: [{ name: 'cluster', port: 65_536 }] }],
])(
  'of a slice with %s what it said before stays, and it is told of once until it is sound again',
  (_, change) => {
    const { slices, problems, urls } = opened()
    const sound = slice('a', [ready('10.0.0.1', 'one')])
    slices.put(sound)
    for (const _ of [1, 2]) slices.put(slice('a', [ready('10.0.0.9', 'nine')], change))
    expect(urls()).toEqual(['https://10.0.0.1:5082'])
    expect(problems).toHaveLength(1)
    expect(problems[0]).toMatch(/^EndpointSlice ipdr-system\/a is left out: /)
    slices.put(sound)
    slices.put(slice('a', [], change))
    expect(problems).toHaveLength(2)
  },
)

test('what has no name is nothing', () => {
  const { slices, problems } = opened()
  for (const object of [null, 7, {}, { metadata: {} }, { metadata: { name: 'x'.repeat(300) } }]) {
    slices.put(object)
    slices.remove(object)
  }
  expect(slices.nodes()).toEqual([])
  expect(problems).toEqual([])
})

test('a Service that names its port otherwise is told of, and an empty slice, which has no ports, is not', () => {
  const { slices, problems } = opened()
  slices.put(slice('empty', null, { ports: null }))
  expect(problems).toEqual([])
  slices.put(slice('a', [ready('10.0.0.1', 'one')], { ports: [{ name: '', port: 5082 }] }))
  expect(slices.nodes()).toEqual([])
  expect(problems).toEqual([
    'EndpointSlice ipdr-system/a has no port named cluster, so nobody in it is asked: name it so in the Service',
  ])
})

test('no more endpoints are taken than a cluster has, and what was taken before stays', () => {
  const { slices, problems } = opened()
  const full = (part: number) =>
    slice(
      `s${part}`,
      Array.from({ length: 1_000 }, (_, at) =>
        ready(`10.${part}.${at >> 8}.${at & 255}`, `${part}-${at}`),
      ),
    )
  for (let part = 0; part < 20; part++) slices.put(full(part))
  expect(slices.nodes()).toHaveLength(16_000)
  expect(problems).toHaveLength(4)
  expect(problems[0]).toBe(
    'EndpointSlice ipdr-system/s16 is left out: 1024 slices and 16384 endpoints are taken at most',
  )
  // Room is made again.
  slices.remove(full(0))
  slices.put(full(16))
  slices.put(full(1))
  expect(slices.nodes()).toHaveLength(16_000)
})

test('no more slices are taken than such a cluster has', () => {
  const { slices, problems } = opened()
  for (let at = 0; at < 1_030; at++) slices.put(slice(`s${at}`, []))
  slices.put(slice('last', [ready('10.0.0.1', 'one')]))
  expect(slices.nodes()).toEqual([])
  expect(problems.length).toBeGreaterThan(0)
})
