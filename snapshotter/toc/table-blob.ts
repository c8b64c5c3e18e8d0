/** What is known of the blob whose tables are read. */
export type TableBlob = {
  readonly size: number
  /** Where the parts start that are fetched at once, ascending, with `size` as last element. */
  readonly leafStarts: Float64Array
  /**
   * Its blocks have no CIDs of their own: nothing is to be believed but what the manifest vouches for through the tables, and
   * they must have a digest of every content.
   */
  readonly unverified?: boolean
}
