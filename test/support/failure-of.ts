/** What `work` throws or rejects with. Throws if it succeeds, so that a test cannot pass by nothing happening. */
export async function failureOf(work: () => unknown): Promise<{
  name: string
  code: string
  message: string
}> {
  let result: unknown
  try {
    result = await work()
  } catch (error) {
    if (!(error instanceof Error)) throw error
    const code = 'code' in error ? String(error.code) : ''
    return { name: error.name, code, message: error.message }
  }
  throw new Error(`expected a failure, got ${String(result)}`)
}
