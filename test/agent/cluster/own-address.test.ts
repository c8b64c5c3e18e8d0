import { expect, test } from 'vitest'
import { clusterNames } from '../../../agent/cluster/own-address.ts'

const PEERS = ['https://10.0.0.1:5082/', 'https://10.0.0.2:5082', 'https://[fd00::3]:5082']
const NAMES = ['https://10.0.0.1:5082', 'https://10.0.0.2:5082', 'https://[fd00::3]:5082']
const everywhere = { host: '0.0.0.0', port: 5082 }

test.each([
  ['10.0.0.2', 1],
  ['fd00::3', 2],
])(
  'one list does for all nodes: %s is the one with this address and the port that it listens on',
  (local, index) => {
    const names = clusterNames({ listen: everywhere, peers: PEERS }, ['127.0.0.1', local])
    expect(names.self).toBe(NAMES[index])
    expect(names.others).toEqual(NAMES.filter((_, at) => at !== index))
  },
)

test('another port of the same address is another node', () => {
  const peers = ['https://127.0.0.1:5082', 'https://127.0.0.1:5083']
  const listen = { host: '127.0.0.1', port: 5083 }
  expect(clusterNames({ listen, peers }, ['127.0.0.1'])).toEqual({
    self: peers[1],
    others: [peers[0]],
  })
})

test('one that is not in its list is called by the address that it listens on, or that it was given', () => {
  const listen = { host: '10.0.0.9', port: 5082 }
  expect(clusterNames({ listen, peers: PEERS }, []).self).toBe('https://10.0.0.9:5082')
  const [address] = ['https://node-9.example:5082']
  const given = clusterNames({ listen: everywhere, peers: PEERS, address }, ['10.0.0.1'])
  expect(given).toEqual({ self: address, others: NAMES })
})

test('one that listens on all its addresses and finds none of them in its list does not know what it is called', () => {
  expect(clusterNames({ listen: everywhere, peers: PEERS }, ['10.0.0.9']).self).toBeUndefined()
})

test('one that does not listen is no node to the others', () => {
  expect(clusterNames({ peers: PEERS }, ['10.0.0.1'])).toEqual({ self: undefined, others: NAMES })
})
