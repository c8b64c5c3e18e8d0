// The numbers of the EROFS on-disk format that we write: fs/erofs/erofs_fs.h of Linux. All fields are little-endian.

/** Bytes of one block, the smallest EROFS knows: that of a tar record, so that file content can stay where tar put it. */
export const BLOCK_BYTES = 512
export const BLOCK_BITS = 9

/** Blocks are counted in 32 bits, 0xffffffff means none; larger devices need the 48-bit format of Linux 7.1. */
export const NO_BLOCK = 0xffff_ffff

/** Inodes are named by their position in units of 32 bytes: the "nid". */
export const NID_BYTES = 32

/** An extended inode: the form that holds 32-bit owners, 64-bit sizes and times in nanoseconds. */
export const INODE_BYTES = 64

/** How an inode's content is found: i_format, bits 1 to 3. */
export const LAYOUT_FLAT_PLAIN = 0
export const LAYOUT_FLAT_INLINE = 2
export const LAYOUT_CHUNK_BASED = 4

/** In the format of a chunk-based inode: entries are 8-byte indexes. The low five bits are log2(chunk / block). */
export const CHUNK_FORMAT_INDEXES = 0x20
export const CHUNK_BITS_MAX = 31
export const CHUNK_INDEX_BYTES = 8

/** The superblock: where it stands, its length, and what of it we write or check. */
export const SUPERBLOCK_OFFSET = 1024
export const SUPERBLOCK_BYTES = 128
export const SUPERBLOCK_MAGIC = 0xe0f5e1e2
export const COMPAT_MTIME = 0x2
export const INCOMPAT_CHUNKED_FILE = 0x4
export const INCOMPAT_DEVICE_TABLE = 0x8

/** Where the superblock keeps the number of extra devices. */
export const SUPERBLOCK_DEVICES_AT = 0x56

/** One extra device in the device table, which is counted in slots of this size from the start of the image. */
export const DEVICE_SLOT_BYTES = 128
export const DEVICE_TAG_BYTES = 64
