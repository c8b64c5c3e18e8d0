import { CodedError } from '../../snapshotter/errors.ts'

/** A call of somebody who has not shown that he may make it; the message says what is missing. */
export class CallError extends CodedError {}
