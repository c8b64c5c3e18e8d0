/** System calls that the agent's processes make for themselves and that Node has no function for. */
export { sendDatagram, trimMalloc } from './kernel/libc.ts'
