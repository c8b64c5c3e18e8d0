import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { AgentProcess } from '../agent.ts'
import { busyboxPath } from '../debian-programs.ts'
import { goProgram } from '../go-programs.ts'
import { Publisher } from '../lazy-node.ts'
import { makeTar, type TarPart } from '../make-tar.ts'
import type { OciRegistry } from '../oci-registry.ts'
import { runCommand } from '../run-command.ts'
import type { Scratch } from '../scratch.ts'
import { type ImageProcess, packLayer, writeOciLayout } from './oci-layout.ts'

/** The registries whose images cri-tools 1.34 names. */
export const CRITEST_HOSTS: readonly string[] = ['registry.k8s.io', 'gcr.io']

/** Where web servers of cri-tools listen, and what their own image is called. */
const WEB_SERVERS = { httpd: 80, nginx: 80, 'hostnet-nginx': 12_003 } as const

/** Acts as they do as far as specs look: it goes by their name, a file tells its process number, and it serves one page. */
const SERVE = `#!/bin/sh
trap exit TERM
echo $$ >/var/run/nginx.pid
echo "$0"
busybox httpd -f -p "$1" -h /www &
wait
`

/** What Debian's busybox lacks of the original's, as far as specs look. */
const MISSING = {
  pgrep: '#!/bin/sh\npidof "$1"\n',
  ipcs: '#!/bin/sh\ncat /proc/sysvipc/shm\n',
}

const ci = 'k8s-staging-cri-tools'
const e2e = 'e2e-test-images'
const architecture = process.arch === 'x64' ? 'amd64' : process.arch

/** By path in the registry, what each runs as; see consts.go of cri-tools. All are busybox, and differ by what they run as. */
const IMAGES: Readonly<Record<string, ImageProcess>> = {
  [`${e2e}/busybox:1.29-2`]: { Cmd: ['sh'] },
  [`${e2e}/httpd:2.4.39-4`]: serving('httpd'),
  [`${e2e}/nginx:1.14-2`]: serving('nginx'),
  [`${e2e}/nonewprivs:1.3`]: { Entrypoint: ['/nonewprivs'] },
  [`${ci}/hostnet-nginx-${architecture}:latest`]: serving('hostnet-nginx'),
  [`${ci}/test-image-latest:latest`]: { Env: ['TEST=latest'] },
  [`${ci}/test-image-tag:test`]: { Env: ['TEST=tag'] },
  [`${ci}/test-image-tag:all`]: { Env: ['TEST=all'] },
  ...Object.fromEntries(
    [1, 2, 3].flatMap((at) => [
      [`${ci}/test-image-${at}:latest`, { Env: [`TEST=${at}`] }],
      [`${ci}/test-image-tags:${at}`, { Env: ['TEST=tags'] }],
    ]),
  ),
  [`${ci}/test-image-user-uid:latest`]: { User: '1002' },
  [`${ci}/test-image-user-username:latest`]: { User: 'www-data' },
  [`${ci}/test-image-user-uid-group:latest`]: { User: '1003:1004' },
  [`${ci}/test-image-user-username-group:latest`]: { User: 'www-data:1004' },
  [`${ci}/test-image-predefined-group:latest`]: { User: '1000' },
}

function serving(name: keyof typeof WEB_SERVERS): ImageProcess {
  return { Entrypoint: [`/servers/${name}`, String(WEB_SERVERS[name]), 'master process'] }
}

/**
 * Puts stand-ins of the images that cri-tools asks for into a registry, as `ipdr push` writes them: overlayfs unpacks them, we mount
 * them at once.
 */
export async function pushCritestImages(parent: Scratch, registry: OciRegistry): Promise<void> {
  await using scratch = parent.inner('images')
  await using publisher = await Publisher.start(scratch)
  await using agent = await AgentProcess.start(scratch, { gateways: [publisher.gatewayUrl] })
  const layer = await packLayer(
    Readable.from([makeTar(...(await busyboxFiles()))]),
    'gzip',
    join(scratch.dir, 'layers'),
  )
  for (const [at, [path, process]] of Object.entries(IMAGES).entries()) {
    const layout = writeOciLayout(join(scratch.dir, `layout-${at}`), { layers: [layer], process })
    const ours = `${new URL(agent.registryUrl).host}/${await publisher.push(layout)}`
    const plainHttp = ['--src-tls-verify=false', '--dest-tls-verify=false']
    const copy = ['copy', '--insecure-policy', '--preserve-digests', '--quiet', ...plainHttp]
    await runCommand('skopeo', [...copy, `docker://${ours}`, `docker://${registry.host}/${path}`])
  }
}

/** busybox by all of its names, and the users whom specs know. */
async function busyboxFiles(): Promise<TarPart[]> {
  const names = (await runCommand(busyboxPath, ['--list'])).trim().split('\n')
  const passwd = [
    'root:x:0:0:root:/root:/bin/sh',
    'www-data:x:33:33::/:',
    'nobody:x:65534:65534::/:',
    'default-user:x:1000:1000::/:',
  ]
  const group = ['root:x:0:', 'default-user:x:1000:', 'group-defined-in-image:x:50000:default-user']
  const folder = (name: string, mode = 0o755): TarPart => ({ name, typeflag: '5', mode })
  return [
    folder('bin/'),
    { name: 'bin/busybox', mode: 0o755, content: readFileSync(busyboxPath) },
    ...names
      .filter((name) => name !== 'busybox' && !Object.hasOwn(MISSING, name))
      .map((name) => ({
        name: `bin/${name}`,
        mode: 0o755,
        typeflag: '1',
        linkName: 'bin/busybox',
      })),
    ...Object.entries(MISSING).map(([name, content]) => ({
      name: `bin/${name}`,
      mode: 0o755,
      content,
    })),
    folder('etc/'),
    { name: 'etc/passwd', mode: 0o644, content: `${passwd.join('\n')}\n` },
    { name: 'etc/group', mode: 0o644, content: `${group.join('\n')}\n` },
    ...['home/', 'mnt/', 'root/', 'servers/', 'var/', 'var/run/', 'www/'].map((name) =>
      folder(name),
    ),
    folder('tmp/', 0o1777),
    { name: 'www/index.html', mode: 0o644, content: 'served\n' },
    ...Object.keys(WEB_SERVERS).map((name) => ({
      name: `servers/${name}`,
      mode: 0o755,
      content: SERVE,
    })),
    { name: 'nonewprivs', mode: 0o4755, content: readFileSync(await goProgram('nonewprivs')) },
  ]
}
