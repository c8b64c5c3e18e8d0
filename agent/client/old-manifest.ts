import { fromBinary, fromJson, type JsonValue, toJson } from '@bufbuild/protobuf'
import { z } from 'zod'
import { type Pod, PodSchema } from '../../proto/messages/apocryph/pod_pb.js'
import { buildPod, checkDeployment } from './deployment-file/build-pod.ts'
import { oldCid } from './deployment-file/old-cid.ts'
import { protojsonProblems } from './deployment-file/protojson-problems.ts'
import { translateManifest } from './deployment-file/translate-manifest.ts'
import { type Path, type Source, YamlSource } from './deployment-file/yaml-source.ts'
import { DeploymentFileError, formatField, type Problem } from './deployment-file-error.ts'
import { DEPLOYMENT_LIMITS } from './deployment-limits.ts'
import type { DescribedPod, Surroundings } from './described-pod.ts'

/**
 * The pod that a manifest of Trusted Pods or Apocryph describes. It is put into the words of our own format first, and checked as that
 * is. Rejects with DeploymentFileError for what is wrong with it, and for what has no counterpart here.
 */
export async function readOldManifest(
  source: Source,
  surroundings: Surroundings,
): Promise<DescribedPod> {
  const wrong = protojsonProblems(source, PodSchema, source.value, [])
  if (wrong.length > 0) throw new DeploymentFileError(source.path, wrong)
  let pod: Pod
  try {
    pod = fromJson(PodSchema, source.value as JsonValue)
  } catch (error) {
    throw new DeploymentFileError(source.path, [source.problem([], reasonOf(error))], error)
  }
  return await describe(source, pod, surroundings)
}

/** As `readOldManifest`, of one in protobuf's binary form (.pb). */
export async function readOldManifestMessage(
  path: string,
  contents: Uint8Array,
  surroundings: Surroundings,
): Promise<DescribedPod> {
  const source = new PlacelessSource(path)
  const { fileBytesMax } = DEPLOYMENT_LIMITS
  if (contents.length > fileBytesMax) {
    const message = `has ${contents.length} bytes, it may have ${fileBytesMax}`
    throw new DeploymentFileError(path, [source.problem([], message)])
  }
  let pod: Pod
  try {
    pod = fromBinary(PodSchema, contents)
  } catch (error) {
    throw new DeploymentFileError(
      path,
      [source.problem([], `is no manifest in binary form: ${reasonOf(error)}`)],
      error,
    )
  }
  const unusable = nulProblems(source, toJson(PodSchema, pod), [])
  if (unusable.length > 0) throw new DeploymentFileError(path, unusable)
  return await describe(source, pod, surroundings)
}

async function describe(
  origin: Source,
  pod: Pod,
  surroundings: Surroundings,
): Promise<DescribedPod> {
  const { source, problems, remarks } = translateManifest(origin, pod)
  const checked = checkDeployment(source, problems)
  return await buildPod({ ...checked, remarks: [...remarks, ...checked.remarks] }, surroundings)
}

/** Of what has fields, but no lines. */
class PlacelessSource implements Source {
  readonly path: string
  readonly value: unknown = undefined

  constructor(path: string) {
    this.path = path
  }

  problem(path: Path, message: string): Problem {
    return { field: formatField(path), message }
  }

  keyProblem(path: Path, message: string): Problem {
    return this.problem(path, message)
  }

  written(): undefined {
    return undefined
  }
}

/** Text with NUL in it, which a YAML file is refused for. */
function nulProblems(source: Source, value: JsonValue, path: Path): Problem[] {
  if (typeof value === 'string') {
    return value.includes('\0') ? [source.problem(path, 'has a NUL in it')] : []
  }
  if (typeof value !== 'object' || value === null) return []
  if (Array.isArray(value)) {
    return value.flatMap((item, index) => nulProblems(source, item, [...path, index]))
  }
  return Object.entries(value).flatMap(([key, held]) => [
    ...nulProblems(source, key, [...path, key]),
    ...nulProblems(source, held, [...path, key]),
  ])
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

/** What the Go client wrote down of a deployment, as far as it is of use to another client. */
export type OldDeploymentState = {
  readonly manifestPath?: string | undefined
  readonly provider?:
    | {
        /** 0x and 40 lower-case hex digits. */
        readonly ethereumAddress?: `0x${string}` | undefined
        /** A multiaddr, as /p2p/12D3KooW… */
        readonly libp2pAddress?: string | undefined
      }
    | undefined
  readonly payment?:
    | {
        readonly evmChainId?: bigint | undefined
        readonly contract?: `0x${string}` | undefined
        readonly publisher?: `0x${string}` | undefined
      }
    | undefined
  /** 0x and 64 hex digits. */
  readonly podId?: `0x${string}` | undefined
  readonly images: readonly OldUploadedImage[]
}

export type OldUploadedImage = {
  /** As it stands in the manifest. */
  readonly sourceUrl: string
  readonly digest: string
  /** In CIDv1, base32. */
  readonly cid?: string | undefined
  /** What it was encrypted with: a JSON Web Key or PEM. */
  readonly key?: Uint8Array | undefined
}

const bytes = (lengthMax: number, what: string) =>
  z.string({ error: `must be ${what} in base64` }).transform((text, ctx): Uint8Array => {
    try {
      // Go takes both alphabets, with or without padding.
      const decoded = atob(text.replaceAll('-', '+').replaceAll('_', '/').replace(/=+$/, ''))
      if (decoded.length <= lengthMax) {
        return Uint8Array.from(decoded, (character) => character.charCodeAt(0))
      }
    } catch {
      // Said below.
    }
    ctx.addIssue(`must be ${what} in base64`)
    return z.NEVER
  })

const hexBytes = (length: number, what: string) =>
  bytes(length, what).transform((value, ctx): `0x${string}` | undefined => {
    if (value.length === 0) return undefined
    if (value.length === length) return hexOf(value, length)
    ctx.addIssue(`must be ${what} in base64`)
    return z.NEVER
  })

const address = hexBytes(20, 'an address of 20 bytes').optional()

// Loose: later versions of the client wrote more, and nothing of it concerns us.
const oldState = z.looseObject(
  {
    podManifestFile: z.string({ error: 'must be a path' }).optional(),
    provider: z
      .looseObject({
        ethereumAddress: address,
        libp2pAddress: z.string({ error: 'must be a multiaddr' }).optional(),
      })
      .nullish(),
    payment: z
      .looseObject({
        chainID: bytes(32, 'a number of up to 32 bytes')
          .transform((value) =>
            value.length === 0 ? undefined : BigInt(hexOf(value, value.length)),
          )
          .optional(),
        paymentContractAddress: address,
        publisherAddress: address,
        // Go pads on the left what is shorter.
        podID: bytes(32, 'up to 32 bytes')
          .transform((value) => (value.length === 0 ? undefined : hexOf(value, 32)))
          .optional(),
      })
      .nullish(),
    images: z
      .array(
        z.looseObject({
          sourceUrl: z.string({ error: 'must be the name of an image' }).default(''),
          digest: z.string({ error: 'must be a digest' }).default(''),
          cid: bytes(512, 'a CID')
            .transform((value, ctx): string | undefined => {
              if (value.length === 0) return undefined
              const cid = oldCid(value)
              if (cid === undefined) ctx.addIssue('must be a CID in base64')
              return cid
            })
            .optional(),
          key: z.looseObject({ data: bytes(16 * 1024, 'a key').optional() }).nullish(),
        }),
        { error: 'must be a list' },
      )
      .max(1000, 'may have 1000 images at most')
      .nullish(),
  },
  {
    error:
      'must be the state file of a deployment: a map with podManifestFile, provider and payment',
  },
)

/** Reads the state file that `trustedpods pod deploy` keeps, in YAML or JSON. Throws DeploymentFileError. */
export function readOldDeploymentState(
  text: string | Uint8Array,
  path = 'deployment state',
): OldDeploymentState {
  const source = YamlSource.read(path, text)
  const parsed = oldState.safeParse(source.value)
  if (!parsed.success) {
    throw new DeploymentFileError(
      path,
      parsed.error.issues.map((issue) =>
        source.problem(
          issue.path.map((step) => (typeof step === 'number' ? step : String(step))),
          issue.message,
        ),
      ),
    )
  }
  const { podManifestFile, provider, payment, images } = parsed.data
  return {
    manifestPath: podManifestFile,
    provider: provider
      ? {
          ethereumAddress: provider.ethereumAddress,
          libp2pAddress: provider.libp2pAddress,
        }
      : undefined,
    payment: payment
      ? {
          evmChainId: payment.chainID,
          contract: payment.paymentContractAddress,
          publisher: payment.publisherAddress,
        }
      : undefined,
    podId: payment?.podID,
    images: (images ?? []).map(({ sourceUrl, digest, cid, key }) => ({
      sourceUrl,
      digest,
      cid,
      key: key?.data,
    })),
  }
}

function hexOf(value: Uint8Array, length: number): `0x${string}` {
  const digits = [...value].map((byte) => byte.toString(16).padStart(2, '0')).join('')
  return `0x${digits.padStart(length * 2, '0')}`
}
