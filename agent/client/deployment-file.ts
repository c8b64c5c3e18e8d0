import { buildPod, checkDeployment } from './deployment-file/build-pod.ts'
import { YamlSource } from './deployment-file/yaml-source.ts'
import type { DescribedPod, Surroundings } from './described-pod.ts'
import { readOldManifest, readOldManifestMessage } from './old-manifest.ts'

/**
 * The pod that a file describes: in our format (docs/deployment-file.md), or in that of Trusted Pods and Apocryph, whose `containers`
 * are a list; one that ends in .pb is a message of theirs. Files that it names are read too. Rejects with DeploymentFileError
 * INVALID_ARGUMENT, which names every fault with its place. For Node and browsers.
 */
export async function readDeploymentFile(
  path: string,
  contents: string | Uint8Array,
  surroundings: Surroundings,
): Promise<DescribedPod> {
  if (path.endsWith('.pb') && typeof contents !== 'string') {
    return await readOldManifestMessage(path, contents, surroundings)
  }
  const source = YamlSource.read(path, contents)
  if (isOldManifest(source.value)) return await readOldManifest(source, surroundings)
  return await buildPod(checkDeployment(source), surroundings)
}

/** Whose containers are a list. One with our own fields is no manifest of theirs, but one of ours with a mistake. */
function isOldManifest(value: unknown): boolean {
  if (typeof value !== 'object' || value === null || !('containers' in value)) return false
  if (!Array.isArray(value.containers) || value.containers.length === 0) return false
  return !value.containers.some((container: unknown) => {
    const isMap = typeof container === 'object' && container !== null
    return isMap && 'image' in container && typeof container.image === 'string'
  })
}
