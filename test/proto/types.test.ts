import { execFileSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'

function filesIn(dir: string): Record<string, string> {
  const entries = readdirSync(dir, { recursive: true, withFileTypes: true })
  const files = entries.filter((entry) => entry.isFile())
  return Object.fromEntries(
    files.map(({ parentPath, name }) => {
      const path = join(parentPath, name)
      return [path.slice(dir.length), readFileSync(path, 'utf8')]
    }),
  )
}

test.each([
  ['types', 'generate-types.ts'],
  ['messages', 'generate-messages.ts'],
])('proto/%s is what the .proto files give: else run npm run proto', (name, program) => {
  const proto = join(import.meta.dirname, '../../proto')
  const dir = mkdtempSync(join(tmpdir(), 'proto-'))
  try {
    execFileSync(process.execPath, [join(proto, program), dir], { stdio: 'pipe' })
    expect(filesIn(dir)).toEqual(filesIn(join(proto, name)))
  } finally {
    rmSync(dir, { recursive: true })
  }
})
