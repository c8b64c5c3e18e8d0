import { join } from 'node:path'
import { Containerd, writeHostsFile } from '../../support/containerd.ts'
import { Cri } from '../../support/cri.ts'
import type { Scratch } from '../../support/scratch.ts'
import type { ArmNode } from './arm.ts'

/** A containerd with nothing in it but the pause image, and a kubelet's view of it. */
export type Node = AsyncDisposable & { readonly containerd: Containerd; readonly cri: Cri }

/** Starts it beside what an arm has on its node. Disposed of before that. */
export async function startNode(
  scratch: Scratch,
  { snapshotter, hosts }: Pick<ArmNode, 'snapshotter' | 'hosts'>,
): Promise<Node> {
  await using opened = new AsyncDisposableStack()
  const certsDir = join(scratch.dir, 'certs.d')
  for (const [host, url] of Object.entries(hosts)) writeHostsFile(certsDir, host, url)
  const containerd = opened.use(await Containerd.start({ scratch, snapshotter, certsDir }))
  const cri = opened.use(await Cri.connect(containerd))
  const kept = opened.move()
  return { containerd, cri, [Symbol.asyncDispose]: () => kept.disposeAsync() }
}
