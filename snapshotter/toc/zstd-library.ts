import koffi from 'koffi'

/** libzstd's decoder for whole frames, on threads of libuv's pool. */
export type ZstdLibrary = {
  /**
   * Decodes all frames of `stream`, one behind the other, into `into`, which neither is touched nor goes away until it has come to
   * its end. Resolves to the bytes made. Rejects with Error, in the library's words, if they are no frames or make more than there is room.
   */
  decompress(into: Uint8Array, stream: Uint8Array): Promise<number>
}

/** By its soname, since zstd 1.0: as Debian, Fedora and Alpine have it. */
const SONAME = 'libzstd.so.1'

/**
 * Calls at once. 4: as many as libuv's pool has threads; what is beyond them would only stand in the way of reads and writes of files.
 */
const CALLS_MAX = 4

let found: ZstdLibrary | 'missing' | undefined

/** The machine's libzstd; undefined where it has none. */
export function zstdLibrary(): ZstdLibrary | undefined {
  found ??= load() ?? 'missing'
  return found === 'missing' ? undefined : found
}

function load(): ZstdLibrary | undefined {
  let library: ReturnType<typeof koffi.load>
  try {
    library = koffi.load(SONAME)
  } catch {
    return undefined
  }
  // Errors are the last numbers of a size_t (zstd.h, ZSTD_isError): as a signed one they are those below zero.
  const decompress = library.func(
    'int64_t ZSTD_decompress(_Out_ uint8_t *into, size_t room, const uint8_t *stream, size_t bytes)',
  )
  const errorName = library.func('const char *ZSTD_getErrorName(int64_t code)')
  const call = (into: Uint8Array, stream: Uint8Array): Promise<number> =>
    new Promise((resolve, reject) => {
      decompress.async(into, into.length, stream, stream.length, (error: unknown, made: number) => {
        if (error !== null) reject(error)
        else if (made < 0) reject(new Error(errorName(made)))
        else resolve(made)
      })
    })
  let running = 0
  const waiting: (() => void)[] = []
  return {
    async decompress(into, stream) {
      if (running === CALLS_MAX) await new Promise<void>((resolve) => waiting.push(resolve))
      else running++
      try {
        return await call(into, stream)
      } finally {
        const next = waiting.shift()
        if (next === undefined) running--
        else next()
      }
    },
  }
}
