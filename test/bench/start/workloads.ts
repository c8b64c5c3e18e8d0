import {
  buildDebianImage,
  type DebianStep,
  type Progress,
} from '../../support/images/debian-image.ts'
import { buildDemoImage } from '../../support/images/demo-image.ts'
import type { OciLayout } from '../../support/images/oci-layout.ts'
import { COMMAND as IMPORT_NUMPY } from '../cold-start.ts'
import type { Ready } from './timed-start.ts'

/** What is started, and when that is done. */
export type Workload = {
  /** By which `--workloads` finds it. */
  readonly name: string
  /** Makes the image from Debian's packages, or finds it made. */
  readonly build: (progress?: Progress) => Promise<OciLayout>
  readonly command: readonly string[]
  readonly ready: Ready
}

/** The image of nginx listens here, not on a port of the host's own. */
const NGINX_ADDRESS = '127.0.0.1:8080'

/** Of Debian bookworm. */
const POSTGRES = '/usr/lib/postgresql/15/bin/postgres'
const POSTGRES_SETTINGS = {
  data_directory: '/var/lib/postgresql/15/main',
  config_file: '/etc/postgresql/15/main/postgresql.conf',
  unix_socket_directories: '/tmp',
}

/** In the manner of HelloBench: a language's one-liner, a server's first answer or line. The last one is the worst for whoever is lazy. */
export const WORKLOADS: readonly Workload[] = [
  {
    name: 'python',
    build: buildDemoImage,
    command: IMPORT_NUMPY,
    ready: { kind: 'line', text: '5.0' },
  },
  {
    name: 'node',
    build: onDebian('node', { name: 'node', packages: ['nodejs'] }),
    command: ['node', '-e', 'console.log("hello")'],
    ready: { kind: 'line', text: 'hello' },
  },
  {
    name: 'nginx',
    build: onDebian('bench-nginx', {
      name: 'bench-nginx',
      packages: ['nginx'],
      script: `
        sed -i 's/access_log .*/access_log off;/; s/error_log .*/error_log stderr notice;/' /etc/nginx/nginx.conf
        echo 'server { listen ${NGINX_ADDRESS}; root /var/www/html; index index.nginx-debian.html; }' \\
          >/etc/nginx/sites-enabled/default
      `,
    }),
    command: ['nginx', '-e', 'stderr', '-g', 'daemon off;'],
    ready: {
      kind: 'http',
      url: `http://${NGINX_ADDRESS}/`,
    },
  },
  {
    name: 'postgres',
    build: onDebian('postgres', { name: 'postgres', packages: ['postgresql'] }),
    command: [
      'setpriv',
      '--reuid=postgres',
      '--regid=postgres',
      '--init-groups',
      POSTGRES,
      ...Object.entries(POSTGRES_SETTINGS).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
    ],
    ready: { kind: 'line', text: 'database system is ready to accept connections' },
  },
  {
    name: 'tomcat',
    build: onDebian('tomcat', { name: 'tomcat', packages: ['tomcat10'] }),
    command: [
      'env',
      'CATALINA_HOME=/usr/share/tomcat10',
      'CATALINA_BASE=/var/lib/tomcat10',
      'CATALINA_TMPDIR=/tmp',
      'JAVA_HOME=/usr/lib/jvm/default-java',
      '/usr/share/tomcat10/bin/catalina.sh',
      'run',
    ],
    ready: { kind: 'line', text: 'Server startup' },
  },
  {
    name: 'whole',
    build: onDebian('node', { name: 'node', packages: ['nodejs'] }),
    command: ['sh', '-c', 'find / -xdev -type f -exec cat {} + | wc -c && echo all of it is read'],
    ready: { kind: 'line', text: 'all of it is read' },
  },
]

/** The least there is, to see that all of this works. */
export const SMALLEST: Workload = {
  name: 'busybox',
  build: (progress) =>
    buildDebianImage(
      { name: 'busybox', root: { variant: 'extract', packages: ['busybox-static'] } },
      progress,
    ),
  command: ['/bin/busybox', 'echo', 'hello'],
  ready: { kind: 'line', text: 'hello' },
}

/** An image of a small Debian and one layer upon it. */
function onDebian(name: string, step: DebianStep): Workload['build'] {
  const recipe = { name, root: { variant: 'minbase' }, steps: [step] } as const
  return (progress) =>
    buildDebianImage(
      { ...recipe, process: { Env: ['PATH=/usr/sbin:/usr/bin:/sbin:/bin'] } },
      progress,
    )
}
