import type { DatabaseSync, StatementSync } from 'node:sqlite'

/** Gives the statements of a database by their text, each prepared at its first use. */
export function preparedOnce(db: DatabaseSync): (text: string) => StatementSync {
  const statements = new Map<string, StatementSync>()
  return (text) => {
    const known = statements.get(text)
    if (known !== undefined) return known
    const prepared = db.prepare(text)
    statements.set(text, prepared)
    return prepared
  }
}
