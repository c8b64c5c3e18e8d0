import { stat } from 'node:fs/promises'
import type { ImageReference } from '../../snapshotter/oci/reference.ts'
import {
  parseRegistryReference,
  type RegistryReference,
} from '../../snapshotter/oci/registry-reference.ts'
import { EXIT_CODES } from './exit-codes.ts'
import { asUsageFailure, CommandFailure } from './failure.ts'
import { imageReference } from './image-argument.ts'

/** Where an image to push comes from. */
export type PushSource =
  /** An OCI layout, or a tar; `name` chooses among several images. */
  | { readonly kind: 'path'; readonly path: string; readonly name?: string }
  | { readonly kind: 'containerd'; readonly name: string }
  | { readonly kind: 'registry'; readonly reference: RegistryReference }
  /** One that is on IPFS already, to be written anew. */
  | { readonly kind: 'ipfs'; readonly reference: ImageReference }
  | { readonly kind: 'stdin' }

/** As skopeo spells it: what follows is named as docker names it. */
const REGISTRY_SCHEME = 'docker://'

/** Reads `<source>` of ipdr push. Rejects with CommandFailure: usage, or not found if there is no such path. */
export async function parsePushSource(text: string): Promise<PushSource> {
  if (text === '-') return { kind: 'stdin' }
  if (text.startsWith(REGISTRY_SCHEME)) {
    return { kind: 'registry', reference: registryReference(text.slice(REGISTRY_SCHEME.length)) }
  }
  const [, scheme, rest] = /^(oci|docker-archive|containerd|ipfs):(.*)$/s.exec(text) ?? []
  if (scheme === undefined || rest === undefined) {
    if (text !== '' && (await exists(text))) return { kind: 'path', path: text }
    throw new CommandFailure(
      EXIT_CODES.notFound,
      `there is no ${text === '' ? 'source without a name' : text}`,
      'Give a path, - for standard input, or oci:DIR, docker-archive:FILE, containerd:IMAGE, docker://IMAGE, ipfs:CID.',
    )
  }
  if (rest === '') {
    throw new CommandFailure(EXIT_CODES.usage, `${scheme}: says where from, but not what`)
  }
  if (scheme === 'ipfs') {
    return { kind: 'ipfs', reference: imageReference(rest.replace(/^\/\//, '')) }
  }
  if (scheme === 'containerd') return { kind: 'containerd', name: rest }
  return await pathAndName(rest)
}

function registryReference(text: string): RegistryReference {
  try {
    return parseRegistryReference(text)
  } catch (error) {
    throw asUsageFailure(error)
  }
}

/** `path[:name]`; a colon may be part of either, so the longest path that is there counts. */
async function pathAndName(text: string): Promise<PushSource> {
  if (await exists(text)) return { kind: 'path', path: text }
  for (let colon = text.lastIndexOf(':'); colon > 0; colon = text.lastIndexOf(':', colon - 1)) {
    const path = text.slice(0, colon)
    if (await exists(path)) return { kind: 'path', path, name: text.slice(colon + 1) }
  }
  throw new CommandFailure(EXIT_CODES.notFound, `there is no file or directory ${text}`)
}

async function exists(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined)) !== undefined
}
