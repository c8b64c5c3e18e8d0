# The tree of the golden layers: every odd entry, in a tar of GNU/PAX headers as Python writes them.
import tarfile, io, random, hashlib
r = random.Random(5)
t = tarfile.open('layer.tar', 'w', format=tarfile.PAX_FORMAT)
def add(name, type=tarfile.REGTYPE, content=b'', **kw):
    i = tarfile.TarInfo(name); i.type = type; i.size = len(content); i.mtime = 1700000000
    pax = kw.pop('pax', None)
    for k, v in kw.items(): setattr(i, k, v)
    if pax: i.pax_headers = pax
    t.addfile(i, io.BytesIO(content))
D = tarfile.DIRTYPE
add('./', D, mode=0o755)
add('bin/', D, mode=0o755)
text = b''.join(b'line %d of a file that compresses\n' % n for n in range(9000))
add('bin/tool', content=text[:200000], mode=0o4755, uid=0, gid=0)
add('bin/tool-hard', tarfile.LNKTYPE, linkname='bin/tool', mode=0o4755)
add('bin/link', tarfile.SYMTYPE, linkname='../bin/tool', mode=0o777)
add('bin/capable', content=b'cap', mode=0o755, pax={'SCHILY.xattr.user.note': 'kept', 'SCHILY.xattr.user.empty': ''})
add('empty')
add('holes', content=b'start' + bytes(100000) + b'middle' + bytes(70000) + text[:30000] + bytes(4096))
add('d/', D, mode=0o755)
add('d/' + 'long-' * 30 + '/', D, mode=0o750)
add('d/' + 'long-' * 30 + '/' + 'name-' * 20, content=b'deep', mtime=1700000000.25)
add('caf\u00e9', content='latin or not: \u00e9'.encode())
add('dev/', D, mode=0o755)
add('dev/null', tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
add('dev/loop', tarfile.BLKTYPE, devmajor=7, devminor=300, mode=0o660, uid=70000, gid=2000000)
add('dev/pipe', tarfile.FIFOTYPE, mode=0o640)
add('many/', D, mode=0o755)
for n in range(60): add('many/%03d' % n, content=(b'%d ' % n) * r.randrange(1, 200), uid=n)
t.close()
