import { expect, test } from 'vitest'
import { NodePods } from '../../../agent/registries/node-pods.ts'

const pod = (name: string, image: string): object => ({
  metadata: { namespace: name, name },
  spec: { containers: [{ image }] },
})

test('more pods than a node runs are not taken in, and those that are known can still change', () => {
  const pods = new NodePods()
  for (let at = 0; at < 1_000; at++) pods.put(pod(`p${at}`, 'r.example/app:1'))
  pods.put(pod('late', 'r.example/app:2'))
  expect(pods.namespacesPulling('r.example/app:2')).toEqual([])
  pods.put(pod('p7', 'r.example/app:2'))
  expect(pods.namespacesPulling('r.example/app:2')).toEqual(['p7'])
})
