import { buildDebianImage, type DebianRecipe, type Progress } from './debian-image.ts'
import { PYTHON } from './demo-image.ts'
import type { OciLayout } from './oci-layout.ts'

const MINBASE = { variant: 'minbase' } as const

/**
 * Images as Debian's packages make them. Some are one layer of bare packages, some lie on a whole Debian, with set-uid
 * programs, devices, hard links and alternatives; one deletes from the layers below it.
 */
export const DEBIAN_IMAGES: readonly DebianRecipe[] = [
  { name: 'busybox', root: { variant: 'extract', packages: ['busybox-static'] } },
  { name: 'sqlite', root: { variant: 'extract', packages: ['sqlite3'] } },
  { name: 'redis', root: { variant: 'extract', packages: ['redis-server'] } },
  { name: 'python', root: MINBASE, steps: [PYTHON] },
  {
    name: 'ping',
    root: MINBASE,
    // With libcap2-bin there, the package gives ping a file capability.
    steps: [{ name: 'ping', packages: ['libcap2-bin', 'iputils-ping', 'openssh-client'] }],
  },
  {
    name: 'nginx',
    root: MINBASE,
    steps: [
      { name: 'nginx', packages: ['nginx-light'] },
      {
        name: 'trim',
        script: `
          rm -rf /usr/share/locale /usr/share/man /etc/nginx/sites-enabled/default
          # Deleted and made again: overlayfs calls such a folder opaque.
          rm -r /usr/share/doc
          mkdir /usr/share/doc
          echo 'removed to save space' >/usr/share/doc/README
          chmod 600 /etc/nginx/nginx.conf
        `,
      },
    ],
  },
]

/** Builds all of DEBIAN_IMAGES that are not there yet: a minute. */
export async function buildDebianImages(
  progress?: Progress,
): Promise<ReadonlyMap<string, OciLayout>> {
  const images = new Map<string, OciLayout>()
  for (const recipe of DEBIAN_IMAGES) {
    images.set(recipe.name, await buildDebianImage(recipe, progress))
  }
  return images
}
