import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { deploymentJsonSchema } from '../../../agent/client/deployment-file/format.ts'
import { readDeploymentFile } from '../../../agent/client/deployment-file.ts'

const docs = readFileSync('docs/deployment-file.md', 'utf8')

test('every example of docs/deployment-file.md is read, without a remark', async () => {
  const examples = [...docs.matchAll(/^```yaml\n(.*?)^```$/gms)].map(([, text]) => text ?? '')
  expect(examples.length).toBeGreaterThanOrEqual(3)
  for (const text of examples) {
    const { remarks } = await readDeploymentFile('ipdr.yaml', text, {
      readFile: () => Promise.resolve(new TextEncoder().encode('x')),
      environment: { LEDGER_PASSWORD: 'x' },
    })
    expect(remarks).toEqual([])
  }
})

test('docs/deployment-file.schema.json is what the reader checks (node agent/client/write-deployment-schema.ts)', () => {
  const written: unknown = JSON.parse(readFileSync('docs/deployment-file.schema.json', 'utf8'))
  expect(written).toEqual(deploymentJsonSchema())
})

test('docs/deployment-file.md tells of every field, and the schema describes it', () => {
  const fields = fieldsIn(deploymentJsonSchema())
  expect(fields.length).toBeGreaterThan(30)
  const untold = fields.filter(({ name }) => {
    return !new RegExp(`^\\| \`(?:secret\\.)?${name}(?:\\.\\w+)?\` +\\|`, 'm').test(docs)
  })
  expect(untold).toEqual([])
  expect(fields.filter(({ isDescribed }) => !isDescribed)).toEqual([])
})

test('the reader runs in browsers: nothing that it imports is of Node', () => {
  const seen = new Set<string>()
  const ofNode: string[] = []
  const open = ['agent/client/deployment-file.ts', 'agent/client/deployment-file-init.ts']
  for (let path = open.pop(); path !== undefined; path = open.pop()) {
    if (seen.has(path)) continue
    seen.add(path)
    const source = readFileSync(path, 'utf8')
    for (const [, from = ''] of source.matchAll(
      /^(?:import\s|(?:import|export)\s[^'"=()]*?\sfrom\s)'([^']+)'/gm,
    )) {
      if (from.startsWith('node:')) ofNode.push(`${path}: ${from}`)
      if (from.startsWith('.')) open.push(new URL(from, `file:///${path}`).pathname.slice(1))
    }
    const globals = /\b(?:Buffer|process)\.\w+/.exec(source)
    if (globals !== null) ofNode.push(`${path}: ${globals[0]}`)
  }
  expect(ofNode).toEqual([])
  expect(seen).toContain('snapshotter/oci/parse-cid.ts')
})

type Schema = { readonly [key: string]: unknown }

/** Properties at any depth. */
function fieldsIn(schema: unknown): { name: string; isDescribed: boolean }[] {
  if (typeof schema !== 'object' || schema === null) return []
  const { properties, ...rest } = schema as Schema
  const held = Object.entries((properties ?? {}) as Record<string, Schema>)
  const own = held.map(([name, value]) => ({
    name,
    isDescribed: typeof value['description'] === 'string',
  }))
  const below = [...Object.values(rest), ...held.map(([, value]) => value)]
  return [...own, ...below.flatMap((value) => fieldsIn(value))]
}
