import { DEPLOYMENT_LIMITS } from '../deployment-limits.ts'
import type { Path, Source } from './yaml-source.ts'

/** One variable of a container's environment. */
export type EnvEntry = { readonly name: string; readonly value: string; readonly path: Path }

/** What the agent takes. Protobuf's maps are objects, which have no __proto__ to give. */
const NAME = /^(?!__proto__$)[A-Za-z_][A-Za-z0-9_.-]{0,254}$/

/** The entries of a map or list of NAME=value, as far as they are some. */
export function envEntries(source: Source, written: unknown, path: Path): EnvEntry[] {
  if (Array.isArray(written)) {
    return written.flatMap((item: unknown, index) => {
      const equals = typeof item === 'string' ? item.indexOf('=') : -1
      if (typeof item !== 'string' || equals === -1) return []
      return [
        { name: item.slice(0, equals), value: item.slice(equals + 1), path: [...path, index] },
      ]
    })
  }
  if (typeof written !== 'object' || written === null) return []
  return Object.entries(written).flatMap(([name, value]: [string, unknown]) => {
    const at = [...path, name]
    return isScalar(value) ? [{ name, value: scalarText(source, value, at), path: at }] : []
  })
}

/** A scalar as it was written: 1.10 stays 1.10. */
export function scalarText(source: Source, value: string | number | boolean, path: Path): string {
  return typeof value === 'string' ? value : (source.written(path) ?? String(value))
}

/** What is wrong with an environment that is a map or list, each with its place. */
export function envProblems(
  source: Source,
  written: unknown,
  path: Path,
): { readonly path: Path; readonly message: string }[] {
  const problems: { path: Path; message: string }[] = []
  if (Array.isArray(written)) {
    for (const [index, item] of written.entries()) {
      if (typeof item !== 'string' || item.includes('=')) continue
      problems.push({
        path: [...path, index],
        message: `has no value; write ${item.slice(0, 80)}=value`,
      })
    }
  }
  const entries = envEntries(source, written, path)
  const seen = new Set<string>()
  for (const { name, path: at } of entries) {
    if (!NAME.test(name))
      problems.push({
        path: at,
        message: `'${name.slice(0, 80)}' is no name of a variable; write letters, digits and _`,
      })
    if (seen.has(name))
      problems.push({ path: at, message: `${name.slice(0, 80)} is here twice; remove one of them` })
    seen.add(name)
  }
  const { envEntriesMax } = DEPLOYMENT_LIMITS
  if (entries.length > envEntriesMax) {
    const message = `has ${entries.length} variables, there may be ${envEntriesMax}`
    problems.push({ path, message })
  }
  return problems
}

function isScalar(value: unknown): value is string | number | boolean {
  return typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean'
}
