import { CodedError } from '../../snapshotter/errors.ts'

/** Something wrong, or worth knowing, at one place of a file. */
export type Problem = {
  /** Counted from 1; undefined where the format has no lines. */
  readonly line?: number | undefined
  readonly column?: number | undefined
  /** As `containers.web.ports[0].host`; empty: the file as a whole. */
  readonly field: string
  /** What is wrong, and what to write instead. */
  readonly message: string
}

/** How many are spelled out in the message; `problems` has the others too. */
const SHOWN_MAX = 100

/** A file that describes no pod. `problems` has everything that is wrong with it, and the message says it line by line. */
export class DeploymentFileError extends CodedError {
  readonly path: string
  /** In the order of the file; at least one. */
  readonly problems: readonly Problem[]

  constructor(path: string, problems: readonly Problem[], cause?: unknown) {
    const sorted = problems.toSorted(
      (a, b) => (a.line ?? 0) - (b.line ?? 0) || (a.column ?? 0) - (b.column ?? 0),
    )
    const lines = sorted.slice(0, SHOWN_MAX).map((problem) => formatProblem(path, problem))
    const more = sorted.length - lines.length
    if (more > 0) lines.push(`and ${more} more`)
    const heading = sorted.length > 1 ? [`${path} has ${sorted.length} problems`] : []
    super(
      'INVALID_ARGUMENT',
      [...heading, ...lines].join('\n'),
      { path, problems: sorted.length },
      cause,
    )
    this.path = path
    this.problems = sorted
  }
}

/** `ipdr.yaml:7:13: containers.web.memory: …`, as compilers write it, so that editors find the place. */
export function formatProblem(path: string, { line, column, field, message }: Problem): string {
  const place = line === undefined ? path : `${path}:${line}:${column ?? 1}`
  return field === '' ? `${place}: ${message}` : `${place}: ${field}: ${message}`
}

/** `containers.web.ports[0].host` */
export function formatField(path: readonly (string | number)[]): string {
  return path
    .map((step, index) => {
      if (typeof step === 'number') return `[${step}]`
      const shown = step.length > 80 ? `${step.slice(0, 80)}…` : step
      // Quoted where a dot or a space would be taken for another step.
      const word = /^[\w./-]+$/.test(shown) && !shown.includes('.') ? shown : JSON.stringify(shown)
      return index === 0 ? word : `.${word}`
    })
    .join('')
}
