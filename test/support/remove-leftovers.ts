import { removeLeftovers } from './scratch.ts'

// `make` runs this before tests, so that one that was killed does not trouble the next.
const count = await removeLeftovers()
if (count > 0) console.log(`removed what ${count} interrupted tests had left behind`)
