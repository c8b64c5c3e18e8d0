import type { Arm } from './arm.ts'
import { registryHosts } from './arm.ts'

/** containerd alone: downloads all layers, unpacks them, stacks them by overlayfs. */
export const overlayfs: Arm = {
  name: 'overlayfs',
  title: 'containerd overlayfs',
  isWhole: true,
  publish: ({ workload, layout }, { registry }) => registry.push(layout, workload.name),
  openNode: async (_scratch, { registry }) => ({
    snapshotter: 'overlayfs',
    hosts: registryHosts(registry.host),
    [Symbol.asyncDispose]: async () => undefined,
  }),
}
