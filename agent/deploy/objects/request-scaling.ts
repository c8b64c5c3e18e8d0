import type { ClusterSettings } from '../cluster-settings.ts'
import type { PodSpec, PortSpec } from '../pod-spec.ts'

/** A port of a pod whose requests decide how many replicas there are, between these. */
export type RequestScaling = {
  readonly port: PortSpec
  readonly host: string
  readonly min: number
  readonly max: number
}

/** A port that a host name leads to. */
export type HttpPort = { readonly port: PortSpec; readonly host: string }

export function httpPorts({ containers }: Pick<PodSpec, 'containers'>): HttpPort[] {
  return containers
    .flatMap(({ ports }) => ports)
    .flatMap((port) => (port.exposure?.kind === 'http' ? [{ port, host: port.exposure.host }] : []))
}

/**
 * What KEDA scales a pod by; undefined where it has nothing to decide. It counts requests for one port of a pod: where there are more, the
 * first one's are counted, and the pod does not sleep, since requests for the others would neither keep it awake nor wake it.
 */
export function requestScaling(
  spec: PodSpec,
  { keda }: ClusterSettings,
): RequestScaling | undefined {
  const [first, ...others] = httpPorts(spec)
  if (keda === undefined || first === undefined) return undefined
  const { max } = spec.scaling
  const min = others.length > 0 ? Math.max(spec.scaling.min, 1) : spec.scaling.min
  return min < max ? { ...first, min, max } : undefined
}

/** Whether there may be no replica at all, until a request comes. */
export function maySleep(spec: PodSpec, settings: ClusterSettings): boolean {
  return !spec.isStateful && requestScaling(spec, settings)?.min === 0
}

/** How many replicas are asked for; undefined: that is not ours to say. */
export function replicasOf(
  spec: PodSpec,
  settings: ClusterSettings,
  isNew: boolean,
): number | undefined {
  const scaling = requestScaling(spec, settings)
  if (scaling === undefined) return Math.max(spec.scaling.min, 1)
  // Said once, since Kubernetes takes silence for one. Said again, it would put to sleep a pod that serves requests.
  return isNew ? scaling.min : undefined
}
