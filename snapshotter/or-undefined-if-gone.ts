/** What work on a file or folder comes to; undefined if there is none of that name. Rejects as it does otherwise. */
export async function orUndefinedIfGone<Result>(
  attempt: Promise<Result>,
): Promise<Result | undefined> {
  try {
    return await attempt
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined
    throw error
  }
}
