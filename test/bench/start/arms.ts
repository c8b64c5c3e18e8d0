import type { Arm } from './arm.ts'
import { ipdr, ipdrListed, ipdrOptimised } from './ipdr-arm.ts'
import { overlayfs } from './overlayfs-arm.ts'
import { soci } from './soci-arm.ts'
import { estargz, estargzOptimised } from './stargz-arm.ts'

/** All arms, in the order of the first round. */
export const ARMS: readonly Arm[] = [
  overlayfs,
  soci,
  estargz,
  estargzOptimised,
  ipdr,
  ipdrListed,
  ipdrOptimised,
]
