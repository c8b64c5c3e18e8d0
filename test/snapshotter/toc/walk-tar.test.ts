import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { TocBudget } from '../../../snapshotter/toc/entry-limits.ts'
import type { LayerToc, TocEntry } from '../../../snapshotter/toc/layer-toc.ts'
import { sameToc } from '../../../snapshotter/toc/same-toc.ts'
import { TarStreamWalk, walkTar } from '../../../snapshotter/toc/walk-tar.ts'
import type { TarPart } from '../../support/make-tar.ts'
import { base256, makeTar, paxPart, tarPart } from '../../support/make-tar.ts'
import { seeded } from '../../support/seeded.ts'

const noAbort = new AbortController().signal

function streamed(tar: Uint8Array, cut: () => number = () => 65_536): LayerToc {
  const walk = new TarStreamWalk()
  for (let at = 0; at < tar.length; ) {
    const length = Math.min(cut(), tar.length - at)
    // A copy that is spoilt afterwards: the walk must not keep what it was lent.
    const lent = Uint8Array.from(tar.subarray(at, at + length))
    walk.push(lent)
    lent.fill(0xee)
    at += length
  }
  return walk.end()
}

function randomAccess(tar: Uint8Array): Promise<LayerToc> {
  return walkTar((offset, length) => tar.subarray(offset, offset + length), tar.length, noAbort)
}

function entryOf(...parts: readonly TarPart[]): TocEntry {
  const [entry] = streamed(makeTar(...parts)).entries
  if (entry === undefined) throw new Error('the tar has no entry')
  return entry
}

function contentOf(tar: Uint8Array, entry: TocEntry): Buffer {
  const content = Buffer.alloc(entry.size)
  for (const { fileOffset, layerOffset, length } of entry.extents ?? []) {
    content.set(tar.subarray(layerOffset, layerOffset + length), fileOffset)
  }
  return content
}

/** How both drivers fail; null where one does not. */
async function refusals(tar: Uint8Array): Promise<unknown[]> {
  const drivers = [async () => streamed(tar), () => randomAccess(tar)]
  return Promise.all(
    drivers.map((walk) =>
      walk().then(
        () => null,
        (error: unknown) => error,
      ),
    ),
  )
}

function bothSay(code: string, sentence: RegExp): unknown[] {
  const refusal = expect.objectContaining({
    name: 'LayerError',
    code,
    message: expect.stringMatching(sentence),
  })
  return [refusal, refusal]
}

describe('a tar written by a real tar', () => {
  let root: string
  const dump = `
import base64, json, sys, tarfile
from decimal import Decimal
kinds = {b'0':'reg', b'\\0':'reg', b'7':'reg', b'S':'reg', b'1':'hardlink', b'2':'symlink', b'3':'char', b'4':'block', b'5':'dir', b'6':'fifo'}
out = []
with tarfile.open(sys.argv[1], encoding='latin1', errors='strict') as tar:
    for m in tar:
        name, link = (v.encode().decode('latin1') if k in m.pax_headers else v for k, v in (('path', m.name), ('linkpath', m.linkname)))
        e = dict(path=name.strip('/').removeprefix('./') if name != '.' else '', kind=kinds[m.type], mode=m.mode & 0o7777, uid=m.uid, gid=m.gid, mtime=str(m.pax_headers.get('mtime', m.mtime)))
        if m.islnk() or m.issym(): e['linkTarget'] = link.removeprefix('./') if m.islnk() else link
        if m.isdev() and not m.isfifo(): e['dev'] = [m.devmajor, m.devminor]
        if m.isreg():
            e['content'] = base64.b64encode(tar.extractfile(m).read()).decode()
        x = {k[len('SCHILY.xattr.'):]: base64.b64encode(v.encode('latin1')).decode() for k, v in m.pax_headers.items() if k.startswith('SCHILY.xattr.')}
        if x: e['xattrs'] = x
        out.append(e)
json.dump(out, sys.stdout)
`
  beforeAll(() => {
    root = mkdtempSync(join(tmpdir(), 'walk-tar-'))
    mkdirSync(join(root, 'tree'))
    // Names of 180 bytes in all fit ustar's prefix; the file of 300 bytes needs an extension header.
    execFileSync(
      'bash',
      [
        '-c',
        `set -e; cd tree; mkdir -p usr/bin ${'d'.repeat(70)}/${'e'.repeat(80)}
        echo tool > usr/bin/tool; chmod 4755 usr/bin/tool; : > empty; ln usr/bin/tool usr/bin/twin
        ln -s ../up/and/out usr/link; mkfifo pipe; mknod null c 1 3; mknod disk b 259 70000
        head -c 70000 /dev/urandom > ${'d'.repeat(70)}/${'e'.repeat(80)}/${'f'.repeat(90)}
        printf 'caf\\303\\251' > $(printf 'caf\\303\\251'); chown 1234:4321 empty; touch -d '1969-12-31 23:00:00.25' usr
        touch -d '2001-02-03 04:05:06.789012345' empty; chmod 1777 usr
        truncate -s 3M sparse; printf start | dd of=sparse conv=notrunc status=none
        printf middle | dd of=sparse bs=1M seek=1 conv=notrunc status=none
        for i in $(seq 30); do printf x | dd of=many-holes bs=64K seek=$((i*2)) conv=notrunc status=none; done`,
      ],
      { cwd: root },
    )
    execFileSync('setfattr', ['-n', 'user.note', '-v', 'kept', join(root, 'tree/usr/bin/tool')])
  })
  afterAll(() => rmSync(root, { recursive: true, force: true }))

  const formats: [title: string, flags: string[]][] = [
    [
      'v7',
      [
        '--format=v7',
        '--mtime=@981173106',
        '--exclude=disk',
        '--exclude=null',
        '--exclude=d*',
        '--exclude=pipe',
      ],
    ],
    ['ustar', ['--format=ustar', '--mtime=@981173106']],
    ['GNU', ['--format=gnu']],
    ['GNU with sparse files', ['--format=gnu', '--sparse']],
    ['PAX', ['--format=posix', '--xattrs']],
    ['PAX, sparse format 0.0', ['--format=posix', '--sparse', '--sparse-version=0.0']],
    ['PAX, sparse format 0.1', ['--format=posix', '--sparse', '--sparse-version=0.1']],
    ['PAX, sparse format 1.0', ['--format=posix', '--sparse', '--sparse-version=1.0']],
  ]
  // Oracle: Python's tarfile, which shares no code with GNU tar or with us.
  test.each(formats)('%s has the entries and contents that tarfile reads', async (title, flags) => {
    const file = join(root, 'tree.tar')
    execFileSync('tar', ['-C', join(root, 'tree'), ...flags, '-cf', file, '.'], { stdio: 'pipe' })
    const tar = readFileSync(file)
    const toc = streamed(tar)
    const expected: unknown = JSON.parse(
      execFileSync('python3', ['-c', dump, file], { maxBuffer: 1 << 28 }).toString(),
    )
    const shown = toc.entries.map((entry) => ({
      path: entry.path,
      kind: entry.kind,
      mode: entry.mode,
      uid: entry.uid,
      gid: entry.gid,
      mtime: decimalTime(entry),
      ...(entry.linkTarget === undefined ? {} : { linkTarget: entry.linkTarget }),
      ...(entry.devMajor === undefined ? {} : { dev: [entry.devMajor, entry.devMinor] }),
      ...(entry.kind === 'reg' ? { content: contentOf(tar, entry).toString('base64') } : {}),
      ...(entry.xattrs === undefined
        ? {}
        : {
            xattrs: Object.fromEntries(
              [...entry.xattrs].map(([key, value]) => [key, Buffer.from(value).toString('base64')]),
            ),
          }),
    }))
    expect(shown).toEqual(expected)
    expect(toc.layerSize).toBe(tar.length)
    const sparse = toc.entries.find(({ path }) => path === 'sparse')
    expect(sparse).toMatchObject({ size: 3 * 1024 * 1024 })
    expect((sparse?.extents?.length ?? 0) > 1).toBe(title.includes('sparse'))
    expect(sameToc(toc, await randomAccess(tar))).toBeUndefined()
  })

  test('reading by random access touches no content', async () => {
    const file = join(root, 'tree.tar')
    execFileSync('tar', ['-C', join(root, 'tree'), '--format=gnu', '-cf', file, '.'])
    const tar = readFileSync(file)
    const toc = streamed(tar)
    let read = 0
    await walkTar(
      (offset, length) => {
        for (const { extents = [] } of toc.entries) {
          for (const extent of extents) {
            const apart =
              offset + length <= extent.layerOffset || offset >= extent.layerOffset + extent.length
            expect(apart, `read of ${length} at ${offset}`).toBe(true)
          }
        }
        read += length
        return tar.subarray(offset, offset + length)
      },
      tar.length,
      noAbort,
    )
    expect(read).toBeLessThan(tar.length / 2)
  })

  test('the entries do not depend on how the stream is cut', () => {
    const file = join(root, 'tree.tar')
    const flags = ['--format=posix', '--sparse', '--xattrs']
    execFileSync('tar', ['-C', join(root, 'tree'), ...flags, '-cf', file, '.'])
    const tar = readFileSync(file)
    const whole = streamed(tar)
    const random = seeded(11)
    expect(
      sameToc(
        whole,
        streamed(tar, () => 1 + random(2000)),
      ),
    ).toBeUndefined()
    expect(
      sameToc(
        whole,
        streamed(tar, () => 1 + random(3)),
      ),
    ).toBeUndefined()
  })
})

function decimalTime({ mtimeSec, mtimeNsec }: TocEntry): string {
  if (mtimeNsec === 0) return String(mtimeSec)
  const negative = mtimeSec < 0
  const seconds = negative ? -mtimeSec - 1 : mtimeSec
  const nanoseconds = negative ? 1_000_000_000 - mtimeNsec : mtimeNsec
  const fraction = String(nanoseconds).padStart(9, '0').replace(/0+$/, '')
  return `${negative ? '-' : ''}${seconds}.${fraction}`
}

describe('fields', () => {
  test('base-256 numbers reach beyond octal and below zero', () => {
    const raw = new Map([
      [108, base256(4_000_000_000n, 8)],
      [136, base256(-5n & ((1n << 96n) - 1n), 12)],
    ])
    expect(entryOf({ name: 'a', format: 'gnu', raw })).toMatchObject({
      uid: 4_000_000_000,
      mtimeSec: -5,
    })
  })

  test('a PAX size above 8 GiB is the size of the content', () => {
    const header = makeTar(paxPart([['size', '9000000000']]), { name: 'big', size: 0 })
    const walk = new TarStreamWalk()
    const seen: TocEntry[] = []
    const collecting = new TarStreamWalk(({ entry }) => seen.push(entry))
    collecting.push(header)
    expect(seen).toMatchObject([
      { path: 'big', extents: [{ fileOffset: 0, layerOffset: 1536 + 512 - 512, length: 9e9 }] },
    ])
    walk.push(header)
    expect(() => walk.end()).toThrow(/"big" at byte 0 of the layer is cut off/)
  })

  test('times before 1970 round down, with nanoseconds that count up', () => {
    const [half, exact] = streamed(
      makeTar(paxPart([['mtime', '-1.5']]), { name: 'half' }, paxPart([['mtime', '-2']]), {
        name: 'exact',
      }),
    ).entries
    expect(half).toMatchObject({ mtimeSec: -2, mtimeNsec: 500_000_000 })
    expect(exact).toMatchObject({ mtimeSec: -2, mtimeNsec: 0 })
    expect(Object.is(exact?.mtimeSec, -2)).toBe(true)
  })

  test('a global PAX header holds until a local one says otherwise', () => {
    const { entries } = streamed(
      makeTar(
        paxPart(
          [
            ['uid', '7'],
            ['gid', '8'],
          ],
          'g',
        ),
        { name: 'a' },
        paxPart([['uid', '9']]),
        { name: 'b' },
        paxPart([['uid', '']]),
        { name: 'c', uid: 3 },
      ),
    )
    expect(entries.map(({ uid, gid }) => [uid, gid])).toEqual([
      [7, 8],
      [9, 8],
      [3, 8],
    ])
  })

  test('a v7 name that ends in a slash is a directory', () => {
    expect(entryOf({ name: 'old/', typeflag: '\0', format: 'v7' })).toMatchObject({
      path: 'old',
      kind: 'dir',
    })
  })

  test('names are bytes, whatever their encoding', () => {
    expect(entryOf({ name: '\xff\xfe' }).path).toBe('\xff\xfe')
    expect(entryOf(paxPart([['path', 'caf\xc3\xa9']]), { name: 'x' }).path).toBe('caf\xc3\xa9')
  })

  test('absolute names start at the root of the image, and `..` inside it is followed', () => {
    const { entries } = streamed(
      makeTar(
        { name: '/etc//passwd' },
        { name: './a/../b/./c' },
        { name: './', typeflag: '5' },
        { name: 'twin', typeflag: '1', linkName: '/etc/x/../passwd' },
        { name: 'up', typeflag: '2', linkName: '../../etc/shadow' },
      ),
    )
    expect(entries.map(({ path, linkTarget }) => [path, linkTarget])).toEqual([
      ['etc/passwd', undefined],
      ['b/c', undefined],
      ['', undefined],
      ['twin', 'etc/passwd'],
      ['up', '../../etc/shadow'],
    ])
  })

  test('libarchive attributes count, and SCHILY ones before them', () => {
    const { xattrs } = entryOf(
      paxPart([
        ['LIBARCHIVE.xattr.user.a%3Db', Buffer.from('one').toString('base64')],
        ['LIBARCHIVE.xattr.user.c', Buffer.from('lost').toString('base64')],
        ['SCHILY.xattr.user.c', 'two\0\xff\n'],
      ]),
      { name: 'x' },
    )
    expect(
      [...(xattrs ?? [])].map(([key, value]) => [key, Buffer.from(value).toString('latin1')]),
    ).toEqual([
      ['user.a=b', 'one'],
      ['user.c', 'two\0\xff\n'],
    ])
  })

  test('an empty record takes a field back, and makes an attribute empty', () => {
    const { entries } = streamed(
      makeTar(
        paxPart([
          ['path', ''],
          ['SCHILY.xattr.user.empty', ''],
        ]),
        { name: 'of-the-header' },
      ),
    )
    expect(entries.map(({ path, xattrs }) => [path, [...(xattrs ?? [])]])).toEqual([
      ['of-the-header', [['user.empty', Buffer.alloc(0)]]],
    ])
  })

  test('a directory, link or device that declares a size has no content after it', () => {
    const { entries } = streamed(makeTar({ name: 'd', typeflag: '5', size: 512 }, { name: 'f' }))
    expect(entries.map(({ path, size }) => [path, size])).toEqual([
      ['d', 0],
      ['f', 0],
    ])
  })
})

describe('the end of the archive', () => {
  const file = { name: 'file', content: 'x'.repeat(700) }

  test('zero blocks end it, and what follows does not matter', async () => {
    const tar = Buffer.concat([makeTar(file), Buffer.alloc(9000), Buffer.from('garbage')])
    expect(streamed(tar)).toMatchObject({ layerSize: tar.length, entries: [{ path: 'file' }] })
    expect(sameToc(streamed(tar), await randomAccess(tar))).toBeUndefined()
  })

  test('a tar may end after a whole entry, even before its padding', () => {
    expect(streamed(tarPart(file)).entries).toHaveLength(1)
    expect(streamed(tarPart(file).subarray(0, 512 + 700)).entries).toHaveLength(1)
    expect(streamed(Buffer.alloc(0)).entries).toEqual([])
  })

  test.each([
    ['inside a header', 300],
    ['inside a content', 512 + 699],
  ])('a tar that ends %s is truncated', async (_, bytes) => {
    expect(await refusals(tarPart(file).subarray(0, bytes))).toEqual(
      bothSay('DATA_LOSS', /cut off: the tar ends at/),
    )
  })

  test('a tar that ends between an extension header and its entry is truncated', async () => {
    const pax = tarPart(paxPart([['path', 'name']]))
    expect(await refusals(pax)).toEqual(bothSay('DATA_LOSS', /cut off/))
    expect(await refusals(pax.subarray(0, 515))).toEqual(bothSay('DATA_LOSS', /cut off/))
    expect(await refusals(Buffer.concat([pax, Buffer.alloc(1024)]))).toEqual(
      bothSay('DATA_LOSS', /cut off/),
    )
  })

  test('a single zero block inside is refused', async () => {
    const tar = Buffer.concat([Buffer.alloc(512), tarPart(file)])
    expect(await refusals(tar)).toEqual(bothSay('INVALID_ARGUMENT', /single zero block/))
  })
})

describe('a hostile tar is refused, naming the entry and its byte', () => {
  const long = (bytes: number): TarPart => ({
    name: 'L',
    typeflag: 'L',
    content: 'n'.repeat(bytes),
  })
  const hostile: [title: string, parts: TarPart[], code: string, sentence: RegExp][] = [
    [
      'a name that climbs out',
      [{ name: 'a/../../etc/passwd' }],
      'INVALID_ARGUMENT',
      /"a\/..\/..\/etc\/passwd" at byte 0 .*climbs out/,
    ],
    ['an absolute name that climbs out', [{ name: '/../x' }], 'INVALID_ARGUMENT', /climbs out/],
    [
      'a hard link that climbs out',
      [{ name: 'x', typeflag: '1', linkName: '../../x' }],
      'INVALID_ARGUMENT',
      /"x" at byte 0 .*hard link target that climbs out/,
    ],
    [
      'a hard link to the root',
      [{ name: 'x', typeflag: '1', linkName: '/' }],
      'INVALID_ARGUMENT',
      /hard link to the root/,
    ],
    ['a file in place of the root', [{ name: './' }], 'INVALID_ARGUMENT', /replaces the root/],
    [
      'a name of 5,000 bytes',
      [long(5000), { name: 'n' }],
      'INVALID_ARGUMENT',
      /name is 5000 bytes long, the limit is 4096/,
    ],
    [
      'a part of 256 bytes',
      [long(256), { name: 'n' }],
      'INVALID_ARGUMENT',
      /256 bytes long, the limit is 255/,
    ],
    [
      'a NUL in a name',
      [paxPart([['path', 'a\0b']]), { name: 'n' }],
      'INVALID_ARGUMENT',
      /has a NUL in its name/,
    ],
    [
      'a negative size',
      [{ name: 'n', format: 'gnu', raw: new Map([[124, base256(-1n & ((1n << 96n) - 1n), 12)]]) }],
      'INVALID_ARGUMENT',
      /"n" at byte 0 .*has the size -1/,
    ],
    [
      'a negative PAX size',
      [paxPart([['size', '-3']]), { name: 'n' }],
      'INVALID_ARGUMENT',
      /has the size -3/,
    ],
    [
      'a size beyond the layer',
      [{ name: 'n', size: 0o77777777777 }],
      'DATA_LOSS',
      /"n" at byte 0 .*cut off/,
    ],
    [
      'a size beyond 2^53',
      [{ name: 'n', format: 'gnu', raw: new Map([[124, base256(1n << 80n, 12)]]) }],
      'INVALID_ARGUMENT',
      /size that is not a number/,
    ],
    [
      'a size that overflows',
      [paxPart([['size', '9007199254740991']]), { name: 'n' }],
      'INVALID_ARGUMENT',
      /absurd size/,
    ],
    [
      'a size that is no number',
      [{ name: 'n', raw: new Map([[124, Buffer.from('12x45678901\0')]]) }],
      'INVALID_ARGUMENT',
      /size that is not a number/,
    ],
    [
      'a wrong checksum',
      [{ name: 'ok' }, { name: 'n', checksum: 1 }],
      'INVALID_ARGUMENT',
      /byte 512 .*checksum is wrong/,
    ],
    [
      'a PAX header of 2 MiB',
      [{ name: 'P', typeflag: 'x', size: 2 << 20 }],
      'RESOURCE_EXHAUSTED',
      /extension header of 2097152 bytes/,
    ],
    [
      'a PAX record that lies about its length',
      [{ name: 'P', typeflag: 'x', content: '99 path=x\n' }, { name: 'n' }],
      'INVALID_ARGUMENT',
      /malformed PAX record at its byte 0/,
    ],
    [
      'a PAX record without a newline',
      [{ name: 'P', typeflag: 'x', content: '10 path=xy' }, { name: 'n' }],
      'INVALID_ARGUMENT',
      /malformed PAX record/,
    ],
    [
      'a malformed PAX time',
      [paxPart([['mtime', 'now']]), { name: 'n' }],
      'INVALID_ARGUMENT',
      /malformed PAX record mtime/,
    ],
    [
      'a time at the end of the world',
      [paxPart([['mtime', '9007199254740000']]), { name: 'n' }],
      'INVALID_ARGUMENT',
      /absurd modification time/,
    ],
    [
      'a user ID beyond 32 bits',
      [paxPart([['uid', '4294967296']]), { name: 'n' }],
      'INVALID_ARGUMENT',
      /user ID 4294967296/,
    ],
    ['an unknown type', [{ name: 'n', typeflag: 'M' }], 'UNIMPLEMENTED', /tar type 77/],
    [
      'a device that Linux does not have',
      [{ name: 'n', typeflag: '3', devMajor: 5000 }],
      'INVALID_ARGUMENT',
      /device number 5000:0/,
    ],
    [
      'a symlink to nothing',
      [{ name: 'n', typeflag: '2' }],
      'INVALID_ARGUMENT',
      /symlink whose target is empty/,
    ],
    [
      'an attribute value of 65,537 bytes',
      [paxPart([['SCHILY.xattr.user.x', 'v'.repeat(65_537)]]), { name: 'n' }],
      'INVALID_ARGUMENT',
      /user.x" is 65537 bytes long/,
    ],
  ]
  test.each(hostile)('%s', async (_, parts, code, sentence) => {
    expect(await refusals(makeTar(...parts))).toEqual(bothSay(code, sentence))
  })

  const sparse = (map: string, stored: number, size = '10000'): TarPart[] => [
    paxPart([
      ['GNU.sparse.major', '0'],
      ['GNU.sparse.minor', '1'],
      ['GNU.sparse.size', size],
      ['GNU.sparse.map', map],
    ]),
    { name: 's', content: 'd'.repeat(stored) },
  ]
  test.each([
    ['overlap', sparse('0,1024,512,512', 1536), /sparse region \[512, 1024\) that overlaps/],
    ['leave the file', sparse('9728,1024', 1024), /leaves its 10000 bytes/],
    ['do not fill what is stored', sparse('0,512', 1024), /regions of 512 bytes and stores 1024/],
    ['are not numbers', sparse('0,x', 512), /malformed sparse map/],
    ['are an odd count', sparse('0,512,1024', 512), /malformed sparse map/],
    ['have no real size', sparse('0,512', 512, ''), /usable real size/],
  ])('sparse regions that %s', async (_, parts, sentence) => {
    expect(await refusals(makeTar(...parts))).toEqual(bothSay('INVALID_ARGUMENT', sentence))
  })

  test('sparse regions off the grid that the kernel can map', async () => {
    expect(await refusals(makeTar(...sparse('100,512', 512)))).toEqual(
      bothSay('UNIMPLEMENTED', /not on a multiple of 512/),
    )
  })

  test('a sparse 1.0 map that never ends, or announces 10 million regions', async () => {
    const parts = (map: string): TarPart[] => [
      paxPart([
        ['GNU.sparse.major', '1'],
        ['GNU.sparse.minor', '0'],
        ['GNU.sparse.realsize', '9'],
      ]),
      { name: 's', content: map },
    ]
    expect(await refusals(makeTar(...parts('1'.repeat(4096))))).toEqual(
      bothSay('INVALID_ARGUMENT', /malformed sparse map/),
    )
    const announced = makeTar(...parts('10000000\n'.padEnd(512, '0\n')))
    expect(await refusals(announced)).toEqual(
      bothSay('RESOURCE_EXHAUSTED', /map of 10000000 regions/),
    )
  })
})

test('4,000,000 entries and 256 MiB of names are the most that is kept', () => {
  const budget = new TocBudget()
  const entry = entryOf({ name: 'e' })
  for (let count = 0; count < 4_000_000; count++) budget.spend(entry, 0)
  expect(() => budget.spend(entry, 0)).toThrow(
    /"e" at byte 0 .* one more than the limit of 4000000/,
  )
  const names = new TocBudget()
  const long = { ...entry, path: 'n'.repeat(4096) }
  expect(() => {
    for (let count = 0; count <= 65_536; count++) names.spend(long, 0)
  }).toThrow(/brings names and attributes to 268439552 bytes, the limit is 268435456/)
})

test('a walk stops at its budget, however long the tar goes on', () => {
  const walk = new TarStreamWalk(() => {}, new TocBudget({ entries: 1000, bytes: 1 << 20 }))
  const many = Buffer.concat(Array.from({ length: 1001 }, () => tarPart({ name: 'e' })))
  expect(() => walk.push(many)).toThrow(/"e" at byte 512000 .* one more than the limit of 1000/)
})

test('an aborted signal stops a read by random access', async () => {
  const tar = makeTar({ name: 'a' }, { name: 'b' })
  const stop = new AbortController()
  const reading = walkTar(
    (offset, length) => {
      stop.abort()
      return tar.subarray(offset, offset + length)
    },
    tar.length,
    stop.signal,
  )
  await expect(reading).rejects.toMatchObject({ code: 'CANCELLED' })
})
