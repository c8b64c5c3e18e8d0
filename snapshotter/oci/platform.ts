import { arch, platform } from 'node:os'

/** What an image was built for, in Go's words (OCI image-spec, image-index.md). */
export type Platform = {
  readonly os: string
  readonly architecture: string
  readonly variant?: string | undefined
}

/**
 * Spelled as containerd spells it (`platforms.Normalize`): x86_64 and x64 are amd64, aarch64 is arm64, armhf is arm v7,
 * armel is arm v6; arm without variant is v7, arm64 v8 and amd64 v1 lose theirs.
 */
export function normalizePlatform(written: Platform): Platform {
  const os = written.os.toLowerCase() === 'macos' ? 'darwin' : written.os.toLowerCase()
  const [architecture, variant] = normalizeArchitecture(
    written.architecture.toLowerCase(),
    written.variant?.toLowerCase() ?? '',
  )
  return variant === '' ? { os, architecture } : { os, architecture, variant }
}

function normalizeArchitecture(architecture: string, variant: string): [string, string] {
  switch (architecture) {
    case 'i386':
    case 'ia32':
      return ['386', '']
    case 'x86_64':
    case 'x86-64':
    case 'x64':
    case 'amd64':
      return ['amd64', variant === 'v1' ? '' : variant]
    case 'aarch64':
    case 'arm64':
      return ['arm64', variant === '8' || variant === 'v8' ? '' : variant]
    case 'armhf':
      return ['arm', 'v7']
    case 'armel':
      return ['arm', 'v6']
    case 'arm':
      if (variant === '' || variant === '7') return ['arm', 'v7']
      return ['arm', /^[568]$/.test(variant) ? `v${variant}` : variant]
    default:
      return [architecture, variant]
  }
}

/** The platform of this node. Images run in Linux containers, whatever the kernel is called. */
export function nodePlatform(): Platform {
  return normalizePlatform({ os: platform(), architecture: arch() })
}

/**
 * The entry of an index that this node should run, or undefined if none fits. A newer variant wins over an older one that also
 * runs here (arm v7 before v6); entries without platform are taken last, as a single unnamed manifest runs anywhere it can.
 */
export function choosePlatform<T extends { readonly platform?: Platform | undefined }>(
  entries: readonly T[],
  node: Platform,
): T | undefined {
  const accepted = acceptedVariants(normalizePlatform(node))
  let best: T | undefined
  let bestRank = Number.POSITIVE_INFINITY
  for (const entry of entries) {
    const rank = entry.platform === undefined ? accepted.length : rankOf(entry.platform, accepted)
    if (rank < bestRank) [best, bestRank] = [entry, rank]
  }
  return best
}

/** "linux/arm/v7", for sentences. */
export function formatPlatform({ os, architecture, variant }: Platform): string {
  return variant === undefined ? `${os}/${architecture}` : `${os}/${architecture}/${variant}`
}

function rankOf(written: Platform, accepted: readonly string[]): number {
  const rank = accepted.indexOf(formatPlatform(normalizePlatform(written)))
  return rank === -1 ? Number.POSITIVE_INFINITY : rank
}

/** Platforms that run on `node`, best first: containerd's `platforms.Only`. */
function acceptedVariants(node: Platform): string[] {
  const { os, architecture, variant } = node
  const spell = (architecture: string, variant = ''): string =>
    formatPlatform(variant === '' ? { os, architecture } : { os, architecture, variant })
  const accepted = [formatPlatform(node)]
  const level = Number(/^v(\d+)$/.exec(variant ?? '')?.[1] ?? 0)
  if (architecture === 'arm') {
    for (let lower = level - 1; lower >= 5; lower--) accepted.push(spell('arm', `v${lower}`))
  }
  if (architecture === 'amd64') {
    for (let lower = level - 1; lower >= 1; lower--) {
      accepted.push(spell('amd64', lower === 1 ? '' : `v${lower}`))
    }
    accepted.push(spell('386'))
  }
  if (architecture === 'arm64') {
    if (level > 0) accepted.push(spell('arm64'))
    for (let lower = 8; lower >= 5; lower--) accepted.push(spell('arm', `v${lower}`))
  }
  return accepted
}
