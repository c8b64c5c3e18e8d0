import { expect, test } from 'vitest'
import { nodesNamed, WhoAsked } from '../../../agent/cluster/who-asked.ts'

const node = (at: number): string => `https://10.0.0.${at}:5082`

test('who asks is told who asked for the same before, and not of itself', () => {
  const asked = new WhoAsked()
  expect(asked.note('a', node(1))).toEqual([])
  expect(asked.note('a', node(2))).toEqual([node(1)])
  expect(asked.note('a', node(1))).toEqual([node(2)])
  expect(asked.note('b', node(3))).toEqual([])
})

test('the first ones and the last are remembered, and of things the last ones', () => {
  const asked = new WhoAsked()
  for (let at = 1; at <= 9; at++) asked.note('a', node(at))
  expect(asked.note('a', undefined)).toEqual([1, 2, 3, 9].map(node))
  for (let at = 0; at < 4_095; at++) asked.note(`b${at}`, node(1))
  expect(asked.note('a', undefined)).toHaveLength(4)
  for (let at = 0; at < 4_096; at++) asked.note(`c${at}`, node(1))
  expect(asked.note('a', undefined)).toEqual([])
})

test.each([
  undefined,
  '',
  7,
  ['https://10.0.0.1:5082'],
  'http://10.0.0.1:5082',
  'https://a, https://b',
  'https://a/path',
  'https://user@a',
  'https://a\r\nx: y',
  `https://${'a'.repeat(300)}`,
])('%j is no node, and is not remembered', (name) => {
  const asked = new WhoAsked()
  asked.note('a', name)
  expect(asked.note('a', node(1))).toEqual([])
})

test('an answer names four nodes at most, whatever it says', () => {
  expect(nodesNamed([1, 2, 3, 4, 5].map(node).join(', '))).toEqual([1, 2, 3, 4].map(node))
  expect(nodesNamed(undefined)).toEqual([])
  expect(nodesNamed(['a'])).toEqual([])
  expect(nodesNamed('x'.repeat(1_000_000)).join('').length).toBeLessThan(2_000)
})
