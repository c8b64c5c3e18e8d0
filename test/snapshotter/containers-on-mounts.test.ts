import { expect, test } from 'vitest'
import { containersOn } from '../../snapshotter/containers-on-mounts.ts'

const root = (id: string, namespace = 'k8s.io'): string =>
  `/run/containerd/io.containerd.runtime.v2.task/${namespace}/${id}/rootfs`

const MOUNTINFO = `36 27 0:68 / ${root('aa')} rw,relatime - overlay overlay rw,lowerdir=/data/m/2:/data/m/1,upperdir=/data/snapshots/5/fs
37 27 0:69 / ${root('bb', 'moby')} rw shared:1 - overlay overlay rw,lowerdir+=/data/m/3,lowerdir+=/data/m/1,upperdir=/u
38 27 0:70 / ${root('cc')} rw - overlay overlay rw,lowerdir=/data/snapshots/1/fs,upperdir=/data/m/1
39 27 7:0 / /data/m/1 ro - erofs /dev/loop0 ro
40 27 0:71 / /srv/elsewhere rw - overlay overlay rw,lowerdir=/data/m/1
41 27 0:72 / ${root('dd')} rw - overlay overlay rw,lowerdir=/with\\040space/m/1,upperdir=/u
`

test('containers are found by what lies below their root file systems, in either way of the kernel to tell it', () => {
  const on = (dir: string) => containersOn((lowerDir) => lowerDir === dir, MOUNTINFO)
  expect(on('/data/m/1')).toEqual([
    { namespace: 'k8s.io', id: 'aa' },
    { namespace: 'moby', id: 'bb' },
  ])
  expect(on('/data/m/2')).toEqual([{ namespace: 'k8s.io', id: 'aa' }])
  expect(on('/with space/m/1')).toEqual([{ namespace: 'k8s.io', id: 'dd' }])
  expect(on('/data/m/9')).toEqual([])
})
