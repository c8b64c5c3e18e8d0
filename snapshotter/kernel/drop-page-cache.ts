import { writeFile } from 'node:fs/promises'

/**
 * Has the kernel forget every clean page that no process has mapped, of the whole machine (proc_sys_vm(5), drop_caches): what
 * is read next is read from its file system. Rejects where /proc/sys cannot be written, as in most containers.
 */
export async function dropPageCache(): Promise<void> {
  await writeFile('/proc/sys/vm/drop_caches', '1')
}
