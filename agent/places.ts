import type { Config } from './config.ts'

/** Every path the agent uses, derived from the configuration alone. */
export type Places = {
  /** The flat FUSE file system, one file a layer. */
  readonly fuseDir: string
  /** EROFS mounts of layers whose bytes come through FUSE. */
  readonly lazyMountsDir: string
  readonly recordPath: string
  /** The control group of the FUSE keeper, if it gets one of its own. */
  readonly keeperGroup: string | undefined
  /** Where the hook asks whether a container may start. */
  readonly authorizeSocket: string
}

export function placesOf(
  config: Pick<Config, 'root' | 'runDir'> & Partial<Pick<Config, 'fuseKeeper'>>,
): Places {
  return {
    fuseDir: `${config.runDir}/files`,
    // Beside the snapshots, with a short name: 128 of these share the 4,096 bytes of overlay's options.
    lazyMountsDir: `${config.root}/m`,
    recordPath: `${config.runDir}/fuse-keeper.json`,
    keeperGroup: config.fuseKeeper?.controlGroup,
    authorizeSocket: `${config.runDir}/authorize.sock`,
  }
}
