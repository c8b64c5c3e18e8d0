/** The first byte of a stored layer map says how its blob becomes the layer file. Numbers on disk: never reuse one. */
export const layerMapKind = { tar: 1, zstd: 2, gzip: 3, streamed: 4, chunks: 6 } as const
