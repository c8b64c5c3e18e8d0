import koffi, { type KoffiFunc } from 'koffi'

type List = KoffiFunc<(path: Uint8Array, list: Uint8Array, size: number) => number>
type Get = KoffiFunc<
  (path: Uint8Array, name: Uint8Array, value: Uint8Array, size: number) => number
>

const library = koffi.load(null)
const llistxattr = library.func(
  'int64_t llistxattr(const uint8_t *path, _Out_ uint8_t *list, size_t size)',
) as List
const lgetxattr = library.func(
  'int64_t lgetxattr(const uint8_t *path, const uint8_t *name, _Out_ uint8_t *value, size_t size)',
) as Get

/** Room for the longest list and the longest value that Linux has: XATTR_LIST_MAX and XATTR_SIZE_MAX. */
const buffer = Buffer.alloc(65_536)

/** The extended attributes of `path` itself, values in hexadecimal, sorted by name (latin1). */
export function listXattrs(path: Uint8Array): Record<string, string> {
  const ended = Buffer.concat([path, Buffer.of(0)])
  const listed = llistxattr(ended, buffer, buffer.length)
  if (listed < 0) throw new Error(`llistxattr failed with errno ${koffi.errno()}`)
  const names = buffer.toString('latin1', 0, listed).split('\0').slice(0, -1).toSorted()
  return Object.fromEntries(
    names.map((name) => {
      const length = lgetxattr(ended, Buffer.from(`${name}\0`, 'latin1'), buffer, buffer.length)
      if (length < 0) throw new Error(`lgetxattr of ${name} failed with errno ${koffi.errno()}`)
      return [name, buffer.toString('hex', 0, length)]
    }),
  )
}
