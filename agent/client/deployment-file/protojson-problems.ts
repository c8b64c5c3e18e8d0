import {
  type DescField,
  type DescMessage,
  fromJson,
  type JsonObject,
  type JsonValue,
  ScalarType,
} from '@bufbuild/protobuf'
import type { Problem } from '../deployment-file-error.ts'
import { nearestWord } from './nearest-word.ts'
import type { Path, Source } from './yaml-source.ts'

/** Everything in `value` that is not as protobuf's JSON has `message`; fromJson would say one thing, and not where. */
export function protojsonProblems(
  source: Source,
  message: DescMessage,
  value: unknown,
  path: Path,
): Problem[] {
  if (value === null && path.length > 0) return []
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return [source.problem(path, 'must be a map')]
  }
  const oneofs = new Map<string, string>()
  return Object.entries(value).flatMap(([key, held]: [string, unknown]): Problem[] => {
    const at = [...path, key]
    const field = message.fields.find(({ name, jsonName }) => name === key || jsonName === key)
    if (field === undefined) {
      const near = nearestWord(
        key,
        message.fields.map(({ jsonName }) => jsonName),
      )
      const hint = near === undefined ? 'remove it' : `did you mean ${near}?`
      return [source.keyProblem(at, `there is no such field in these manifests; ${hint}`)]
    }
    if (held === null) return []
    const other = field.oneof && oneofs.get(field.oneof.name)
    if (field.oneof !== undefined) oneofs.set(field.oneof.name, key)
    const twice =
      other === undefined
        ? []
        : [source.keyProblem(at, `${other} is there already; remove one of them`)]
    return [...twice, ...fieldProblems(source, field, held, at)]
  })
}

function fieldProblems(source: Source, field: DescField, value: unknown, path: Path): Problem[] {
  if (field.fieldKind === 'list') {
    if (!Array.isArray(value)) return [source.problem(path, 'must be a list')]
    return value.flatMap((item: unknown, index) => {
      const at = [...path, index]
      if (field.listKind === 'message') {
        return item === null
          ? [source.problem(at, 'is empty')]
          : protojsonProblems(source, field.message, item, at)
      }
      return typeof item === 'string'
        ? []
        : [source.problem(at, 'must be text; put it into quotes')]
    })
  }
  if (field.fieldKind === 'map') {
    if (typeof value !== 'object' || Array.isArray(value))
      return [source.problem(path, 'must be a map')]
    return Object.entries(value ?? {}).flatMap(([key, item]: [string, unknown]) =>
      typeof item === 'string'
        ? []
        : [source.problem([...path, key], 'must be text; put it into quotes')],
    )
  }
  if (field.fieldKind === 'message') return protojsonProblems(source, field.message, value, path)
  try {
    const single: JsonObject = { [field.jsonName]: value as JsonValue }
    fromJson(field.parent, single)
    return []
  } catch {
    return [source.problem(path, `must be ${kindOf(field)}`)]
  }
}

function kindOf(field: DescField & { readonly fieldKind: 'scalar' | 'enum' }): string {
  if (field.fieldKind === 'enum')
    return `one of ${field.enum.values.map(({ name }) => name).join(', ')}`
  switch (field.scalar) {
    case ScalarType.STRING:
      return 'text; put it into quotes'
    case ScalarType.BYTES:
      return 'bytes in base64'
    case ScalarType.BOOL:
      return 'true or false'
    default:
      return "a whole number, as '80'"
  }
}
