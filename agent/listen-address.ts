import { isIP } from 'node:net'
import { z } from 'zod'

/** `host:port` of a TCP listener. Port 0 lets the kernel choose. */
export type ListenAddress = { readonly host: string; readonly port: number }

/** `IP:port` as text, in a configuration. */
export const listenAddress: z.ZodType<ListenAddress, string> = z
  .string()
  .transform((text, ctx): ListenAddress => {
    const match = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text)
    const host = match?.[1] ?? match?.[2] ?? ''
    const port = Number(match?.[3])
    if (isIP(host) === 0 || !(port <= 65_535)) {
      ctx.addIssue(`must be IP:port, like 127.0.0.1:5080 or [::1]:5080, not '${text}'`)
      return z.NEVER
    }
    return { host, port }
  })
