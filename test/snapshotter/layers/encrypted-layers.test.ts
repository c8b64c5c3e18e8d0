import { createPublicKey, generateKeyPairSync } from 'node:crypto'
import { expect, onTestFinished, test } from 'vitest'
import { LayerEncryptor } from '../../../snapshotter/encryption/encrypt-layer.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { failureOf } from '../../support/failure-of.ts'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { LazyNode } from './lazy-node.ts'
import { publishImage } from './published-image.ts'

test('an image with an encrypted layer is refused with the kinds of its recipients, before a byte of the layer is fetched', async () => {
  const tar = makeTar({ name: 'secret', content: randomContent(seeded(5), 600_000) })
  const { publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const encryptor = new LayerEncryptor()
  const blob = encryptor.push(tar)
  const annotations = await encryptor.finish({
    plainDigest: digestOf(tar),
    recipients: [createPublicKey(publicKey.export({ type: 'spki', format: 'pem' }))],
  })
  const blocks = new MemoryBlocks()
  const mediaType = 'application/vnd.oci.image.layer.v1.tar+gzip+encrypted'
  const image = await publishImage(blocks, [
    { blob, diffId: digestOf(tar), mediaType, annotations },
  ])
  const node = await LazyNode.open(blocks)
  onTestFinished(() => node[Symbol.asyncDispose]())
  await node.serve(image)
  const askedBefore = blocks.asked.length
  const failure = await failureOf(() => node.pull(image))
  expect(failure).toMatchObject({ code: 'UNIMPLEMENTED' })
  expect(failure.message).toContain(`layer ${digestOf(blob)} is encrypted for jwe`)
  // `pull` serves the manifest again, which asks for the same blocks as the first time.
  expect(blocks.asked.slice(askedBefore)).toEqual(blocks.asked.slice(0, askedBefore))
})
