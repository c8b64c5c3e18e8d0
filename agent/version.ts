import packageFile from '../package.json' with { type: 'json' }

/** The version of this agent. */
export const version: string = packageFile.version
