import { RequestError } from '../errors.ts'

export type Labels = ReadonlyMap<string, string>

/** Length of a label's key and value together, in bytes of UTF-8: containerd's limit. */
const LABEL_BYTES_MAX = 4_096

/**
 * The labels to keep. One with an empty value counts as absent, as in containerd's own stores. Throws RequestError
 * INVALID_ARGUMENT for one that is too long.
 */
export function checkLabels(labels: Labels): Map<string, string> {
  for (const [key, value] of labels) {
    const length = Buffer.byteLength(key) + Buffer.byteLength(value)
    if (length > LABEL_BYTES_MAX) {
      throw new RequestError(
        'INVALID_ARGUMENT',
        `label ${key.slice(0, 64)} has ${length} bytes with its value, at most ${LABEL_BYTES_MAX} are allowed`,
      )
    }
  }
  return new Map([...labels].filter(([, value]) => value !== ''))
}

/**
 * Labels after an update: all of the given ones, or those that `paths` name, `labels` or `labels.<key>`; one without a value is
 * deleted. Throws RequestError INVALID_ARGUMENT if a path names another field of `what`.
 */
export function updatedLabels(
  labels: Labels,
  change: { readonly given: Labels; readonly paths: readonly string[]; readonly what: string },
): Map<string, string> {
  const given = checkLabels(change.given)
  if (change.paths.length === 0) return given
  let updated = new Map(labels)
  for (const path of change.paths) {
    if (path === 'labels') {
      updated = new Map(given)
      continue
    }
    if (!path.startsWith('labels.')) {
      throw new RequestError('INVALID_ARGUMENT', `cannot update field ${path} of ${change.what}`)
    }
    const key = path.slice('labels.'.length)
    const value = given.get(key)
    if (value === undefined) updated.delete(key)
    else updated.set(key, value)
  }
  return updated
}
