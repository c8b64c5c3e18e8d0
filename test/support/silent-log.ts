import type { Log } from '../../snapshotter/log.ts'

/** For parts whose words a test does not look at. */
export const silentLog: Log = { debug() {}, info() {}, warn() {}, error() {} }
