import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client'
import type { CallEnd } from './connect-errors.ts'

/** A call without the cluster takes a few ms; a deployment that is followed until it is ready, minutes. */
const CALL_BUCKETS_SECONDS = [0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300]

/** What is read when somebody scrapes. */
export type DeployGauges = {
  readonly connections: () => number
  readonly streams: () => number
  /** Changes of pods that wait for their turn, or have it. */
  readonly changes: () => number
}

/** Every number that the control worker publishes, with its unit in its name. */
export class DeployMetrics {
  readonly registry: Registry = new Registry()
  readonly #callSeconds: Histogram<'rpc' | 'code'>
  readonly #scaleDowns: Counter<'status'>

  constructor() {
    const registers = [this.registry]
    collectDefaultMetrics({ register: this.registry })
    this.#callSeconds = new Histogram({
      name: 'ipdr_deploy_call_seconds',
      help: 'Calls of publishers by what was asked for and how it ended, until their answer was whole.',
      labelNames: ['rpc', 'code'],
      buckets: CALL_BUCKETS_SECONDS,
      registers,
    })
    this.#scaleDowns = new Counter({
      name: 'ipdr_deploy_scale_downs_total',
      help: 'Pods that asked to sleep, by the HTTP status that they were answered with; 202: it sleeps.',
      labelNames: ['status'],
      registers,
    })
  }

  called({ rpc, code, seconds }: CallEnd): void {
    this.#callSeconds.observe({ rpc, code }, seconds)
  }

  scaledDown(status: number): void {
    this.#scaleDowns.inc({ status })
  }

  observe({ connections, streams, changes }: DeployGauges): void {
    const gauge = (name: string, help: string, read: () => number): void => {
      const made: Gauge = new Gauge({ name, help, registers: [], collect: () => made.set(read()) })
      this.registry.registerMetric(made)
    }
    gauge('ipdr_deploy_connections', 'libp2p connections that are open.', connections)
    gauge('ipdr_deploy_streams', 'Streams with a request or waiting for one.', streams)
    gauge('ipdr_deploy_changes', 'Changes of pods under way or waiting for their turn.', changes)
  }
}
