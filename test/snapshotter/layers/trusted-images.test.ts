import { createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import { expect, onTestFinished, test } from 'vitest'
import { signImage } from '../../../snapshotter/sign-image.ts'
import type { TrustPolicy } from '../../../snapshotter/trust.ts'
import { failureOf } from '../../support/failure-of.ts'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { LazyNode } from './lazy-node.ts'
import { type PublishedImage, plainLayer, publishImage } from './published-image.ts'

const deadlineMs = 60_000
const { privateKey: key } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const policyOf = (signer: KeyObject): TrustPolicy => ({
  name: 'production',
  images: ['*'],
  roots: [],
  signers: [{ name: 'publisher.pub', key: createPublicKey(signer) }],
  signaturesMin: 1,
})

async function openNode(blocks: MemoryBlocks, policies: readonly TrustPolicy[]): Promise<LazyNode> {
  const node = await LazyNode.open(blocks, { foregroundDeadlineMs: 2_000 })
  onTestFinished(() => node[Symbol.asyncDispose]())
  await restart(node, blocks, policies)
  return node
}

async function restart(
  node: LazyNode,
  blocks: MemoryBlocks,
  policies: readonly TrustPolicy[],
): Promise<void> {
  await node.stop()
  node.policies = policies
  await node.start(blocks)
}

async function sign(blocks: MemoryBlocks, image: PublishedImage): Promise<PublishedImage> {
  const { root } = await signImage(
    { root: image.root, selector: 'latest' },
    {
      key,
      identity: undefined,
      blocks,
      sink: { put: async (cid, block) => void blocks.blocks.set(cid.toString(), block) },
      signal: AbortSignal.timeout(10_000),
    },
  )
  return { ...image, root }
}

const prepareOf = (node: LazyNode, image: PublishedImage): Promise<unknown> =>
  node.snapshotter.snapshots.prepare(
    {
      key: 'extract',
      parent: undefined,
      labels: new Map([['containerd.io/snapshot.ref', image.chainIds[0] ?? '']]),
    },
    AbortSignal.timeout(10_000),
  )

test(
  'of an unsigned image nothing is made known to containerd, remembered or mounted; the signed one runs',
  async () => {
    const blocks = new MemoryBlocks()
    const image = await publishImage(blocks, [plainLayer(makeTar({ name: 'app' }))])
    const node = await openNode(blocks, [policyOf(key)])
    const asked = blocks.asked.length
    const failure = await failureOf(() => node.serve(image))
    expect(failure).toMatchObject({ code: 'PERMISSION_DENIED' })
    expect(failure.message).toContain("is refused by policy 'production'")
    expect(node.snapshotter.images()).toEqual([])
    expect(node.snapshotter.layers()).toEqual([])
    // Its chain ID is nobody's: containerd would have to download the layer, and the registry does not give it the manifest.
    expect(await prepareOf(node, image)).toMatchObject({ kind: 'active' })
    expect(blocks.asked.length - asked).toBeLessThan(12)
    await node.pull(await sign(blocks, image))
    expect(node.snapshotter.images()).toHaveLength(1)
  },
  deadlineMs,
)

test(
  'an image that came before a policy is checked against it before more of it is given to containerd',
  async () => {
    const blocks = new MemoryBlocks()
    const image = await publishImage(blocks, [plainLayer(makeTar({ name: 'app' }))])
    const node = await openNode(blocks, [])
    await node.serve(image)
    await restart(node, blocks, [policyOf(key)])
    const failure = await failureOf(() => prepareOf(node, image))
    expect(failure).toMatchObject({ code: 'PERMISSION_DENIED' })
    expect(failure.message).toContain("policy 'production'")
    await restart(node, blocks, [])
    expect(await prepareOf(node, image)).toMatchObject({ kind: 'committed' })
  },
  deadlineMs,
)

test(
  'of two images with one chain ID the one that may run is taken, whichever was seen last',
  async () => {
    const blocks = new MemoryBlocks()
    const image = await publishImage(blocks, [plainLayer(makeTar({ name: 'app' }))])
    const signed = await sign(blocks, image)
    const node = await openNode(blocks, [])
    await node.serve(signed)
    await node.serve(image)
    await restart(node, blocks, [policyOf(key)])
    expect(await prepareOf(node, image)).toMatchObject({ kind: 'committed' })
  },
  deadlineMs,
)

test(
  'a snapshot that is here goes on to be mounted when a policy is added: what runs is not stopped',
  async () => {
    const blocks = new MemoryBlocks()
    const image = await publishImage(blocks, [plainLayer(makeTar({ name: 'app' }))])
    const node = await openNode(blocks, [])
    await node.pull(image)
    await restart(node, blocks, [policyOf(key)])
    await using mounted = await node.mount(image)
    expect(mounted.path).toBeTruthy()
    await expect(node.serve(image)).rejects.toThrow(/policy 'production'/)
  },
  deadlineMs,
)
