import { access } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { expect, vi } from 'vitest'
import { onceServed } from '../support/lazy-node.ts'
import { FAILS_CLOSED } from './faults.ts'
import { removeLeases, viewsOf } from './leftovers.ts'
import type { FaultImage, World } from './world.ts'

/** One fault and its repair take some seconds, and up to 10 more where workers died one after the other; a loaded machine several times as long. */
export const ROUND_MS = 120_000

/** A pull, a container that reads, and its end; the image too, at times. Calls that a fault broke are made again, as the kubelet does. */
export async function churn(world: World, image: FaultImage, name: string): Promise<void> {
  const { node } = world
  const again = <T>(call: () => Promise<T>): Promise<T> => tried(() => onceServed(call))
  await again(() => node.cri.pullImage(image.reference))
  for (let told: number | undefined; told === undefined; ) {
    const container = await again(() => world.startReader(image))
    told = await judge(world, container.id, image, { read: 0, name })
    await again(async () => container[Symbol.asyncDispose]())
  }
  if (image !== world.images[0]) await again(() => node.cri.removeImage(image.reference))
}

/** containerd answers some calls that were broken off with reasons of all kinds; the kubelet tries all of them again. */
export async function tried<T>(call: () => Promise<T>): Promise<T> {
  const deadline = Date.now() + ROUND_MS / 2
  for (;;) {
    try {
      return await call()
    } catch (error) {
      if (Date.now() > deadline) throw error
      await setTimeout(100)
    }
  }
}

/**
 * Every digest that a container tells is the right one, and it goes on to tell some. Returns how many lines it has told; undefined if it
 * has ended, which no fault may bring about but the one that fails closed.
 */
export async function judge(
  world: World,
  id: string,
  { sha256 }: FaultImage,
  { read, name }: { readonly read: number; readonly name: string },
): Promise<number | undefined> {
  const { cri } = world.node
  const [lines, state] = await vi.waitFor(async () => {
    const told = (await tried(() => cri.logOf(id))).trim().split('\n')
    const { state } = await tried(() => cri.containerStatus(id))
    const right = told.slice(read).filter((line) => line.startsWith(sha256)).length
    if (state !== 'CONTAINER_EXITED' && right < 2) {
      throw new Error(`${name}: ${id} is ${state} and has told ${right} times what it read`)
    }
    return [told, state] as const
  }, ROUND_MS / 2)
  const wrong = lines.filter((line) => /^[0-9a-f]{64}/.test(line) && !line.startsWith(sha256))
  expect({ name, wrong }).toEqual({ name, wrong: [] })
  if (state !== 'CONTAINER_EXITED') return lines.length
  expect(name).toBe(FAILS_CLOSED)
  return undefined
}

/** Once everything that runs in the background has ended. */
export async function agree(world: World, name: string): Promise<void> {
  await vi.waitFor(async () => {
    const views = await viewsOf(world.node)
    expect({ name, snapshots: views.ourSnapshots }).toEqual({
      name,
      snapshots: views.containerdSnapshots,
    })
    expect({ name, mounts: views.agentMounts }).toEqual({ name, mounts: views.kernelMounts })
    expect({ name, layers: views.layerFolders }).toEqual({ name, layers: views.agentLayers })
    expect({ name, fuse: views.fuseMounts, dead: views.deadLoops }).toEqual({
      name,
      fuse: 1,
      dead: [],
    })
  }, ROUND_MS / 2)
}

export async function nothingIsLeft(world: World): Promise<void> {
  const { node, images } = world
  // Of starts that a fault broke off, as the kubelet finds them.
  for (const id of await node.cri.listPodSandboxes()) {
    await tried(() => node.cri.removePodSandbox({ id }))
  }
  for (const image of images) await tried(() => node.cri.removeImage(image.reference))
  await removeLeases(node)
  await vi.waitFor(async () => {
    const views = await viewsOf(node)
    // The pods' own image, of one layer.
    expect(views.ourSnapshots).toHaveLength(1)
    expect(views.directories).toBe(1)
    expect(views.kernelMounts).toEqual([])
    expect(views.loops).toBe(0)
  }, ROUND_MS)
  await world.evict()
  await vi.waitFor(async () => {
    // A thread that serves the kernel lets go of a file with its next request.
    await Promise.all(
      Array.from({ length: 20 }, (_, name) =>
        access(join(node.agent.runDir, `files/none-${name}`)).catch(() => {}),
      ),
    )
    const { layerFolders, descriptors } = await viewsOf(node)
    expect(layerFolders).toBe(0)
    expect([...descriptors.keys()].filter((path) => path.includes('/layers/'))).toEqual([])
  }, ROUND_MS)
}
