// Original file: proto/ipdr/agent.proto

export const MountKind = {
  MOUNT_KIND_UNSPECIFIED: 'MOUNT_KIND_UNSPECIFIED',
  MOUNT_KIND_FUSE: 'MOUNT_KIND_FUSE',
  MOUNT_KIND_PLAIN: 'MOUNT_KIND_PLAIN',
  MOUNT_KIND_MERGED: 'MOUNT_KIND_MERGED',
} as const;

export type MountKind =
  | 'MOUNT_KIND_UNSPECIFIED'
  | 0
  | 'MOUNT_KIND_FUSE'
  | 1
  | 'MOUNT_KIND_PLAIN'
  | 2
  | 'MOUNT_KIND_MERGED'
  | 3

export type MountKind__Output = typeof MountKind[keyof typeof MountKind]
