import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { manPage } from './man-page.ts'

// node agent/cli/write-man.ts: after a change of what a command says of itself. A test sees to it.
writeFileSync(fileURLToPath(new URL('../../docs/man/ipdr.1', import.meta.url)), manPage())
