/** Bytes `start` up to, not including, `end`, counted from the first byte of a file or blob. */
export type ByteRange = { readonly start: number; readonly end: number }
