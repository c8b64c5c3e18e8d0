import { type Digest, digestOf } from '../../../snapshotter/oci/digest.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'

export type ScriptedUpload = {
  readonly ref: string
  readonly pieces: readonly Uint8Array[]
  readonly digest: Digest
  readonly size: number
  readonly labels: ReadonlyMap<string, string>
}

/** The upload with this number of a script: one to four pieces of up to 100 KB. */
export function uploadOf(seed: number, index: number): ScriptedUpload {
  const random = seeded(seed * 1_000_003 + index)
  const pieces = Array.from({ length: 1 + random(4) }, () =>
    randomContent(random, 1 + random(100_000)),
  )
  const whole = Buffer.concat(pieces)
  return {
    ref: `upload-${index}`,
    pieces,
    digest: digestOf(whole),
    size: whole.length,
    labels: new Map([['number', String(index)]]),
  }
}
