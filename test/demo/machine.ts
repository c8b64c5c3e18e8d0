import { existsSync } from 'node:fs'
import { release } from 'node:os'
import { delimiter, join } from 'node:path'
import { EXIT_CODES } from '../../agent/cli/exit-codes.ts'
import { CommandFailure } from '../../agent/cli/failure.ts'
import { probeKernel } from '../../snapshotter/erofs/probe-kernel.ts'
import { debianPath } from '../support/debian-programs.ts'

/** What the demo calls, and who brings it. */
const PROGRAMS = [
  { name: 'apt-get', hint: 'The image is made from Debian’s packages: use Debian or Ubuntu.' },
  { name: 'mmdebstrap', hint: 'make install' },
  { name: 'containerd', hint: 'make install' },
  { name: 'runc', hint: 'make install' },
] as const

/** Throws CommandFailure unless we are root on a Linux with apt and what `make install` brings. */
export function checkMachine(): void {
  if (process.platform !== 'linux') {
    throw refusal(`containers want Linux, and this is ${process.platform}`, 'Use a Linux machine.')
  }
  if (process.getuid?.() !== 0) {
    throw new CommandFailure(
      EXIT_CODES.noPermission,
      'only root may mount file systems and run containers, and you are not root',
      'sudo make demo',
    )
  }
  for (const { name, hint } of PROGRAMS) {
    if (!debianPath.split(delimiter).some((folder) => existsSync(join(folder, name)))) {
      throw refusal(`${name} is missing`, hint)
    }
  }
}

/** Rejects with CommandFailure unless this kernel can mount layers lazily whose files lie in `folder`. */
export async function checkKernel(folder: string): Promise<void> {
  const { rung, reason } = await probeKernel(folder)
  if (rung === 'erofs-file') return
  throw refusal(
    `this kernel, Linux ${release()}, cannot mount layers lazily: ${reason}`,
    'Use Linux 6.12 or newer with EROFS and /dev/fuse, and ext4, xfs or btrfs at /tmp.',
  )
}

function refusal(sentence: string, hint: string): CommandFailure {
  return new CommandFailure(EXIT_CODES.failure, sentence, hint)
}
