/** Where the files of lazy layers lie below the agent's root. One folder a layer, named by its id. */
export type LayerPlaces = {
  /** The folder of layer `id`. */
  layerDir(id: number): string
  /** The uncompressed tar, as much of it as is here. */
  dataPath(id: number): string
  /** EROFS image of names and modes. */
  metadataPath(id: number): string
  /** The table of contents that the metadata image was made from. */
  tocPath(id: number): string
  /** What the table and the image must be: see `FileSums`. */
  sumsPath(id: number): string
  /** How the layer file is made from the blob. */
  mapPath(id: number): string
  /** The blob's leaves, and how to ask for its key. */
  leavesPath(id: number): string
  /** What is here of an encrypted blob, until all of it was checked. */
  ciphertextPath(id: number): string
  /** Folder of metadata images that were made from several layers. */
  readonly derivedDir: string
  /** Folder of prefetch lists. */
  readonly prefetchDir: string
  /** Folder of mount points; short, since overlay's options must fit one page. */
  readonly mountsDir: string
  /** The layer's file in the flat FUSE file system, where it has its id for a name. */
  fusePath(id: number): string
}

export function layerPlaces(root: string, fuseDir: string): LayerPlaces {
  const layerDir = (id: number): string => `${root}/layers/${id}`
  return {
    layerDir,
    dataPath: (id) => `${layerDir(id)}/data`,
    metadataPath: (id) => `${layerDir(id)}/meta.erofs`,
    tocPath: (id) => `${layerDir(id)}/toc`,
    sumsPath: (id) => `${layerDir(id)}/sums`,
    mapPath: (id) => `${layerDir(id)}/map`,
    leavesPath: (id) => `${layerDir(id)}/leaves`,
    ciphertextPath: (id) => `${layerDir(id)}/ciphertext`,
    derivedDir: `${root}/derived`,
    prefetchDir: `${root}/prefetch`,
    mountsDir: `${root}/m`,
    fusePath: (id) => `${fuseDir}/${id}`,
  }
}

/** Inode of a layer's file: the same in every process that ever serves it. The first ones are the kernel's. */
export function fuseInode(id: number): number {
  return id + 1000
}

export function layerOfInode(inode: number): number {
  return inode - 1000
}
