import { expect, test } from 'vitest'
import { clusterMembers } from '../../../agent/cluster/cluster-members.ts'

const listen = { host: '0.0.0.0', port: 5082 }
const found = (...nodes: [last: number, isReady: boolean][]) =>
  nodes.map(([last, isReady]) => ({ url: `https://10.0.0.${last}:5082`, isReady }))

test('a node is found by its address, ready or not, and is none of the others', () => {
  for (const isReady of [true, false]) {
    const nodes = found([1, true], [2, isReady], [3, true])
    expect(clusterMembers({ listen, peers: [] }, nodes, ['10.0.0.2'])).toEqual({
      self: 'https://10.0.0.2:5082',
      others: ['https://10.0.0.1:5082', 'https://10.0.0.3:5082'],
    })
  }
})

test('a node that is not ready is not asked, unless it is in the list of this node', () => {
  const nodes = found([1, false], [2, false], [3, true])
  const peers = ['https://10.0.0.1:5082/', 'https://node.example:5082']
  expect(clusterMembers({ listen, peers }, nodes, []).others).toEqual([
    'https://10.0.0.1:5082',
    'https://node.example:5082',
    'https://10.0.0.3:5082',
  ])
})

test('a cluster of 256 nodes is one cell', () => {
  const nodes = Array.from({ length: 256 }, (_, at) => nodeAt(at))
  expect(clusterMembers({ listen, peers: [] }, nodes, [addressAt(0)]).others).toHaveLength(255)
})

// Goal: in a large cluster every node asks some hundreds, and those whom it asks would ask it, so that they agree on whose home is where.
// Method: 5,000 nodes, of which every fiftieth finds its own cell.
test('of 5,000 nodes each is in one cell, of hundreds, that all of its nodes see alike', () => {
  const nodes = Array.from({ length: 5_000 }, (_, at) => nodeAt(at))
  const cells = new Set<string>()
  for (let at = 0; at < nodes.length; at += 50) {
    const { self = '', others } = clusterMembers({ listen, peers: [] }, nodes, [addressAt(at)])
    const cell = [self, ...others].toSorted().join()
    cells.add(cell)
    expect(others.length).toBeGreaterThan(80)
    expect(others.length).toBeLessThan(300)
  }
  // Of 32, some of them more than once: cells overlap nowhere.
  const members = [...cells].flatMap((cell) => cell.split(','))
  expect(new Set(members).size).toBe(members.length)
  expect(cells.size).toBeGreaterThan(20)
  expect(cells.size).toBeLessThanOrEqual(32)
})

test('a node that does not know its name belongs to one of the cells too', () => {
  const nodes = Array.from({ length: 1_000 }, (_, at) => nodeAt(at))
  const { self, others } = clusterMembers({ listen, peers: [] }, nodes, [])
  expect(self).toBeUndefined()
  expect(others.length).toBeGreaterThan(150)
  expect(others.length).toBeLessThan(350)
})

function addressAt(at: number): string {
  return `10.1.${Math.floor(at / 250)}.${(at % 250) + 1}`
}

function nodeAt(at: number): { url: string; isReady: boolean } {
  return { url: `https://${addressAt(at)}:5082`, isReady: true }
}
