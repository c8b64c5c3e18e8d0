import { createHash } from 'node:crypto'
import { expect, test } from 'vitest'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { layerChainIds } from '../../../snapshotter/oci/layer-chain-id.ts'

test('the chain ID of a layer hashes that of the one below and its own diff ID', () => {
  const [a, b, c] = ['a', 'b', 'c'].map((layer) => digestOf(Buffer.from(layer)))
  if (a === undefined || b === undefined || c === undefined) throw new Error('three layers')
  const sha256 = (text: string): string =>
    `sha256:${createHash('sha256').update(text).digest('hex')}`
  const ab = sha256(`${a} ${b}`)
  expect(layerChainIds([a, b, c])).toEqual([a, ab, sha256(`${ab} ${c}`)])
  expect(layerChainIds([])).toEqual([])
})
