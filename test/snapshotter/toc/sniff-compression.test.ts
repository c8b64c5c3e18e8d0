import { execFileSync } from 'node:child_process'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import { describe, expect, test } from 'vitest'
import { sniffCompression } from '../../../snapshotter/toc/sniff-compression.ts'

/** A real archive in one of GNU tar's formats. */
function tar(format: string): Buffer {
  return execFileSync('tar', ['-C', '/etc', `--format=${format}`, '-cf', '-', 'hostname'])
}

describe('sniffCompression', () => {
  test.each(['v7', 'oldgnu', 'gnu', 'ustar', 'posix'])('knows a tar written as %s', (format) => {
    expect(sniffCompression(tar(format))).toBe('tar')
  })

  test('knows a tar without magic by its checksum, summed of signed bytes too', () => {
    const header = tar('v7').subarray(0, 512)
    header.set([0xc3, 0xa9, 0], 0) // A name of bytes above 127, which count differently.
    header.write('        ', 148, 'latin1')
    const sum = header.reduce((total, byte) => total + (byte < 128 ? byte : byte - 256), 0)
    header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
    expect(sniffCompression(header)).toBe('tar')
    header[0]!--
    expect(sniffCompression(header)).toBe('unknown')
  })

  test('takes a tar of nothing but zeros for an empty one', () => {
    expect(sniffCompression(new Uint8Array(10_240))).toBe('tar')
  })

  test('takes a tar with a damaged checksum for a tar, so that its reader can say what is wrong', () => {
    const header = tar('ustar')
    header[0]!--
    expect(sniffCompression(header)).toBe('tar')
  })

  test('takes a tar for a tar whose first file is named like another format', () => {
    const header = tar('v7').subarray(0, 512)
    header.set([0x1f, 0x8b, 0x08, 0], 0)
    header.write('        ', 148, 'latin1')
    const sum = header.reduce((total, byte) => total + byte, 0)
    header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
    expect(sniffCompression(header)).toBe('tar')
  })

  test('knows gzip and zstd, also when zstd begins with a frame to skip', () => {
    expect(sniffCompression(gzipSync(tar('ustar')))).toBe('gzip')
    expect(sniffCompression(zstdCompressSync(tar('ustar')))).toBe('zstd')
    const skipped = Buffer.from([0x5e, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0])
    expect(sniffCompression(Buffer.concat([skipped, zstdCompressSync(tar('ustar'))]))).toBe('zstd')
  })

  test('refuses bzip2, xz and lz4 by name and says what is read', () => {
    const magics = {
      bzip2: 'BZh91AY&SY',
      xz: '\xfd7zXZ\0',
      lz4: '\x04\x22\x4d\x18',
    }
    for (const [name, magic] of Object.entries(magics)) {
      expect(() => sniffCompression(Buffer.from(magic, 'latin1'))).toThrowError(
        `layer is compressed with ${name}: it must be plain tar, tar+gzip or tar+zstd`,
      )
    }
  })

  test('knows nothing of an empty blob, a short one, and text', () => {
    for (const blob of ['', '\x1f', 'P', '{"schemaVersion":2}'.padEnd(600)]) {
      expect(sniffCompression(Buffer.from(blob, 'latin1'))).toBe('unknown')
    }
  })
})
