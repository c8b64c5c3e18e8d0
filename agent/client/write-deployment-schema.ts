import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { deploymentJsonSchema } from './deployment-file/format.ts'

// node agent/client/write-deployment-schema.ts && biome check --write docs: after a change of the deployment file's format. A test sees to it.
const path = fileURLToPath(new URL('../../docs/deployment-file.schema.json', import.meta.url))
writeFileSync(path, `${JSON.stringify(deploymentJsonSchema(), null, 2)}\n`)
