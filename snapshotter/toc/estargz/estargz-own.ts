import type { TocEntry } from '../layer-toc.ts'

/** The table of contents as an entry of the tar. stargz-snapshotter, estargz/types.go, as the two below. */
export const ESTARGZ_TOC_NAME = 'stargz.index.json'

const OWN_NAMES = new Set([ESTARGZ_TOC_NAME, '.prefetch.landmark', '.no.prefetch.landmark'])

/** Whether an entry is there for eStargz's readers alone: as in stargz-snapshotter, no container sees it. */
export function isEstargzOwn({ path }: TocEntry): boolean {
  return OWN_NAMES.has(path)
}
