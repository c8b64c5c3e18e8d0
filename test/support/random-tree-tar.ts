import type { TarPart } from './make-tar.ts'
import { makeTar, paxPart } from './make-tar.ts'

/** A tar of a random tree: directories, links, devices, empty, small and long files, some with extended attributes. */
export function randomTreeTar(random: (max: number) => number, files: number): Buffer {
  const parts: TarPart[] = [{ name: './', typeflag: '5', mode: 0o755 }]
  for (let index = 0; index < files; index++) {
    const name = `d${random(9)}/file-${index}`
    const mtime = random(2 ** 31)
    const kind = random(12)
    if (kind === 0) parts.push({ name: `d${index}/`, typeflag: '5', mode: 0o1777, mtime })
    else if (kind === 1) parts.push({ name, typeflag: '2', linkName: '../elsewhere' })
    else if (kind === 2)
      parts.push({ name, typeflag: '3', devMajor: random(4096), devMinor: index })
    else {
      const long = random(40) === 0
      const content = randomContent(random, long ? 200_000 + random(3_000_000) : random(20_000))
      if (kind === 3) {
        parts.push(
          paxPart([
            ['SCHILY.xattr.user.random', `value ${index}`],
            ['mtime', `${mtime}.5`],
          ]),
        )
      }
      parts.push({ name, content, mode: 0o600 + random(0o200), uid: random(70_000), mtime })
      if (kind === 4) parts.push({ name: `${name}-twin`, typeflag: '1', linkName: name })
    }
  }
  return makeTar(...parts)
}

/** Bytes that compress to about half: runs and noise. */
export function randomContent(random: (max: number) => number, bytes: number): Buffer {
  const content = Buffer.alloc(bytes)
  for (let at = 0; at < bytes; ) {
    const end = Math.min(bytes, at + 1 + random(400))
    const isRun = random(2) === 0
    content.fill(random(256), at, end)
    for (; at < end; at++) if (!isRun) content[at] = random(256)
  }
  return content
}
