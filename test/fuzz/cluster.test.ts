import { EndpointSlices } from '../../agent/cluster/endpoint-slices.ts'
import { nodesNamed, WhoAsked } from '../../agent/cluster/who-asked.ts'
import { CodedError } from '../../snapshotter/errors.ts'
import { fuzz, reportTotal } from './fuzz.ts'
import { mutateJson, mutateText } from './mutate.ts'

// What others say of who is in the cluster: whoever writes EndpointSlices, and other nodes.

reportTotal()

const slice = (addressType: 'IPv4' | 'IPv6', addresses: readonly string[]) => ({
  metadata: { namespace: 'ipdr-system', name: 'ipdr-agent-x7k2p', resourceVersion: '12' },
  addressType,
  ports: [{ name: 'cluster', port: 5082, protocol: 'TCP' }],
  endpoints: addresses.map((address, at) => ({
    addresses: [address],
    nodeName: `node-${at}`,
    conditions: { ready: at > 0, serving: true, terminating: false },
  })),
})

fuzz('an EndpointSlice', {
  cases: 10_000,
  inputs: () => [
    Buffer.from(JSON.stringify(slice('IPv4', ['10.0.0.1', '192.168.7.9']))),
    Buffer.from(JSON.stringify(slice('IPv6', ['fd00::1', '2001:db8::7']))),
  ],
  mutate: mutateJson,
  read: (bytes) => {
    const problems: string[] = []
    const slices = new EndpointSlices({ onProblem: (sentence) => problems.push(sentence) })
    let object: unknown
    try {
      object = JSON.parse(bytes.toString())
    } catch {
      throw new CodedError('INVALID_ARGUMENT', 'no JSON')
    }
    slices.put(object)
    for (const { url } of slices.nodes()) {
      const { origin, hostname } = new URL(url)
      if (origin !== url || /^(127\.|0\.|169\.254\.|\[::1\])/.test(hostname)) {
        throw new Error(`${url} is no other node`)
      }
    }
    slices.remove(object)
    if (slices.nodes().length > 0) throw new Error('what was removed is there')
    const [problem] = problems
    if (problem === undefined) return
    if (problem.length > 1_000) throw new Error(`a sentence of ${problem.length} characters`)
    throw new CodedError('INVALID_ARGUMENT', problem)
  },
})

fuzz('names of nodes in a header', {
  cases: 5_000,
  inputs: () => ['https://10.0.0.1:5082, https://[fd00::7]:5082, https://node-7.example'],
  mutate: mutateText,
  read: (header) => {
    const asked = new WhoAsked()
    for (const name of nodesNamed(header)) asked.note('a', name)
    const remembered = asked.note('a', undefined)
    for (const name of remembered) {
      // It stands in a header again.
      if (/[\r\n,]/.test(name)) throw new Error(`${JSON.stringify(name)} is no name`)
    }
    if (remembered.length < 3) throw new CodedError('INVALID_ARGUMENT', 'not all are names')
  },
})
