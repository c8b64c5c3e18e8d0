import { normalizePlatform, type Platform } from '../../snapshotter/oci/platform.ts'
import { EXIT_CODES } from './exit-codes.ts'
import { CommandFailure } from './failure.ts'

/** Options of the commands that read from registries. */
export const REGISTRY_OPTIONS = {
  authfile: {
    type: 'string',
    requiresArg: true,
    describe:
      'Credentials for the registry, as docker’s config.json has them; $DOCKER_CONFIG/config.json or ~/.docker/config.json unless given',
    valueName: 'FILE',
    env: 'REGISTRY_AUTH_FILE',
  },
  insecure: {
    type: 'boolean',
    default: false,
    describe: 'Speak plain HTTP with the registry',
  },
} as const

/** Reads OS/ARCH[/VARIANT]. Throws CommandFailure (usage) with what to write instead. */
export function parsePlatform(text: string): Platform {
  const [os = '', architecture = '', variant, ...more] = text.split('/')
  if (!/^[a-z0-9]+$/.test(os) || !/^[a-z0-9_]+$/.test(architecture) || more.length > 0) {
    throw new CommandFailure(
      EXIT_CODES.usage,
      `'${text}' is not a platform`,
      'Write OS/ARCH or OS/ARCH/VARIANT: linux/amd64, linux/arm/v7.',
    )
  }
  return normalizePlatform({ os, architecture, variant })
}
