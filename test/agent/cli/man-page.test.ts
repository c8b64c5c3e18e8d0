import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { COMMANDS } from '../../../agent/cli/commands.ts'
import { EXIT_CODE_MEANINGS } from '../../../agent/cli/exit-codes.ts'
import { manPage } from '../../../agent/cli/man-page.ts'

const DOCS = fileURLToPath(new URL('../../../docs/', import.meta.url))

test('docs/man/ipdr.1 is what the commands say of themselves (node agent/cli/write-man.ts)', () => {
  expect(readFileSync(`${DOCS}man/ipdr.1`, 'utf8')).toBe(manPage())
})

test('every command and option is in it, in ASCII, and no line of text is taken for a request', () => {
  const page = manPage()
  expect(page).not.toMatch(/[^\n -~]/)
  for (const { name, options } of COMMANDS) {
    expect(page).toContain(`.SS ipdr ${name.replaceAll('-', '\\-')}`)
    for (const option of Object.keys(options)) {
      expect(page).toContain(`\\-\\-${option.replaceAll('-', '\\-')}`)
    }
  }
  const requests = new Set(page.match(/^[.'][A-Za-z\\]*/gm))
  expect([...requests].toSorted()).toEqual(
    [
      '.B',
      '.BR',
      '.I',
      '.PP',
      '.RE',
      '.RS',
      '.SH',
      '.SS',
      '.TH',
      '.TP',
      '.\\',
      '.fi',
      '.nf',
    ].toSorted(),
  )
})

test('docs/cli.md lists every exit code', () => {
  const table = readFileSync(`${DOCS}cli.md`, 'utf8')
  const listed = [...table.matchAll(/^\| ([\d, ]+) \|/gm)].flatMap(([, codes = '']) =>
    codes.split(', ').map(Number),
  )
  expect(new Set(listed)).toEqual(new Set(EXIT_CODE_MEANINGS.map(([code]) => code)))
})
