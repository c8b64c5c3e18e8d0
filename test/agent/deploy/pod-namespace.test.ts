import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { namespaceOf } from '../../../agent/deploy/pod-namespace.ts'

type Vectors = {
  readonly namespace: {
    readonly publisher: `0x${string}`
    readonly podIdHex: `0x${string}`
    readonly namespace: string
  }
}

test('the namespace of a pod is the one that Trusted Pods gives it, however its publisher is spelled', () => {
  const path = join(import.meta.dirname, 'vectors.json')
  const { publisher, podIdHex, namespace } = (JSON.parse(readFileSync(path, 'utf8')) as Vectors)
    .namespace
  expect(namespaceOf(publisher, podIdHex)).toBe(namespace)
  expect(namespaceOf(publisher.toLowerCase() as `0x${string}`, podIdHex)).toBe(namespace)
})

test('two pods of a publisher, and the same pod of two, have different namespaces, each a label of DNS', () => {
  const publishers = [`0x${'11'.repeat(20)}`, `0x${'22'.repeat(20)}`] as const
  const podIds = [`0x${'01'.repeat(32)}`, `0x${'02'.repeat(32)}`] as const
  const names = publishers.flatMap((publisher) =>
    podIds.map((podId) => namespaceOf(publisher, podId)),
  )
  expect(new Set(names).size).toBe(4)
  for (const name of names) expect(name).toMatch(/^tpod-[a-z2-7]{52}$/)
})
