"""Writes what a folder holds as one JSON object a line, for compare-trees.ts.

Names and values are bytes: JSON holds them as text in latin-1, one character a byte.
"""
import hashlib, json, os, stat, sys


def text(value: bytes) -> str:
    return value.decode('latin-1')


def sha256(path: bytes) -> str:
    with open(path, 'rb', buffering=0) as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def describe(path: bytes, contents: bool) -> dict:
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    entry = {
        'type': {
            stat.S_IFREG: 'file', stat.S_IFDIR: 'folder', stat.S_IFLNK: 'link', stat.S_IFIFO: 'fifo',
            stat.S_IFCHR: 'character device', stat.S_IFBLK: 'block device', stat.S_IFSOCK: 'socket',
        }[kind],
        'mode': oct(stat.S_IMODE(status.st_mode)),
        'uid': status.st_uid,
        'gid': status.st_gid,
        'mtimeNs': str(status.st_mtime_ns),
        'xattrs': {name: text(os.getxattr(path, name, follow_symlinks=False))
                   for name in sorted(os.listxattr(path, follow_symlinks=False))},
    }
    # A folder's size is each file system's own affair.
    if kind in (stat.S_IFREG, stat.S_IFLNK):
        entry['size'] = status.st_size
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        entry['device'] = f'{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}'
    if kind == stat.S_IFLNK:
        entry['target'] = text(os.readlink(path))
    if kind == stat.S_IFREG and contents:
        entry['sha256'] = sha256(path)
    # Not the number of links itself: overlayfs still counts names that an upper layer has deleted.
    return entry | {'inode': f'{status.st_dev}:{status.st_ino}' if status.st_nlink > 1 else None}


def walk(path: bytes, name: bytes, contents: bool) -> None:
    entry = {'path': text(name)} | describe(path, contents)
    print(json.dumps(entry))
    if entry['type'] == 'folder':
        for child in sorted(os.listdir(path)):
            walk(os.path.join(path, child), os.path.join(name, child), contents)


walk(os.fsencode(sys.argv[1]), b'', sys.argv[2] == 'contents')
