/** What a check found, in a sentence without a full stop, and what to do about it. */
export type Finding =
  | { readonly state: 'ok'; readonly found: string; readonly advice?: undefined }
  | { readonly state: 'warning' | 'failure'; readonly found: string; readonly advice: string }
  | { readonly state: 'not checked'; readonly found: string; readonly advice?: undefined }

/** One thing that must be right on a node. */
export type Check = {
  /** A few words, for the list. */
  readonly name: string
  /** Looks, and changes nothing. What it rejects with is a failure too. */
  readonly look: (signal: AbortSignal) => Promise<Finding>
}

export function ok(found: string): Finding {
  return { state: 'ok', found }
}

/** It works, but not well, or not for long. */
export function warning(found: string, advice: string): Finding {
  return { state: 'warning', found, advice }
}

/** It does not work. */
export function failure(found: string, advice: string): Finding {
  return { state: 'failure', found, advice }
}

/** It cannot be told, because of what another check found or because this node does not use it. */
export function notChecked(why: string): Finding {
  return { state: 'not checked', found: why }
}
