import type { V1Service } from '@kubernetes/client-node'
import { expect, test } from 'vitest'
import { addressesOf } from '../../../agent/deploy/pod-addresses.ts'
import type { PodSpec, PortSpec } from '../../../agent/deploy/pod-spec.ts'
import { containerSpec, podSpec } from '../../support/random-pod-spec.ts'

function withPorts(...ports: readonly PortSpec[]): PodSpec {
  return podSpec({ containers: [containerSpec({ ports })] })
}

function nodePortService(name: string, nodePort: number): V1Service {
  return { metadata: { name }, spec: { ports: [{ port: 1, nodePort }] } }
}

test('a publisher is told a URL, a port of the nodes, or a name inside of the namespace, for each port in order', () => {
  const spec = withPorts(
    {
      name: 'web',
      containerPort: 80,
      servicePort: 8_080,
      exposure: { kind: 'http', host: 'a.example.com' },
    },
    {
      name: 'wire',
      containerPort: 5_432,
      servicePort: 5_432,
      exposure: { kind: 'tcp', nodePort: undefined },
    },
    { name: 'metrics', containerPort: 9_090, servicePort: 9_100 },
  )
  const services = [nodePortService('other', 1), nodePortService('tpod-svc-wire', 31_234)]
  expect(addressesOf(spec, services)).toMatchObject([
    { container: 'web', containerPort: 80, where: { case: 'url', value: 'http://a.example.com' } },
    { container: 'web', containerPort: 5_432, where: { case: 'tcpPort', value: 31_234 } },
    {
      container: 'web',
      containerPort: 9_090,
      where: { case: 'service', value: 'tpod-svc-metrics:9100' },
    },
  ])
})

test('as long as the cluster has not chosen a port, the address is the one asked for, or says nothing', () => {
  const port = { name: 'wire', containerPort: 1, servicePort: 1 }
  const asked = withPorts({ ...port, exposure: { kind: 'tcp', nodePort: 30_001 } })
  const open = withPorts({ ...port, exposure: { kind: 'tcp', nodePort: undefined } })
  expect(addressesOf(asked)[0]?.where).toEqual({ case: 'tcpPort', value: 30_001 })
  expect(addressesOf(open)[0]?.where).toEqual({ case: undefined })
  const unready: V1Service = { metadata: { name: 'tpod-svc-wire' }, spec: { ports: [{ port: 1 }] } }
  expect(addressesOf(open, [unready])[0]?.where).toEqual({ case: undefined })
})
