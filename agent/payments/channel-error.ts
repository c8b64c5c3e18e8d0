import { CodedError } from '../../snapshotter/errors.ts'

/** A payment channel that cannot be read from the chain, or a price that nobody has set; the message says what to do. */
export class ChannelError extends CodedError {}
