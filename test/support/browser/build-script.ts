import { rolldown } from 'rolldown'

/** Makes one file of a script for pages and all that it imports. */
export async function buildScript(source: string): Promise<string> {
  await using build = await rolldown({ input: source, platform: 'browser', logLevel: 'warn' })
  const { output } = await build.generate({ format: 'esm', minify: true })
  const [script, ...others] = output
  if (others.length > 0) throw new Error(`${source}: became ${output.length} files, not one`)
  return script.code
}
