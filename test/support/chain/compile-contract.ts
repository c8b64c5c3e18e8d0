import { readFile, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { buildOnce } from '../images/build-cache.ts'

const SOLC = join(import.meta.dirname, '../../../node_modules/solc/package.json')

/** The creation code of a source file's one contract. Compiled in an earlier run if neither the file nor the compiler has changed. */
export async function compileContract(path: string): Promise<`0x${string}`> {
  const source = await readFile(path, 'utf8')
  const { version }: { version: string } = JSON.parse(await readFile(SOLC, 'utf8'))
  const name = basename(path)
  const dir = await buildOnce(name, { source, version }, async (dir) => {
    await writeFile(join(dir, 'creation-code'), await compile(name, source))
  })
  const code = await readFile(join(dir, 'creation-code'), 'utf8')
  return `0x${code}`
}

async function compile(name: string, source: string): Promise<string> {
  // Here: it takes a third of a second and 100 MB just to load.
  const { default: solc } = await import('solc')
  const input = {
    language: 'Solidity',
    sources: { [name]: { content: source } },
    settings: {
      optimizer: { enabled: true, runs: 200 },
      outputSelection: { '*': { '*': ['evm.bytecode.object'] } },
    },
  }
  const output: {
    readonly errors?: readonly { readonly formattedMessage: string }[]
    readonly contracts?: Record<
      string,
      Record<string, { readonly evm: { readonly bytecode: { readonly object: string } } }>
    >
  } = JSON.parse(solc.compile(JSON.stringify(input)))
  const { errors = [], contracts = {} } = output
  if (errors.length > 0) {
    throw new Error(errors.map(({ formattedMessage }) => formattedMessage).join('\n'))
  }
  // An interface has no code.
  const codes = Object.values(contracts[name] ?? {}).map(({ evm }) => evm.bytecode.object)
  const [code, ...more] = codes.filter((code) => code !== '')
  if (code === undefined || more.length > 0) throw new Error(`${name} must have one contract`)
  return code
}
